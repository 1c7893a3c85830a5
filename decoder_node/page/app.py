"""The page's addresses: `make_app` gives the ASGI application over one archive.

    /                          what comes down now: nodes, scenes on their way, the map
    /scenes, /scenes/ID        search; one scene
    /scenes/ID/tiles|bits/Z/X/Y.png, /scenes/ID/preview.png|bits.png, /scenes/ID/files/NAME
    /history, /asks            what was; what was asked for, and the operator's forms
    /parts/NAME                pieces that replace themselves (htmx), told to by /events (server-sent events)
    /stac/...                  the archive's static catalogue, as it lies

Read-only, but for an operator's requests (`decoder_node.page.operator`). Scripts and styles come from here alone: the
content security policy forbids all else, inline script and style included. Only hosts that it was started for are
answered, so that no strange site can read a page on loopback under a name of its own. Peers' words become paths
nowhere: scenes are named by 64 hex digits, files by what the ledger lists.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from decoder_node.page.files import Files
from decoder_node.page.imagery import Imagery
from decoder_node.page.operator import NotAllowed
from decoder_node.page.orders import Orders
from decoder_node.page.screens import Screens
from decoder_node.page.shelf import SearchError
from decoder_node.page.station import FOR_EVER, NotHere, Settings, Station
from downlink import __version__
from downlink.errors import DownlinkError

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SECURITY: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), camera=(), microphone=()",
}
HERE: Final = Path(__file__).parent


def make_app(settings: Settings) -> FastAPI:
    """The application."""
    station = Station(settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        station.events.stop()

    app = FastAPI(title="Latent Downlink", openapi_url=None, docs_url=None, redoc_url=None, lifespan=life)
    app.state.events = station.events
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for part in (Screens(station), Imagery(station), Files(station), Orders(station)):
        part.add_to(app)

    @app.get("/events", response_model=None)
    async def listen() -> Response:
        return StreamingResponse(station.events.listen(), media_type="text/event-stream")

    @app.exception_handler(DownlinkError)
    async def failed(request: Request, error: DownlinkError) -> Response:
        status = {NotHere: 404, NotAllowed: 403, SearchError: 400}.get(type(error), 400)
        return station.error(request, status, str(error))

    @app.exception_handler(404)
    async def missing(request: Request, _: Exception) -> Response:
        return station.error(request, 404, f"There is nothing at {request.url.path[:200]}")

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.url.hostname or ""
        if settings.hosts and host not in settings.hosts:
            names = ", ".join(sorted(settings.hosts))
            return PlainTextResponse(f"this page answers to {names}, not to {host[:80]}; see --page-host\n", 421)
        began = time.perf_counter()
        response = await answer(request)
        for name, value in SECURITY.items():
            response.headers.setdefault(name, value)
        response.headers["Server-Timing"] = f"app;dur={1000 * (time.perf_counter() - began):.1f}"
        if request.url.path.startswith("/static/"):
            response.headers["Cache-Control"] = FOR_EVER if request.query_params.get("v") == __version__ else "no-cache"
        else:
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    return app
