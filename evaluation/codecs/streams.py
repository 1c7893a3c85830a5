"""Images as both nodes take and give them: pixels in memory as a source, and pixels back from a `.dl` file's bytes."""

from __future__ import annotations

import io

import numpy as np

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink.scene import Scene
from downlink.stream import StreamReader
from downlink.tile import Window
from evaluation.codecs.base import Image, Pixels


class InMemory:
    """An image as the encoder's source: what reading a file costs is no codec's matter."""

    notes: tuple[str, ...] = ()

    def __init__(self, image: Image) -> None:
        self._image = image

    @property
    def scene(self) -> Scene:
        return self._image.scene

    def read(self, grid: int, window: Window) -> Pixels:
        return self._image.grids[grid][:, *window.slices]

    def close(self) -> None:
        pass


def decode_stream(payload: bytes, decoder: PlaneDecoder | None) -> list[Pixels]:
    """The pixels of a file, one array per grid. `decoder` may be None where no grid is coded by planes."""
    reader = StreamReader(io.BytesIO(payload))
    grids = [np.empty(grid.shape, grid.dtype) for grid in reader.manifest.scene.grids]
    for row in decode_rows(reader.manifest, reader.chunk, decoder):
        grids[row.grid][:, row.row : row.row + row.pixels.shape[1]] = row.pixels
    return grids
