"""The tables that `downlink evaluate --max-error` prints: per bound the codecs, and the scenes if there are several."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from evaluation.table import new_table, number, print_table, show_failures

_HEADS = ("codec", "bits/\nsample", "max\nerror", "best\non", "encode\nMS/s", "decode\nMS/s", "peak\nMB")


def show(out: Console, document: dict[str, Any]) -> None:
    """Print a report of bounds."""
    summary = document["summary"]
    for bound, found in summary["bounds"].items():
        title = "Lossless" if bound == "0" else f"No sample off by more than {bound}"
        if summary["scenes"] > 1:
            print_table(out, _scenes(out, f"{title}: bits per sample", found))
        if found["scenes"]:
            print_table(out, _codecs(out, f"{title}, {found['scenes']} scene{'s' * (found['scenes'] != 1)}", found))
    for one in summary["broken"]:
        changed = f"; {one['nodata_wrong']} samples changed between data and nodata" if one["nodata_wrong"] else ""
        text = f"Broken: {one['codec']} on {one['scene']} is off by {one['max_error']} at a bound of {one['setting']:g}"
        out.print(text + changed, style="bold red", markup=False, soft_wrap=True)
    if document["rows"]:
        note = (
            "Means over the scenes on which all codecs were measured. Max error: the largest seen in any valid sample. "
            "MS/s: million samples per second. Lossless codecs are given samples rounded to the bound."
        )
        out.print(note, style="dim", markup=False, soft_wrap=True)
    show_failures(out, document["failures"])


def _codecs(out: Console, title: str, found: dict[str, Any]) -> Table:
    table = new_table(out, title, _HEADS)
    for codec, figures in found["codecs"].items():
        table.add_row(
            codec,
            number(figures["bits_per_sample"], 3),
            str(figures["max_error"]),
            str(figures["best_on"]),
            number(figures["encode_msamples_per_s"], 2),
            number(figures["decode_msamples_per_s"], 2),
            number(figures["peak_rss_mb"], 0),
        )
    return table


def _scenes(out: Console, title: str, found: dict[str, Any]) -> Table:
    table = new_table(out, title, ["scene", *found["codecs"]])
    for scene, bits in found["bits_per_sample_per_scene"].items():
        best = min(value for value in bits.values() if value is not None)
        cells = [f"[bold]{number(value, 3)}[/]" if value == best else number(value, 3) for value in bits.values()]
        table.add_row(scene.replace("[", r"\["), *cells)
    return table
