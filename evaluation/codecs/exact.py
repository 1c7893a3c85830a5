"""This project's exact method as the nodes run it: scene -> `.dl` file -> scene, without any model.

The setting is the D of `encoder-node encode --max-error`: no valid sample may be off by more, 0 is lossless. The bytes
counted are the file's, with manifest, masks, side information and checksums.
"""

from __future__ import annotations

import io
from typing import ClassVar

from downlink.exact_table import exact_tables
from encoder_node.exact import encode_exact
from encoder_node.target import Target
from evaluation.codecs.base import Half, Image, Pixels
from evaluation.codecs.streams import InMemory, decode_stream


class Exact:
    """Plain prediction and rANS, in numpy: one thread whatever is allowed."""

    name: ClassVar[str] = "exact"
    unit: ClassVar[str] = "largest error allowed in DN"

    def load(self, half: Half) -> None:
        """There is no model; the tables of the entropy coder are made once."""
        exact_tables()

    def encode(self, image: Image, setting: float) -> bytes:
        file = io.BytesIO()
        target = Target(max_error=int(setting))
        with encode_exact(InMemory(image), int(setting), target.settings) as encoded:
            encoded.write(file)
        return file.getvalue()

    def decode(self, payload: bytes) -> list[Pixels]:
        return decode_stream(payload, None)
