"""A scene through both real nodes, in memory: what the released bundle makes of it, and the bytes of its stream."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink.bundle import find
from downlink.scene import Band, Grid, Scene
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
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
    limit = np.iinfo(dtype)
    whole: NDArray[Any] = np.clip(np.rint(pixels), limit.min, limit.max).astype(dtype)
    bands, height, width = whole.shape
    scene = Scene(name="lab", grids=(Grid(height, width, dtype, (Band(),) * bands),))
    encoder, decoder = ends(model)
    with encode_scene(ArraySource(scene, whole), encoder, target) as encoded:
        rows = [row.pixels for row in decode_rows(encoded.manifest, encoded.chunk, decoder)]
        return encoded.stream_bytes, np.concatenate(rows, axis=1).astype(np.float32)
