"""The ground side: link -> ledger -> symbols -> scene -> GeoTIFF and catalogue.

>>> import decoder_node
>>> scene = decoder_node.open_scene("archive/scenes/3fa94c…")  # an xarray Dataset, read lazily   # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

__all__ = ["open_scene"]


def __getattr__(name: str) -> Any:
    """`open_scene`, imported when it is asked for: it needs xarray, which nothing else here does."""
    if name != "open_scene":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from decoder_node.cube import open_scene
    except ImportError as error:
        advice = "pip install 'latent-downlink[cube]' brings it"
        raise ImportError(f"open_scene needs {error.name}; {advice}") from error
    return open_scene
