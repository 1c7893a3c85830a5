"""What all of the page's addresses share: the archive they show, who may act, and how an answer is written.

A scene is named by 64 hex digits, its files by what the ledger lists of it: peers' words become paths nowhere. Refused,
with `NotHere`: scenes and files that the ledger does not know.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from decoder_node.ledger import Entry, located
from decoder_node.page import words
from decoder_node.page.events import Events
from decoder_node.page.operator import Operators, Session
from decoder_node.page.shelf import STATES, Row, Shelf
from downlink import __version__
from downlink.errors import DownlinkError
from downlink.manifest import Manifest

SCENE_ID: Final = re.compile(r"[0-9a-f]{64}")
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


class Station:
    """One archive, looked at."""

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

    def find(self, scene_id: str) -> tuple[Row, Entry, Manifest, str | None]:
        """As `Shelf.scene`. Raises `NotHere`."""
        found = self.shelf.scene(scene_id) if SCENE_ID.fullmatch(scene_id) else None
        if found is None:
            raise NotHere(f"there is no scene {scene_id[:80]!r}")
        return found

    def files(self, scene_id: str) -> dict[str, str]:
        """What there is of a scene, by name."""
        _, entry, _, _ = self.find(scene_id)
        result = entry.result
        kinds = ("item", "quicklook", "bits", "cover")
        paths = [
            *result.get("assets", ()),
            *(result[key] for key in kinds if key in result),
            *result.get("products", ()),
        ]
        files = {Path(path).name: located(self.archive, path) for path in paths}
        if entry.durable_at is not None:
            files[f"{scene_id[:12]}.dl"] = str(self.archive / "streams" / f"{scene_id}.dl")
        return files

    def session(self, request: Request) -> Session | None:
        """Whose request this is; None: nobody's."""
        return self.operators.session(request.cookies)

    def html(self, request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A template as an answer."""
        session = self.session(request)
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
        return self.html(request, "error.html", status, code=status, phrase=phrase, message=message)
