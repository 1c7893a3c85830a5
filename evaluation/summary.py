"""What all rows together say: bits per sample at a PSNR, BD-rates and speeds.

Bits at a PSNR are the mean over scenes, each scene counting the same, and only over the scenes on which **all** codecs
reach that PSNR: means over different scenes must not be compared. `scenes_at` says how many those are. A codec that
reaches it on fewer than half of the scenes has no figure, and is not allowed to take scenes from the others.
A BD-rate is taken per scene and averaged on the logarithm of the ratio. Speeds are all samples over all seconds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from evaluation.bdrate import Curve, Delta, NoDelta, delta, mean_percent

LEVELS_DB = (40, 45, 50)

Row = dict[str, Any]


def curves(rows: Iterable[Row]) -> dict[str, dict[str, Curve]]:
    """codec -> scene -> curve, in the order of the rows."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        scenes = points.setdefault(row["codec"], {})
        scenes.setdefault(row["scene"], []).append((row["bits_per_sample"], _psnr(row)))
    return {codec: {scene: Curve(found) for scene, found in scenes.items()} for codec, scenes in points.items()}


def _psnr(row: Row) -> float:
    """A lossless result has no PSNR: infinite, which curves leave out."""
    return math.inf if row["psnr_db"] is None else float(row["psnr_db"])


def summarise(rows: Sequence[Row], reference: str) -> dict[str, Any]:
    """`reference` is the codec whose BD-rate against each other codec is stated: below 0 it needs fewer bits."""
    by_codec = curves(rows)
    scenes = list(dict.fromkeys(row["scene"] for row in rows))
    bits_at: dict[str, dict[str, float | None]] = {}
    scenes_at: dict[str, int] = {}
    per_scene: dict[str, dict[str, dict[str, float | None]]] = {}
    for level in LEVELS_DB:
        key = str(level)
        found = {
            codec: {scene: of_codec[scene].bits_at(level) if scene in of_codec else None for scene in scenes}
            for codec, of_codec in by_codec.items()
        }
        reaching = [
            codec for codec, bits in found.items() if 2 * sum(b is not None for b in bits.values()) >= len(scenes)
        ]
        common = [scene for scene in scenes if all(found[codec][scene] is not None for codec in reaching)]
        common = common if reaching else []
        scenes_at[key] = len(common)
        bits_at[key] = {
            codec: statistics.fmean(bits[scene] or 0.0 for scene in common) if common and codec in reaching else None
            for codec, bits in found.items()
        }
        per_scene[key] = {scene: {codec: found[codec][scene] for codec in found} for scene in scenes}
    bd = {
        codec: _bd(by_codec.get(reference, {}), of_codec) for codec, of_codec in by_codec.items() if codec != reference
    }
    return {
        "scenes": len(scenes),
        "bits_per_sample_at": bits_at,
        "scenes_at": scenes_at,
        "bd_rate_of": reference,
        "bd_rate_percent": {codec: found["percent"] for codec, found in bd.items()},
        "bd_rate": bd,
        "codecs": {codec: speed([row for row in rows if row["codec"] == codec]) for codec in by_codec},
        "bits_per_sample_at_per_scene": per_scene,
    }


def _bd(tests: dict[str, Curve], anchors: dict[str, Curve]) -> dict[str, Any]:
    """BD-rate of one codec against an anchor over their common scenes, its overlap, and what was refused."""
    found: list[Delta] = []
    refused: dict[str, str] = {}
    for scene, test in tests.items():
        if scene not in anchors:
            continue
        try:
            found.append(delta(anchors[scene], test))
        except NoDelta as error:
            refused[scene] = str(error)
    return {
        "percent": mean_percent(one.percent for one in found) if found else None,
        "percents": [one.percent for one in found],
        "scenes": len(found),
        "overlap_db": [statistics.median(one.low for one in found), statistics.median(one.high for one in found)]
        if found
        else None,
        "refused": refused,
    }


def speed(rows: Sequence[Row]) -> dict[str, Any]:
    """Speeds and memory of a codec over these rows."""
    samples = sum(row["samples"] for row in rows)
    return {
        "rows": len(rows),
        "encode_msamples_per_s": samples / 1e6 / max(sum(row["encode_s"] for row in rows), 1e-9),
        "decode_msamples_per_s": samples / 1e6 / max(sum(row["decode_s"] for row in rows), 1e-9),
        "peak_rss_mb": max(row["peak_rss_mb"] for row in rows),
    }
