"""What an operator may do through the page: sign in and out, and ask nodes for something (`decoder_node.page.actions`).

Every change needs a session and its second secret (`decoder_node.page.operator`). Refused, with `NotAllowed`: anybody
else, and forms of more than `BODY_BYTES_MAX` bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from decoder_node.page import actions
from decoder_node.page.operator import COOKIE, FIELD, HEADER, SESSION_S, NotAllowed, Session
from decoder_node.page.station import NotHere, Station

BODY_BYTES_MAX: Final = 16 * 1024


class Orders:
    """The forms of one station."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._operators = station.operators

    def add_to(self, app: FastAPI) -> None:
        """Hang everything in."""
        app.get("/operator", response_model=None)(self.sign_in_form)
        app.post("/operator", response_model=None)(self.sign_in)
        app.post("/operator/leave", response_model=None)(self.sign_out)
        app.post("/scenes/{scene_id}/{what}", response_model=None)(self.act)
        app.post("/nodes/{what}", response_model=None)(self.act_on_node)

    def sign_in_form(self, request: Request) -> Response:
        """Where the token is typed in."""
        return self._station.html(request, "operator.html", problem="")

    async def sign_in(self, request: Request) -> Response:
        """A session for the right token."""
        form = await _form(request)
        origin = request.headers.get("origin")
        try:
            if origin is not None and origin.partition("://")[2] != request.headers.get("host", ""):
                raise NotAllowed("sign in on the page itself")
            session = self._operators.enter(form.get("token", ""))
        except NotAllowed as error:
            return self._station.html(request, "operator.html", status=403, problem=str(error))
        answer = RedirectResponse("/asks", 303)
        answer.set_cookie(
            COOKIE, session.secret, max_age=SESSION_S, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End it."""
        self._operators.leave(self._check(request, await _form(request)))
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
        await run_in_threadpool(self._station.find, scene_id)
        await run_in_threadpool(doing, self._station.archive, scene_id, form)
        if "hx-request" in request.headers:
            asks = await run_in_threadpool(self._station.shelf.asks, scene_id)
            return self._station.html(request, "_asked.html", asks=asks)
        return RedirectResponse(f"/scenes/{scene_id}", 303)

    async def act_on_node(self, request: Request, what: str) -> Response:
        """Ask a node for something."""
        form = await _form(request)
        self._check(request, form)
        if what == "install":
            await run_in_threadpool(actions.install, self._station.archive, self._station.settings.models, form)
        elif what == "rollback":
            await run_in_threadpool(actions.rollback, self._station.archive, form)
        else:
            raise NotHere(f"there is nothing to do called {what[:40]!r}")
        return RedirectResponse("/asks", 303)

    def _check(self, request: Request, form: Mapping[str, str]) -> Session:
        csrf = request.headers.get(HEADER) or form.get(FIELD, "")
        headers = request.headers
        return self._operators.check(request.cookies, headers.get("origin"), headers.get("host", ""), csrf)


async def _form(request: Request) -> dict[str, str]:
    """A form's fields, the last of each name."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise NotAllowed(f"a form of more than {BODY_BYTES_MAX} bytes")
    fields = parse_qs(body.decode(errors="replace"), keep_blank_values=True, max_num_fields=64)
    return {name: values[-1] for name, values in fields.items()}
