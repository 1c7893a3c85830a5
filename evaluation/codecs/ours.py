"""This project's codec as the nodes run it: scene -> `.dl` file -> scene, through both nodes' own code.

The bytes counted are the file's, with manifest, masks and checksums. The setting is the quality Q of
`encoder-node encode --quality`. Each half is loaded once, before anything is timed.
"""

from __future__ import annotations

import io
from functools import cached_property
from typing import ClassVar

from decoder_node.decoder import PlaneDecoder
from downlink import bundle
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.target import Target
from evaluation.codecs.base import Half, Image, Pixels
from evaluation.codecs.streams import InMemory, decode_stream


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
        with encode_scene(InMemory(image), self._encoder, Target(quality=setting)) as encoded:
            encoded.write(file)
        return file.getvalue()

    def decode(self, payload: bytes) -> list[Pixels]:
        return decode_stream(payload, self._decoder)
