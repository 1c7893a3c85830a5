"""A bundle of kind "enhance": a network that makes more of a decoded scene, on the ground.

    enhance.onnx    pixels, lost -> enhanced: (n, inputs, h, w) twice, (n, outputs, h, w), float32, in DN
    card.md

`pixels` are the decoded bands named `inputs`, `lost` is 1 where a pixel is nodata and 0 elsewhere. Whatever lies beyond
`halo` pixels does not change the answer, so a scene is done in windows. Parameters that make no sense are refused
(`BundleError`).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from downlink.errors import BundleError

KIND: Final = "enhance"
GRAPH: Final = "enhance.onnx"

_Names = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(min_length=1, max_length=64)]


class EnhanceSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle's parameters."""

    task: Literal["restore", "superresolve", "perceptual"]
    inputs: _Names
    """Names of the bands that go in, in order."""
    outputs: _Names
    """Names of the bands that come out."""
    halo: Annotated[int, Meta(ge=0, le=256)]
    """Pixels around a window that the network must see; even."""
    label: Annotated[str, Meta(max_length=400)]
    """What must stand on every product."""


def enhance_spec(kind: str, parameters: dict[str, Any]) -> EnhanceSpec:
    """Validate a bundle's kind and parameters; BundleError says what is off."""
    if kind != KIND:
        raise BundleError(f"the bundle is of kind {kind!r}, not {KIND!r}: it makes no more of a decoded scene")
    try:
        spec = msgspec.convert(parameters, EnhanceSpec)
    except msgspec.ValidationError as error:
        raise BundleError(f"the bundle's parameters are not an enhancer's: {error}; export it again") from error
    if spec.halo % 2 or not set(spec.outputs) <= set(spec.inputs):
        raise BundleError(
            f"an enhancer's halo is even and its outputs are among its inputs, not {spec.halo} and "
            f"{', '.join(spec.outputs)} of {', '.join(spec.inputs)}; export it again"
        )
    return spec
