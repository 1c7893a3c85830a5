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

import mimetypes
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlencode

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from decoder_node.footprint import footprint
from decoder_node.ledger import located
from decoder_node.page import actions, picture, words
from decoder_node.page.events import Events
from decoder_node.page.operator import COOKIE, FIELD, HEADER, SESSION_S, NotAllowed, Operators, Session
from decoder_node.page.plots import plots
from decoder_node.page.progress import Progress, progress_of, whole
from decoder_node.page.shelf import PAGE_SCENES, STATES, Search, SearchError, Shelf
from downlink import __version__
from downlink.errors import DownlinkError
from downlink.manifest import Manifest

SCENE_ID: Final = re.compile(r"[0-9a-f]{64}")
BODY_BYTES_MAX: Final = 16 * 1024
ZOOM_MAX: Final = 24
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
FOR_EVER: Final = "private, max-age=31536000, immutable"  # of addresses that name a version
THEMES: Final = ("light", "dark")


@dataclass(frozen=True)
class Settings:
    """How a page is started."""

    archive: Path
    hosts: frozenset[str]  # that it answers to, without port; empty: all
    models: Sequence[Path] = ()
    token: str | None = None


class NotHere(DownlinkError):
    """There is no such thing."""

    code = "not_here"


def make_app(settings: Settings) -> FastAPI:
    """The application."""
    page = _Page(settings)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        page.events.stop()

    app = FastAPI(title="Latent Downlink", openapi_url=None, docs_url=None, redoc_url=None, lifespan=life)
    app.state.page = page
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    page.add_to(app)

    @app.exception_handler(DownlinkError)
    async def failed(request: Request, error: DownlinkError) -> Response:
        status = {NotHere: 404, NotAllowed: 403, SearchError: 400}.get(type(error), 400)
        return page.error(request, status, str(error))

    @app.exception_handler(404)
    async def missing(request: Request, _: Exception) -> Response:
        return page.error(request, 404, f"There is nothing at {request.url.path[:200]}")

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


class _Page:
    """What the addresses answer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.archive = settings.archive
        self.shelf = Shelf(settings.archive)
        self.events = Events(self.shelf)
        self.operators = Operators(settings.token)
        self._templates = Environment(
            loader=PackageLoader("decoder_node.page"), autoescape=select_autoescape(default=True),
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._templates.filters |= words.FILTERS
        self._templates.globals |= {"version": __version__, "STATES": STATES}

    def add_to(self, app: FastAPI) -> None:
        """Hang everything in."""
        for path, answer in (
            ("/", self.live), ("/scenes", self.search), ("/scenes/{scene_id}", self.scene), ("/history", self.history),
            ("/asks", self.asks), ("/parts/{name}", self.part), ("/scenes/{scene_id}/parts/{name}", self.scene_part),
            ("/footprints.geojson", self.footprints), ("/scenes/{scene_id}/tiles/{z}/{x}/{y}.png", self.tile),
            ("/scenes/{scene_id}/bits/{z}/{x}/{y}.png", self.bits_tile), ("/scenes/{scene_id}/bits.png", self.bits),
            ("/scenes/{scene_id}/preview.png", self.preview), ("/scenes/{scene_id}/files/{name}", self.file),
            ("/scenes/{scene_id}/quicklook.png", self.quicklook), ("/stac/{path:path}", self.stac),
        ):  # fmt: skip
            app.get(path, response_model=None)(answer)
        app.get("/events", response_model=None)(self.listen)
        app.get("/operator", response_model=None)(self.sign_in_form)
        app.post("/operator", response_model=None)(self.sign_in)
        app.post("/operator/leave", response_model=None)(self.sign_out)
        app.post("/scenes/{scene_id}/{what}", response_model=None)(self.act)
        app.post("/nodes/{what}", response_model=None)(self.act_on_node)

    # --- pages ---

    def live(self, request: Request) -> Response:
        """What comes down now."""
        rows, total = self.shelf.search(Search(), limit=12)
        return self._html(
            request, "live.html", **self._nodes(), **self._flight(), rows=rows, total=total, counts=self.shelf.counts()
        )

    def search(self, request: Request) -> Response:
        """Scenes that match."""
        return self._html(request, "scenes.html", names=self.shelf.names(), **self._found(request))

    def scene(self, request: Request, scene_id: str) -> Response:
        """One scene."""
        return self._html(request, "scene.html", **self._scene(request, scene_id))

    def history(self, request: Request) -> Response:
        """What was."""
        days = request.query_params.get("days", "1")
        span = {"1": 86400.0, "7": 7 * 86400.0, "30": 30 * 86400.0}.get(days)
        if span is None:
            raise SearchError(f"{days[:20]!r} days; there are 1, 7 and 30")
        return self._html(request, "history.html", days=days, **plots(self.shelf, time.time(), span))

    def asks(self, request: Request) -> Response:
        """What was asked of the nodes."""
        nodes = self.shelf.nodes()
        known = list(actions.bundles(self.settings.models)) if self._session(request) else []
        return self._html(request, "asks.html", asks=self.shelf.asks(), nodes=nodes, bundles=known)

    def sign_in_form(self, request: Request) -> Response:
        return self._html(request, "operator.html", problem="")

    def part(self, request: Request, name: str) -> Response:
        """A piece of a page, to replace the one that is shown."""
        match name:
            case "nodes":
                return self._html(request, "_nodes.html", **self._nodes())
            case "flight":
                return self._html(request, "_flight.html", **self._flight())
            case "latest":
                rows, total = self.shelf.search(Search(), limit=12)
                return self._html(request, "_latest.html", rows=rows, total=total)
            case "counts":
                return self._html(request, "_counts.html", counts=self.shelf.counts())
            case "found":
                return self._html(request, "_found.html", **self._found(request))
            case "asks":
                return self._html(request, "_asks.html", asks=self.shelf.asks())
        raise NotHere(f"there is no part {name[:80]!r}")

    def scene_part(self, request: Request, scene_id: str, name: str) -> Response:
        """A piece of a scene's page."""
        if name not in ("facts", "asked"):
            raise NotHere(f"there is no part {name[:80]!r}")
        return self._html(request, f"_{name}.html", **self._scene(request, scene_id))

    # --- data ---

    def footprints(self, request: Request) -> Response:
        """Where scenes are; when all are wanted, those too of which nothing was decoded yet."""
        wanted = _search(request)
        coming = []
        if wanted == Search():
            for entry, manifest in self.shelf.coming():
                place = None if entry.result else _outline(entry.scene_id, manifest)
                if place is not None:
                    facts = {"id": entry.scene_id, "name": entry.name, "state": entry.state, "v": 0, "box": place[1]}
                    coming.append({"type": "Feature", "geometry": place[0], "properties": facts})
        return Response(self.shelf.outlines(wanted, coming), media_type="application/geo+json")

    def tile(self, request: Request, scene_id: str, z: str, x: str, y: str) -> Response:
        """A piece of a scene on the map."""
        row, entry, manifest, _ = self._find(scene_id)
        cogs = [located(self.archive, path) for path in entry.result.get("assets", ())]
        if not cogs:
            return Response(status_code=204)
        query = request.query_params
        default = picture.composites(manifest.scene)[0].look.text
        look = picture.parse_look(query.get("bands") or default, query.get("stretch", "2,98"), manifest.scene)
        return _png(picture.tile(cogs, look, row.version, *_place(x, y, z)), query)

    def preview(self, request: Request, scene_id: str) -> Response:
        """All of a scene."""
        row, entry, manifest, _ = self._find(scene_id)
        cogs = [located(self.archive, path) for path in entry.result.get("assets", ())]
        if not cogs:
            raise NotHere("nothing of this scene has been decoded yet")
        query = request.query_params
        default = picture.composites(manifest.scene)[0].look.text
        look = picture.parse_look(query.get("bands") or default, query.get("stretch", "2,98"), manifest.scene)
        return _png(picture.preview(cogs, look, row.version), query)

    def bits_tile(self, request: Request, scene_id: str, z: str, x: str, y: str) -> Response:
        """Where the bits went, on the map."""
        bits, version, cog = self._bits(scene_id)
        return _png(picture.heat_tile(bits, version, cog, *_place(x, y, z)), request.query_params)

    def bits(self, request: Request, scene_id: str) -> Response:
        """Where the bits went."""
        bits, version, _ = self._bits(scene_id)
        return _png(picture.heat(bits, version), request.query_params)

    def quicklook(self, request: Request, scene_id: str) -> Response:
        """The small picture that was made when the scene was decoded."""
        _, entry, _, _ = self._find(scene_id)
        if "quicklook" not in entry.result:
            raise NotHere("nothing of this scene has been decoded yet")
        headers = {"Cache-Control": FOR_EVER} if "v" in request.query_params else {}
        return _sent(located(self.archive, entry.result["quicklook"]), headers=headers)

    def file(self, scene_id: str, name: str) -> Response:
        """A file of a scene, to be taken along. Parts of it may be asked for (Range)."""
        path = self._files(scene_id).get(name)
        if path is None:
            raise NotHere(f"the scene has no file {name[:80]!r}")
        return _sent(path, name)

    def stac(self, path: str) -> Response:
        """The catalogue's files, and those that its items name."""
        if path in ("catalog.json", "scenes/collection.json"):
            wanted = str(self.archive / path)
        elif found := re.fullmatch(r"scenes/([0-9a-f]{64})/([\w.-]+)|streams/([0-9a-f]{64})\.dl", path):
            scene_id = found[1] or found[3]
            wanted = self._files(scene_id).get(found[2] or f"{scene_id[:12]}.dl", "")
        else:
            wanted = ""
        if not wanted:
            raise NotHere(f"the catalogue has no {path[:200]!r}")
        return _sent(
            wanted, media="application/geo+json" if re.match(r"scenes/\w+/", path) and wanted.endswith("json") else None
        )

    async def listen(self, request: Request) -> Response:
        """What is new, as it happens."""
        return StreamingResponse(self.events.listen(), media_type="text/event-stream")

    # --- actions ---

    async def sign_in(self, request: Request) -> Response:
        form = await _form(request)
        origin = request.headers.get("origin")
        try:
            if origin is not None and origin.partition("://")[2] != request.headers.get("host", ""):
                raise NotAllowed("sign in on the page itself")
            session = self.operators.enter(form.get("token", ""))
        except NotAllowed as error:
            return self._html(request, "operator.html", status=403, problem=str(error))
        answer = RedirectResponse("/asks", 303)
        answer.set_cookie(
            COOKIE, session.secret, max_age=SESSION_S, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    async def sign_out(self, request: Request) -> Response:
        self.operators.leave(self._check(request, await _form(request)))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE)
        return answer

    async def act(self, request: Request, scene_id: str, what: str) -> Response:
        """Ask the scene's node for something."""
        form = await _form(request)
        self._check(request, form)
        doing = {"refine": actions.refine, "priority": actions.priority, "cancel": actions.cancel}.get(what)
        if doing is None:
            raise NotHere(f"there is nothing to do called {what[:40]!r}")
        await run_in_threadpool(self._find, scene_id)
        await run_in_threadpool(doing, self.archive, scene_id, form)
        if "hx-request" in request.headers:
            facts = await run_in_threadpool(self._scene, request, scene_id)
            return self._html(request, "_asked.html", **facts)
        return RedirectResponse(f"/scenes/{scene_id}", 303)

    async def act_on_node(self, request: Request, what: str) -> Response:
        """Ask a node for something."""
        form = await _form(request)
        self._check(request, form)
        if what == "install":
            await run_in_threadpool(actions.install, self.archive, self.settings.models, form)
        elif what == "rollback":
            await run_in_threadpool(actions.rollback, self.archive, form)
        else:
            raise NotHere(f"there is nothing to do called {what[:40]!r}")
        return RedirectResponse("/asks", 303)

    def _check(self, request: Request, form: Mapping[str, str]) -> Session:
        csrf = request.headers.get(HEADER) or form.get(FIELD, "")
        headers = request.headers
        return self.operators.check(request.cookies, headers.get("origin"), headers.get("host", ""), csrf)

    def _session(self, request: Request) -> Session | None:
        return self.operators.session(request.cookies)

    # --- what templates are given ---

    def _nodes(self) -> dict[str, Any]:
        return {"nodes": self.shelf.nodes()}

    def _flight(self) -> dict[str, Any]:
        coming = []
        with self.shelf.ledger() as ledger:
            for entry, manifest in self.shelf.coming():
                there = ledger.committed(entry.scene_id)
                if entry.durable_at is not None:
                    coming.append((entry, manifest, whole(manifest)))
                else:
                    coming.append((entry, manifest, progress_of(self.archive, entry.scene_id, manifest, there)))
        return {"coming": coming}

    def _found(self, request: Request) -> dict[str, Any]:
        wanted, problem = _search(request), ""
        offset = int(text) if (text := request.query_params.get("from", "0")).isdecimal() and len(text) < 9 else 0
        try:
            rows, total = self.shelf.search(wanted, offset)
        except SearchError as error:
            rows, total, problem = [], 0, str(error)
        query = {key: value for key, value in request.query_params.items() if key != "from" and value}
        return {
            "wanted": wanted, "rows": rows, "total": total, "offset": offset, "problem": problem, "page": PAGE_SCENES,
            "query": urlencode(query), "node": request.query_params.get("node", ""),
        }  # fmt: skip

    def _find(self, scene_id: str) -> Any:
        found = self.shelf.scene(scene_id) if SCENE_ID.fullmatch(scene_id) else None
        if found is None:
            raise NotHere(f"there is no scene {scene_id[:80]!r}")
        return found

    def _scene(self, request: Request, scene_id: str) -> dict[str, Any]:
        row, entry, manifest, outline = self._find(scene_id)
        progress: Progress = whole(manifest)
        if entry.durable_at is None:
            with self.shelf.ledger() as ledger:
                there = ledger.committed(scene_id)
            progress = progress_of(self.archive, scene_id, manifest, there)
        scene = manifest.scene
        bits = located(self.archive, entry.result["bits"]) if "bits" in entry.result else None
        return {
            "row": row, "entry": entry, "manifest": manifest, "scene": scene, "progress": progress, "outline": outline,
            "composites": picture.composites(scene), "files": self._files(scene_id), "asks": self.shelf.asks(scene_id),
            "bands": [
                (f"{number}.{band}", picture.band_name(grid, band))
                for number, grid in enumerate(scene.grids)
                for band in range(len(grid.bands))
            ],
            "heat": picture.heat_range(bits, row.version) if bits is not None else None,
        }  # fmt: skip

    def _bits(self, scene_id: str) -> tuple[str, int, str]:
        """The raster of bits, its version, and the scene's first grid."""
        row, entry, _, _ = self._find(scene_id)
        if "bits" not in entry.result:
            raise NotHere("nothing of this scene has been decoded yet")
        bits, cog = (located(self.archive, path) for path in (entry.result["bits"], entry.result["assets"][0]))
        return bits, row.version, cog

    def _files(self, scene_id: str) -> dict[str, str]:
        """What there is of a scene, by name."""
        _, entry, _, _ = self._find(scene_id)
        result = entry.result
        paths = [*result.get("assets", ()), *(result[key] for key in ("item", "quicklook", "bits") if key in result)]
        files = {Path(path).name: located(self.archive, path) for path in paths}
        if entry.durable_at is not None:
            files[f"{scene_id[:12]}.dl"] = str(self.archive / "streams" / f"{scene_id}.dl")
        return files

    def _html(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        session = self._session(request)
        theme = request.cookies.get("theme", "")
        text = self._templates.get_template(template).render(
            path=request.url.path, csrf=session.csrf if session else "", operator=session is not None,
            may_act=self.operators.possible, now=time.time(), theme=theme if theme in THEMES else "", **values,
        )  # fmt: skip
        return HTMLResponse(text, status)

    def error(self, request: Request, status: int, message: str) -> Response:
        """What went wrong: as a page, or, for a piece of one, as a sentence."""
        if "hx-request" in request.headers or "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(message + "\n", status)
        phrase = HTTPStatus(status).phrase
        return self._html(request, "error.html", status=status, phrase=phrase, message=message)


_OUTLINES: dict[str, tuple[dict[str, Any], list[float]] | None] = {}  # of scenes on their way, by id


def _outline(scene_id: str, manifest: Manifest) -> tuple[dict[str, Any], list[float]] | None:
    """Where a scene on its way will be; None: nobody knows. Found once."""
    if scene_id not in _OUTLINES:
        geometry, box = footprint(manifest.scene)
        if len(_OUTLINES) > 1000:
            _OUTLINES.clear()
        _OUTLINES[scene_id] = None if geometry is None or box is None else (geometry, box)
    return _OUTLINES[scene_id]


def _search(request: Request) -> Search:
    query = {key: value[:200] for key, value in request.query_params.items()}
    node = query.get("node") or None
    return Search(
        text=query.get("q", "").strip(),
        node="" if node == "-" else node,
        state=query.get("state", ""),
        since=query.get("since", ""),
        until=query.get("until", ""),
        place=query.get("place", "").strip(),
    )


async def _form(request: Request) -> dict[str, str]:
    """A form's fields, the last of each name."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise NotAllowed(f"a form of more than {BODY_BYTES_MAX} bytes")
    fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=64)
    return {name: values[-1] for name, values in fields.items()}


def _place(x: str, y: str, z: str) -> tuple[int, int, int]:
    if not all(text.isdecimal() and len(text) < 10 for text in (x, y, z)) or int(z) > ZOOM_MAX:
        raise NotHere(f"there is no tile {z[:10]}/{x[:10]}/{y[:10]}")
    zoom = int(z)
    if max(int(x), int(y)) >= 2**zoom:
        raise NotHere(f"there is no tile {zoom}/{x}/{y}")
    return int(x), int(y), zoom


def _sent(
    path: str, name: str | None = None, media: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """A file of ours, or of a store."""
    if "://" not in path:
        if not Path(path).is_file():
            raise NotHere(f"{Path(path).name} is not there any more")
        return FileResponse(path, filename=name, media_type=media, headers=headers)
    import fsspec

    def parts() -> Iterator[bytes]:
        with fsspec.open(path, "rb") as file:
            while part := file.read(1 << 20):
                yield part

    media = media or mimetypes.guess_type(path)[0] or "application/octet-stream"
    shown = {**(headers or {}), **({"Content-Disposition": f'attachment; filename="{name}"'} if name else {})}
    return StreamingResponse(parts(), media_type=media, headers=shown)


def _png(content: bytes | None, query: Mapping[str, str]) -> Response:
    headers = {"Cache-Control": FOR_EVER} if "v" in query else {}
    if content is None:
        return Response(status_code=204, headers=headers)
    return Response(content, media_type="image/png", headers=headers)
