"""Scenes through both real nodes, in memory: what the released bundle makes of them, and the bytes of their streams."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink.bundle import find
from downlink.reference import Reference
from downlink.scene import Band, Grid, Scene
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.reference_outbox import DEPTH_MAX
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from training.lab.places import Pixels


@cache
def ends(model: str = "universal") -> tuple[PlaneEncoder, PlaneDecoder]:
    """Both halves of a bundle, loaded once."""
    bundle = find(model)
    return PlaneEncoder(bundle), PlaneDecoder(bundle)


def through(
    pixels: Pixels, target: Target, model: str = "universal", dtype: Literal["uint16", "int16"] = "uint16"
) -> tuple[int, Pixels]:
    """(bytes of the `.dl` file, decoded pixels) of a scene (bands, height, width) in DN."""
    encoder, decoder = ends(model)
    with encode_scene(_source(pixels, dtype), encoder, target) as encoded:
        rows = [row.pixels for row in decode_rows(encoded.manifest, encoded.chunk, decoder)]
        return encoded.stream_bytes, np.concatenate(rows, axis=1).astype(np.float32)


def series_through(series: Pixels, target: Target, model: str = "universal") -> list[int]:
    """Bytes of the `.dl` files of scenes (days, bands, height, width), each coded against the one before where that is
    smaller, as `encoder-node submit --reference last` does it."""
    encoder, _ = ends(model)
    sizes: list[int] = []
    last: Reference | None = None
    with ExitStack() as streams:  # a reference is read from its stream
        for pixels in series:
            encoded = streams.enter_context(encode_scene(_source(pixels), encoder, target, reference=last))
            sizes.append(encoded.stream_bytes)
            before = last if encoded.manifest.reference else None
            last = Reference(encoded.scene_id, encoded.manifest, encoded.chunk, encoder.codec, before)
            if last.depth > DEPTH_MAX:
                last = None
    return sizes


def _source(pixels: Pixels, dtype: Literal["uint16", "int16"] = "uint16") -> ArraySource:
    limit = np.iinfo(dtype)
    whole: NDArray[Any] = np.clip(np.rint(pixels), limit.min, limit.max).astype(dtype)
    bands, height, width = whole.shape
    return ArraySource(Scene(name="lab", grids=(Grid(height, width, dtype, (Band(),) * bands),)), whole)
