"""What may be taken along: a scene's files, and the static catalogue, as they lie. Parts may be asked for (Range)."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse, StreamingResponse

from decoder_node.page.station import NotHere, Station


class Files:
    """The files of one station."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def add_to(self, app: FastAPI) -> None:
        """Hang everything in."""
        app.get("/scenes/{scene_id}/files/{name}", response_model=None)(self.file)
        app.get("/stac/{path:path}", response_model=None)(self.stac)

    def file(self, scene_id: str, name: str) -> Response:
        """A file of a scene."""
        path = self._station.files(scene_id).get(name)
        if path is None:
            raise NotHere(f"the scene has no file {name[:80]!r}")
        return sent(path, name)

    def stac(self, path: str) -> Response:
        """The catalogue's files, and those that its items name."""
        if path in ("catalog.json", "scenes/collection.json"):
            wanted = str(self._station.archive / path)
        elif found := re.fullmatch(r"scenes/([0-9a-f]{64})/([\w.-]+)|streams/([0-9a-f]{64})\.dl", path):
            scene_id = found[1] or found[3]
            wanted = self._station.files(scene_id).get(found[2] or f"{scene_id[:12]}.dl", "")
        else:
            wanted = ""
        if not wanted:
            raise NotHere(f"the catalogue has no {path[:200]!r}")
        return sent(
            wanted, media="application/geo+json" if re.match(r"scenes/\w+/", path) and wanted.endswith("json") else None
        )


def sent(
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
