"""What rows say that were measured at bounds on the error (`downlink evaluate --max-error`): bits, and who kept them.

Means are over scenes, each counting the same, and only over the scenes that **all** codecs were measured on at that
bound. Speeds are all samples over all seconds. `best_on` counts the scenes on which a codec needs the fewest bits.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from evaluation.summary import Row, speed


def kept(row: Row) -> bool:
    """Whether a row's setting, as a bound on the error, holds for every sample of its scene."""
    return bool(row["max_error"] <= row["setting"] and not row["nodata_wrong"])


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Per bound: per codec the figures, and bits per sample by scene and codec; rows whose bound is broken."""
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    bounds = {}
    for bound in sorted({row["setting"] for row in rows}):
        scenes: dict[str, dict[str, Row]] = {}
        for row in rows:
            if row["setting"] == bound:
                scenes.setdefault(row["scene"], {})[row["codec"]] = row
        common = {scene: found for scene, found in scenes.items() if len(found) == len(codecs)}
        best = [min(found, key=lambda codec: found[codec]["bits_per_sample"]) for found in common.values()]
        bounds[f"{bound:g}"] = {
            "scenes": len(common),
            "codecs": {
                codec: {
                    "bits_per_sample": statistics.fmean(found[codec]["bits_per_sample"] for found in common.values()),
                    "max_error": max(found[codec]["max_error"] for found in common.values()),
                    "best_on": best.count(codec),
                    **speed([found[codec] for found in common.values()]),
                }
                for codec in codecs
                if common
            },
            "bits_per_sample_per_scene": {
                scene: {codec: found[codec]["bits_per_sample"] if codec in found else None for codec in codecs}
                for scene, found in scenes.items()
            },
        }
    broken = [
        {key: row[key] for key in ("scene", "codec", "setting", "max_error", "nodata_wrong")}
        for row in rows
        if not kept(row)
    ]
    return {"scenes": len({row["scene"] for row in rows}), "bounds": bounds, "broken": broken}
