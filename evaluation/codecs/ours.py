"""This project's codec as the nodes run it: scene -> `.dl` file -> scene, through both nodes' own code.

The bytes counted are the file's, with manifest, masks and checksums. The setting is the quality Q of
`encoder-node encode --quality`. Each half is loaded once, before anything is timed.
"""

from __future__ import annotations

import io
from functools import cached_property
from typing import ClassVar

import numpy as np

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink import bundle
from downlink.scene import Scene
from downlink.stream import StreamReader
from downlink.tile import Window
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.target import Target
from evaluation.codecs.base import Half, Image, Pixels


class LatentDownlink:
    """A model bundle's encoder and decoder."""

    unit: ClassVar[str] = "quality"

    def __init__(self, model: str, threads: int = 1) -> None:
        found = bundle.find(model)
        self.name = found.name
        self._bundle, self._threads = found, threads

    @cached_property
    def _encoder(self) -> PlaneEncoder:
        return PlaneEncoder(self._bundle, self._threads)

    @cached_property
    def _decoder(self) -> PlaneDecoder:
        return PlaneDecoder(self._bundle, self._threads)

    def load(self, half: Half) -> None:
        _ = self._encoder if half == "encode" else self._decoder

    def encode(self, image: Image, setting: float) -> bytes:
        file = io.BytesIO()
        with encode_scene(_InMemory(image), self._encoder, Target(quality=setting)) as encoded:
            encoded.write(file)
        return file.getvalue()

    def decode(self, payload: bytes) -> list[Pixels]:
        reader = StreamReader(io.BytesIO(payload))
        grids = [np.empty(grid.shape, grid.dtype) for grid in reader.manifest.scene.grids]
        for row in decode_rows(reader.manifest, reader.chunk, self._decoder):
            grids[row.grid][:, row.row : row.row + row.pixels.shape[1]] = row.pixels
        return grids


class _InMemory:
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
