"""What people read: live, search, a scene, history, requests, and those pieces that replace themselves (htmx)."""

from __future__ import annotations

import time
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, Request, Response

from decoder_node.footprint import footprint
from decoder_node.ledger import located
from decoder_node.page import actions, picture
from decoder_node.page.plots import plots
from decoder_node.page.progress import Progress, progress_of, whole
from decoder_node.page.shelf import PAGE_SCENES, Search, SearchError
from decoder_node.page.station import NotHere, Station
from downlink.manifest import Manifest


class Screens:
    """The pages of one station."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._shelf = station.shelf

    def add_to(self, app: FastAPI) -> None:
        """Hang everything in."""
        for path, answer in (
            ("/", self.live), ("/scenes", self.search), ("/scenes/{scene_id}", self.scene), ("/history", self.history),
            ("/asks", self.asks), ("/parts/{name}", self.part), ("/scenes/{scene_id}/parts/{name}", self.scene_part),
            ("/footprints.geojson", self.footprints),
        ):  # fmt: skip
            app.get(path, response_model=None)(answer)

    def live(self, request: Request) -> Response:
        """What comes down now."""
        rows, total = self._shelf.search(Search(), limit=12)
        return self._station.html(
            request, "live.html", **self._nodes(), **self._flight(), rows=rows, total=total, counts=self._shelf.counts()
        )

    def search(self, request: Request) -> Response:
        """Scenes that match."""
        return self._station.html(request, "scenes.html", names=self._shelf.names(), **self._found(request))

    def scene(self, request: Request, scene_id: str) -> Response:
        """One scene."""
        return self._station.html(request, "scene.html", **self._scene(request, scene_id))

    def history(self, request: Request) -> Response:
        """What was."""
        days = request.query_params.get("days", "1")
        span = {"1": 86400.0, "7": 7 * 86400.0, "30": 30 * 86400.0}.get(days)
        if span is None:
            raise SearchError(f"{days[:20]!r} days; there are 1, 7 and 30")
        return self._station.html(request, "history.html", days=days, **plots(self._shelf, time.time(), span))

    def asks(self, request: Request) -> Response:
        """What was asked of the nodes."""
        nodes = self._shelf.nodes()
        known = list(actions.bundles(self._station.settings.models)) if self._station.session(request) else []
        return self._station.html(request, "asks.html", asks=self._shelf.asks(), nodes=nodes, bundles=known)

    def part(self, request: Request, name: str) -> Response:
        """A piece of a page, to replace the one that is shown."""
        match name:
            case "nodes":
                return self._station.html(request, "_nodes.html", **self._nodes())
            case "flight":
                return self._station.html(request, "_flight.html", **self._flight())
            case "latest":
                rows, total = self._shelf.search(Search(), limit=12)
                return self._station.html(request, "_latest.html", rows=rows, total=total)
            case "counts":
                return self._station.html(request, "_counts.html", counts=self._shelf.counts())
            case "found":
                return self._station.html(request, "_found.html", **self._found(request))
            case "asks":
                return self._station.html(request, "_asks.html", asks=self._shelf.asks())
        raise NotHere(f"there is no part {name[:80]!r}")

    def scene_part(self, request: Request, scene_id: str, name: str) -> Response:
        """A piece of a scene's page."""
        if name not in ("facts", "asked"):
            raise NotHere(f"there is no part {name[:80]!r}")
        return self._station.html(request, f"_{name}.html", **self._scene(request, scene_id))

    def footprints(self, request: Request) -> Response:
        """Where scenes are; when all are wanted, those too of which nothing was decoded yet."""
        wanted = _search(request)
        coming = []
        if wanted == Search():
            for entry, manifest in self._shelf.coming():
                place = None if entry.result else _outline(entry.scene_id, manifest)
                if place is not None:
                    facts = {"id": entry.scene_id, "name": entry.name, "state": entry.state, "v": 0, "box": place[1]}
                    coming.append({"type": "Feature", "geometry": place[0], "properties": facts})
        return Response(self._shelf.outlines(wanted, coming), media_type="application/geo+json")

    def _nodes(self) -> dict[str, Any]:
        return {"nodes": self._shelf.nodes()}

    def _flight(self) -> dict[str, Any]:
        coming = []
        with self._shelf.ledger() as ledger:
            for entry, manifest in self._shelf.coming():
                there = ledger.committed(entry.scene_id)
                if entry.durable_at is not None:
                    coming.append((entry, manifest, whole(manifest)))
                else:
                    coming.append(
                        (entry, manifest, progress_of(self._station.archive, entry.scene_id, manifest, there))
                    )
        return {"coming": coming}

    def _found(self, request: Request) -> dict[str, Any]:
        wanted, problem = _search(request), ""
        offset = int(text) if (text := request.query_params.get("from", "0")).isdecimal() and len(text) < 9 else 0
        try:
            rows, total = self._shelf.search(wanted, offset)
        except SearchError as error:
            rows, total, problem = [], 0, str(error)
        query = {key: value for key, value in request.query_params.items() if key != "from" and value}
        return {
            "wanted": wanted, "rows": rows, "total": total, "offset": offset, "problem": problem, "page": PAGE_SCENES,
            "query": urlencode(query), "node": request.query_params.get("node", ""),
        }  # fmt: skip

    def _scene(self, request: Request, scene_id: str) -> dict[str, Any]:
        row, entry, manifest, outline = self._station.find(scene_id)
        progress: Progress = whole(manifest)
        if entry.durable_at is None:
            with self._shelf.ledger() as ledger:
                there = ledger.committed(scene_id)
            progress = progress_of(self._station.archive, scene_id, manifest, there)
        scene = manifest.scene
        bits = located(self._station.archive, entry.result["bits"]) if "bits" in entry.result else None
        return {
            "row": row, "entry": entry, "manifest": manifest, "scene": scene, "progress": progress, "outline": outline,
            "composites": picture.composites(scene), "files": self._station.files(scene_id),
            "made": {PurePath(name).name: note for name, note in entry.result.get("products", {}).items()},
            "asks": self._shelf.asks(scene_id),
            "bands": [
                (f"{number}.{band}", picture.band_name(grid, band))
                for number, grid in enumerate(scene.grids)
                for band in range(len(grid.bands))
            ],
            "heat": picture.heat_range(bits, row.version) if bits is not None else None,
        }  # fmt: skip


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
