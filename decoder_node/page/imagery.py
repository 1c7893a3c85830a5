"""What a scene looks like: map tiles, previews, heat maps, the quicklook, as `decoder_node.page.picture` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request, Response

from decoder_node.ledger import located
from decoder_node.page import picture
from decoder_node.page.files import sent
from decoder_node.page.station import FOR_EVER, NotHere, Station

ZOOM_MAX: Final = 24


class Imagery:
    """The pictures of one station's scenes."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def add_to(self, app: FastAPI) -> None:
        """Hang everything in."""
        for path, answer in (
            ("tiles/{z}/{x}/{y}.png", self.tile), ("bits/{z}/{x}/{y}.png", self.bits_tile), ("bits.png", self.bits),
            ("preview.png", self.preview), ("quicklook.png", self.quicklook),
        ):  # fmt: skip
            app.get(f"/scenes/{{scene_id}}/{path}", response_model=None)(answer)

    def tile(self, request: Request, scene_id: str, z: str, x: str, y: str) -> Response:
        """A piece of a scene on the map."""
        row, entry, manifest, _ = self._station.find(scene_id)
        cogs = [located(self._station.archive, path) for path in entry.result.get("assets", ())]
        if not cogs:
            return Response(status_code=204)
        query = request.query_params
        default = picture.composites(manifest.scene)[0].look.text
        look = picture.parse_look(query.get("bands") or default, query.get("stretch", "2,98"), manifest.scene)
        return _png(picture.tile(cogs, look, row.version, *_place(x, y, z)), query)

    def preview(self, request: Request, scene_id: str) -> Response:
        """All of a scene."""
        row, entry, manifest, _ = self._station.find(scene_id)
        cogs = [located(self._station.archive, path) for path in entry.result.get("assets", ())]
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
        _, entry, _, _ = self._station.find(scene_id)
        if "quicklook" not in entry.result:
            raise NotHere("nothing of this scene has been decoded yet")
        headers = {"Cache-Control": FOR_EVER} if "v" in request.query_params else {}
        return sent(located(self._station.archive, entry.result["quicklook"]), headers=headers)

    def _bits(self, scene_id: str) -> tuple[str, int, str]:
        """The raster of bits, its version, and the scene's first grid."""
        row, entry, _, _ = self._station.find(scene_id)
        if "bits" not in entry.result:
            raise NotHere("nothing of this scene has been decoded yet")
        bits, cog = (located(self._station.archive, path) for path in (entry.result["bits"], entry.result["assets"][0]))
        return bits, row.version, cog


def _place(x: str, y: str, z: str) -> tuple[int, int, int]:
    if not all(text.isdecimal() and len(text) < 10 for text in (x, y, z)) or int(z) > ZOOM_MAX:
        raise NotHere(f"there is no tile {z[:10]}/{x[:10]}/{y[:10]}")
    zoom = int(z)
    if max(int(x), int(y)) >= 2**zoom:
        raise NotHere(f"there is no tile {zoom}/{x}/{y}")
    return int(x), int(y), zoom


def _png(content: bytes | None, query: Mapping[str, str]) -> Response:
    headers = {"Cache-Control": FOR_EVER} if "v" in query else {}
    if content is None:
        return Response(status_code=204, headers=headers)
    return Response(content, media_type="image/png", headers=headers)
