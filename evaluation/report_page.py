"""A report as one HTML file: tables and figures from `evaluation.report`'s figures, nothing fetched from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import jinja2

from downlink import __version__
from evaluation import figures

TEMPLATE: Final = Path(__file__).with_name("report.html.j2")
_EQUAL: Final = (
    ("psnr_db", "PSNR", "dB", 2, 1.0, True),
    ("ssim", "SSIM", "", 4, 1.0, True),
    ("ms_ssim", "MS-SSIM", "", 4, 1.0, True),
    ("sam_deg", "spectral angle", "°", 2, 1.0, False),
    ("max_error", "largest error", "DN", 0, 1.0, False),
    ("ndvi_error", "NDVI error", "", 4, 1.0, False),
    ("ndwi_error", "NDWI error", "", 4, 1.0, False),
    ("land_cover_agreement", "same land cover", "%", 2, 100.0, True),
    ("seam_ratio", "seams", "", 2, 1.0, None),
)
_EQUAL_LEVELS: Final = (40, 45, 50)


def render(found: dict[str, Any]) -> str:
    """The whole file."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["num"] = _number
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    summary = found["summary"]
    return template.render(
        found=found,
        version=__version__,
        summary=summary,
        reference=summary.get("bd_rate_of") or None,
        svg=_figures(found),
        equal=_equal(found["equal_bits"]),
        bd=_bd(summary),
        bounds=[one for one in found["bounds"]["summary"]["bounds"].items() if one[1]["scenes"]],
        speed=_speed(found["speed"]),
        peaks=sorted({row["peak"] for row in found["rows"] + found["bounds"]["rows"]}),
        failures=found["failures"] + found["bounds"]["failures"],
        headline=_headline(found),
        stored_bits=_stored_bits(found),
    )


BITS_OF: Final = {"uint8": 8, "uint16": 16, "int16": 16}


def _number(value: float | None, digits: int = 2, absent: str = "–") -> str:
    return absent if value is None else f"{value:,.{digits}f}"


def _stored_bits(found: dict[str, Any]) -> int | None:
    """Bits that a sample takes as it is stored, which compression ratios are against; None where scenes differ."""
    found_bits = {BITS_OF[grid["dtype"]] for one in found["scenes"].values() for grid in one["grids"]}
    return found_bits.pop() if len(found_bits) == 1 else None


def _figures(found: dict[str, Any]) -> dict[str, Any]:
    """SVG texts, already safe to be put in."""
    reference, drawn = found["summary"].get("bd_rate_of"), {}
    equal = found["equal_bits"]
    if equal and len(equal["levels"]) > 1:
        drawn["quality"] = figures.quality(equal, reference, "quality")
    if found["rows"]:
        drawn["scenes"] = figures.per_scene(found["rows"], reference, "scenes")
    for number, one in enumerate(found["bands"]):
        if one["rmse"]:
            drawn[f"bands{number}"] = figures.per_band(
                one["bands"], one["rmse"], one["reference"], "reflectance (DN / peak)", f"bands{number}"
            )
    for number, one in enumerate(found["pictures"]):
        if one["tiles"]:
            drawn[f"tiles{number}"] = figures.tiles(one["tiles"]["bits_per_pixel"], f"tiles{number}")
    measured = found["speed"] or {}
    if "1" in measured and any(one["kind"] == "lossy" for one in measured["1"]["codecs"].values()):
        drawn["speed"] = figures.speed(measured["1"], reference, "speed")
    if any(one["scenes"] for one in found["bounds"]["summary"]["bounds"].values()):
        drawn["bounded"] = figures.bounded(found["bounds"]["summary"]["bounds"], "bounded")
    return {name: jinja2.filters.do_mark_safe(text) for name, text in drawn.items()}


def _equal(equal: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Per level a table: codecs down, measures across, the best of each marked."""
    tables = []
    for level in _EQUAL_LEVELS if equal else ():
        if level not in equal["levels"]:
            continue
        at = equal["levels"].index(level)
        measures = [one for one in _EQUAL if any(codec[one[0]][at] is not None for codec in equal["codecs"].values())]
        best = {}
        for name, _, _, _, _, higher in measures:
            values = [codec[name][at] for codec in equal["codecs"].values() if codec[name][at] is not None]
            best[name] = None if higher is None or len(values) < 2 else max(values) if higher else min(values)
        rows = [
            {
                "codec": codec,
                "cells": [
                    {
                        "text": _number(None if of[name][at] is None else of[name][at] * scale, digits),
                        "best": of[name][at] is not None and of[name][at] == best[name],
                    }
                    for name, _, _, digits, scale, _ in measures
                ],
            }
            for codec, of in equal["codecs"].items()
        ]
        tables.append(
            {
                "level": level,
                "bits": equal["bits_per_sample"][at],
                "scenes": len(equal["scenes"]),
                "heads": [f"{title}{f', {unit}' if unit else ''}" for _, title, unit, *_ in measures],
                "rows": rows,
            }
        )
    return tables


def _bd(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "codec": codec,
            "percent": one["percent"],
            "scenes": one["scenes"],
            "overlap": one["overlap_db"],
            "low": min(one["percents"]) if one["percents"] else None,
            "high": max(one["percents"]) if one["percents"] else None,
            "refused": len(one["refused"]),
            "why": next(iter(one["refused"].items()), None),
        }
        for codec, one in summary["bd_rate"].items()
    ]


def _speed(speed: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One row per codec, a pair of columns per number of threads."""
    if not speed or "missing" in speed:
        return []
    counts = [key for key in speed if key.isdigit()]
    rows = []
    for name in speed[counts[0]]["codecs"]:
        each = [speed[count]["codecs"].get(name) for count in counts]
        first = each[0]
        rows.append(
            {
                "codec": name,
                "kind": first["kind"],
                "bits": first["bits_per_sample"],
                "psnr_db": first["psnr_db"],
                "runs": first["runs"],
                "each": each,
            }
        )
    return [{"counts": counts, "seconds": [speed[count]["seconds"] for count in counts], "rows": rows}]


def _headline(found: dict[str, Any]) -> list[str]:
    """What the figures say, in sentences; only what is there."""
    summary, said = found["summary"], []
    reference = summary.get("bd_rate_of")
    at = summary["bits_per_sample_at"].get("45", {})
    own = at.get(reference)
    others = {codec: bits for codec, bits in at.items() if codec != reference and bits is not None}
    if own is not None and others:
        best = min(others, key=lambda codec: others[codec])
        count = summary["scenes_at"]["45"]
        where = f"the {count} scenes that all reach it" if count > 1 else "the scene"
        said.append(
            f"At 45 dB {reference} needs {own:.3f} bits per sample{_ratio(own, found)}, {best}, the best of the "
            f"others, {others[best]:.3f}{_ratio(others[best], found)}: {_change(own, others[best])} (means over "
            f"{where})."
        )
    for bound, one in found["bounds"]["summary"]["bounds"].items():
        codecs = {codec: figures["bits_per_sample"] for codec, figures in one["codecs"].items()}
        if one["scenes"] and len(codecs) > 1:
            ours, *rest = codecs
            best = min(rest, key=lambda codec: codecs[codec])
            kind = "Lossless" if bound == "0" else f"With no sample off by more than {bound}"
            said.append(
                f"{kind}, {ours} needs {codecs[ours]:.2f} bits per sample{_ratio(codecs[ours], found)}, {best}, the "
                f"best of the others, {codecs[best]:.2f}{_ratio(codecs[best], found)}: "
                f"{_change(codecs[ours], codecs[best])}."
            )
    speed = (found["speed"] or {}).get("1")
    if speed and reference in speed["codecs"] and "j2k" in speed["codecs"]:
        against = speed["codecs"]["j2k"]
        parts = [f"{half}s {_times(against[f'{half}_ratio'])}" for half in ("encode", "decode")]
        said.append(f"On one thread, at equal PSNR, {reference} {' and '.join(parts)} the speed of OpenJPEG.")
    return said


def _ratio(bits: float, found: dict[str, Any]) -> str:
    stored = _stored_bits(found)
    return "" if stored is None or not bits else f" ({stored / bits:.3g} : 1)"


def _times(ratio: dict[str, float]) -> str:
    """A ratio of speeds with its spread, in words."""
    return f"at {ratio['median']:.2g} times ({ratio['low']:.2g} to {ratio['high']:.2g})"


def _change(ours: float, other: float) -> str:
    percent = 100 * (ours / other - 1)
    if abs(percent) < 0.5:
        return "as many"
    return f"{abs(percent):.0f} % {'fewer' if percent < 0 else 'more'}"
