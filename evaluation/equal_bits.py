"""Codecs at equal bits: what each makes of a scene with exactly the bits that the reference needs for a PSNR.

For every scene and level (a PSNR of the reference) the reference's bits per sample are looked up on its curve, and
every measure of every codec at those bits on its own (pchip over the logarithm of the bits, between measured settings,
never beyond them). Means are over one fixed set of scenes, each counting the same: those on which the reference reaches
all the levels. A codec that cannot be had at a scene's bits has no figure at that level: a mean over other scenes would
not compare.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from scipy.interpolate import PchipInterpolator

from evaluation.bdrate import Curve
from evaluation.summary import Row, curves

MEASURES: Final = (
    "psnr_db", "ssim", "ms_ssim", "sam_deg", "max_error", "ndvi_error", "ndwi_error", "land_cover_agreement",
    "seam_ratio",
)  # fmt: skip
LEVELS_DB: Final = tuple(range(36, 57))
SHARE_MIN: Final = 0.5
"""Of the scenes that the widest range of levels must be reached on."""


def range_of(tests: Iterable[Curve]) -> tuple[int, ...]:
    """The longest run of levels that one and the same half of the scenes, at least, reaches; () if there is none."""
    found: tuple[int, ...] = ()
    several = list(tests)
    for low in range(len(LEVELS_DB)):
        for high in range(low + 1, len(LEVELS_DB) + 1):
            levels = LEVELS_DB[low:high]
            reaching = sum(curve.covers(levels[0]) and curve.covers(levels[-1]) for curve in several)
            if reaching >= SHARE_MIN * len(several) and reaching and len(levels) > len(found):
                found = levels
    return found


def at_equal_bits(rows: Sequence[Row], reference: str, levels: Sequence[float] | None = None) -> dict[str, Any]:
    """`{"levels", "scenes", "bits_per_sample": [per level], "codecs": {codec: {measure: [per level]}}}`; with `levels`
    none, those of `range_of`."""
    tests = curves(rows).get(reference, {})
    chosen = tuple(range_of(tests.values())) if levels is None else tuple(levels)
    scenes = [
        scene for scene, curve in tests.items() if chosen and curve.covers(chosen[0]) and curve.covers(chosen[-1])
    ]
    bits = {scene: [tests[scene].bits_at(level) or math.nan for level in chosen] for scene in scenes}
    by_codec: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        by_codec.setdefault(row["codec"], {}).setdefault(row["scene"], []).append(row)
    return {
        "levels": list(chosen),
        "scenes": scenes,
        "bits_per_sample": [statistics.fmean(bits[scene][at] for scene in scenes) for at in range(len(chosen))]
        if scenes
        else [],
        "codecs": {
            codec: {measure: _means(of_codec, measure, bits, len(chosen)) for measure in MEASURES}
            for codec, of_codec in by_codec.items()
        },
    }


def _means(
    of_codec: dict[str, list[Row]], measure: str, bits: dict[str, list[float]], count: int
) -> list[float | None]:
    """One mean per level. Scenes on which the measure does not exist for anybody (a single tile has no seams) do not
    count; scenes that the codec has no setting for take its figure away."""
    sums: list[list[float | None]] = [[] for _ in range(count)]
    for scene, wanted in bits.items():
        rows = of_codec.get(scene, [])
        if rows and all(row.get(measure) is None for row in rows):
            continue
        for at, value in enumerate(values_at(rows, measure, wanted)):
            sums[at].append(value)
    return [
        statistics.fmean(v for v in found if v is not None) if found and None not in found else None for found in sums
    ]


def values_at(rows: Sequence[Row], measure: str, bits: Sequence[float]) -> list[float | None]:
    """A measure of one codec on one scene at these bits per sample; None outside of what was measured."""
    points: dict[float, float] = {}
    for row in sorted(rows, key=lambda one: one["bits_per_sample"]):
        if row.get(measure) is not None:
            points[math.log(row["bits_per_sample"])] = float(row[measure])
    if len(points) < 2:
        return [None] * len(bits)
    line = PchipInterpolator(list(points), list(points.values()), extrapolate=False)
    found = line(np.log(bits))
    return [float(value) if math.isfinite(value) else None for value in found]


def bands_at(rows: Sequence[Row], bits: float) -> list[float | None] | None:
    """RMSE per band in units of the peak (reflectance), at these bits per sample."""
    usable = [row for row in rows if row["bits_per_sample"] > 0 and None not in row["rmse_per_band"]]
    if len(usable) < 2:
        return None
    count = len(usable[0]["rmse_per_band"])
    flat = [{**row, "band": [rmse / row["peak"] for rmse in row["rmse_per_band"]]} for row in usable]
    return [values_at([{**row, "one": row["band"][at]} for row in flat], "one", [bits])[0] for at in range(count)]
