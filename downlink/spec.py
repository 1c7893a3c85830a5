"""What a plane codec's bundle states about itself: the sizes that chunks, contexts and halos follow from.

Read from `parameters` of bundle.json and validated once; everything here is integers or tables that both ends share.
The transform, its subbands and the coding passes are the format's own (`downlink.dct`, `downlink.prior`).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from downlink.context import LEVEL_LIMIT
from downlink.dct import BLOCK
from downlink.errors import BundleError

Count = Annotated[int, Meta(ge=1, le=1024)]


class PlaneSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of a plane codec. Latent symbols of a plane tile are (64, h, w), hyper-latents (hyper_latents, h/hyper,
    w/hyper)."""

    hyper: Count
    """Latents per hyper-latent along a side."""
    hyper_latents: Count
    decoder_halo: Annotated[int, Meta(ge=0, le=16)]
    """Latents around a tile's core that the decoder must see."""
    hyper_limit: Annotated[int, Meta(ge=1, le=127)]
    """Hyper-latents lie within -hyper_limit..hyper_limit."""
    hyper_index: tuple[tuple[Annotated[int, Meta(ge=1, le=255)], ...], ...]
    """Scale index of each hyper-latent channel, per level of its plane's subband 1: (level, channel)."""
    bit_price: Annotated[float, Meta(ge=0, le=10)]
    """Squared error, in steps squared, that a saved bit is worth when the encoder refines symbols (0 = plain
    rounding)."""
    distortion: tuple[tuple[float, float], ...]
    """Rising pairs (bits per sample, decoded error / latent rounding error): what a PSNR target is steered by, measured
    at export."""

    @property
    def tile_multiple(self) -> int:
        """Pixels that a coded tile's sides are multiples of."""
        return BLOCK * self.hyper


def plane_spec(parameters: dict[str, Any]) -> PlaneSpec:
    """Validate a bundle's parameters; BundleError says which field is off."""
    try:
        spec = msgspec.convert(parameters, PlaneSpec)
    except msgspec.ValidationError as error:
        raise BundleError(f"the bundle's parameters are not a plane codec's: {error}; export it again") from error
    if len(spec.hyper_index) != LEVEL_LIMIT + 1 or any(len(row) != spec.hyper_latents for row in spec.hyper_index):
        raise BundleError(
            f"hyper_index must be {LEVEL_LIMIT + 1} levels x {spec.hyper_latents} channels; export the bundle again"
        )
    if spec.tile_multiple not in (8, 16, 32, 64, 128, 256):
        raise BundleError(
            f"coded tiles in multiples of {spec.tile_multiple} px do not fill a 256 px tile; export the bundle again"
        )
    return spec
