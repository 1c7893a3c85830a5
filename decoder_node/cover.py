"""What the encoder has seen in each tile (`downlink.cover`), as a small GeoTIFF and as facts for the catalogue.

    land cover    the number of the tile's most frequent class     255: nothing of the tile is valid
    cloud         per cent of the tile that are cloud or snow      255: likewise

A pixel is a tile of the lattice that the encoder looked at (256 px a side, less at the right and bottom edge). It was
seen on board before anything was coded, so it holds for tiles that were left there as well (`--skip-clouds`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from decoder_node.bits import write_tiles
from downlink.cover import UNKNOWN
from downlink.manifest import Manifest

COVER: Final = ".cover.tif"
"""At the end of its name in an archive."""
BANDS: Final = {"land cover": "", "cloud": "percent"}


def write_cover(path: Path, manifest: Manifest) -> Path | None:
    """The cover that a manifest states as a GeoTIFF of uint8; None where it states none."""
    cover = manifest.cover
    if cover is None:
        return None
    tiles = manifest.layout().tiles(cover.lattice)
    pixels = np.stack([cover.kinds, cover.clouds]).reshape(2, tiles.rows, tiles.cols)
    return write_tiles(path, manifest, cover.lattice, pixels, BANDS, nodata=UNKNOWN)


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """`cloud_percent` of the scene, and `land_cover`, per cent of its tiles by class: of what the manifest states."""
    facts: dict[str, Any] = {}
    percent = manifest.settings.get("cloud_percent")
    if isinstance(percent, int | float) and 0 <= percent <= 100:
        facts["cloud_percent"] = percent
    if manifest.cover is not None:
        facts["land_cover"] = manifest.cover.shares
    return facts


def described(manifest: Manifest) -> dict[str, Any]:
    """What the catalogue says of the GeoTIFF."""
    assert manifest.cover is not None
    classes = [
        {"value": number, "name": "".join(c if c.isascii() and c.isalnum() else "_" for c in name), "title": name}
        for number, name in enumerate(manifest.cover.classes)
    ]
    first, second = BANDS
    return {
        "title": "What the encoder has seen in each tile: land cover, and per cent of cloud or snow",
        "bands": [{"name": first, "classification:classes": classes}, {"name": second}],
        "data_type": "uint8",
        "nodata": UNKNOWN,
    }
