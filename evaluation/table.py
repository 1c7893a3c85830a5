"""The tables that `downlink evaluate` prints: for a person on a terminal, Markdown when piped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from evaluation.summary import LEVELS_DB, Row

_PIPED_WIDTH = 200
_FAILURES_SHOWN = 5
_WIDE = 100


def console(file: TextIO | None = None, stderr: bool = False) -> Console:
    found = Console(file=file, stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(file=file, stderr=stderr, highlight=False, width=_PIPED_WIDTH)


def show(out: Console, document: dict[str, Any], units: dict[str, str]) -> None:
    """Print a report: each setting when there is one scene, each scene when there are more, then the summary."""
    rows, summary = document["rows"], document["summary"]
    if rows:
        print_table(out, _settings(out, rows) if summary["scenes"] == 1 else _scenes(out, summary))
        print_table(out, _summary(out, summary))
        if summary["scenes"] == 1:
            meanings = "; ".join(f"{codec}: {unit}" for codec, unit in units.items())
            out.print(f"Settings of {meanings}.", style="dim", markup=False, soft_wrap=True)
        for note in _notes(rows, summary):
            out.print(note, style="dim", markup=False, soft_wrap=True)
    show_failures(out, document["failures"])


def show_failures(out: Console, failures: Sequence[dict[str, str]]) -> None:
    """Print what could not be measured."""
    for failure in failures[:_FAILURES_SHOWN]:
        text = f"Not measured: {failure['codec']} on {failure['scene']}: {failure['error']}"
        out.print(text, style="bold red", markup=False, soft_wrap=True)
    if len(failures) > _FAILURES_SHOWN:
        more = f"… and {len(failures) - _FAILURES_SHOWN} more: see failures in the JSON."
        out.print(more, style="bold red", markup=False, soft_wrap=True)


def print_table(out: Console, table: Table) -> None:
    """Print a table under its title."""
    title, table.title = str(table.title), None  # a caption inside a Markdown table would break it
    out.print(title, style="bold", markup=False)
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    lines = "\n".join(filter(None, (line.strip() for line in captured.get().splitlines())))
    out.print(f"\n{lines}\n", markup=False, soft_wrap=True)


def new_table(out: Console, title: str, names: Sequence[str]) -> Table:
    """An empty table. A line break in a name narrows the column on a terminal."""
    piped = not out.is_terminal
    table = Table(title=title, box=box.MARKDOWN if piped else box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(names):
        head = name.replace("/\n", "/").replace("\n", " ") if piped else name
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    return table


# Heading, text, and whether a narrow terminal goes without it: the JSON has everything.
_SETTING_COLUMNS: list[tuple[str, Callable[[Row], str], bool]] = [
    ("setting", lambda row: f"{row['setting']:g}", False),
    ("bytes", lambda row: f"{row['bytes']:,}", False),
    ("ratio", lambda row: f"{row['ratio']:.1f}", True),
    ("bits/\nsample", lambda row: number(row["bits_per_sample"], 4), False),
    ("PSNR\ndB", lambda row: number(row["psnr_db"], 2, "lossless"), False),
    ("max\nerror", lambda row: str(row["max_error"]), False),
    ("SAM °", lambda row: number(row["sam_deg"], 3), False),
    ("SSIM", lambda row: number(row["ssim"], 4), True),
    ("encode\ns", lambda row: number(row["encode_s"], 3), False),
    ("decode\ns", lambda row: number(row["decode_s"], 3), True),
    ("peak\nMB", lambda row: number(row["peak_rss_mb"], 0), True),
]


def _settings(out: Console, rows: Sequence[Row]) -> Table:
    columns = [(name, text) for name, text, spare in _SETTING_COLUMNS if out.width >= _WIDE or not spare]
    table = new_table(out, rows[0]["scene"], ["codec", *(name for name, _ in columns)])
    for before, row in zip([None, *rows], rows, strict=False):
        first = before is None or before["codec"] != row["codec"]
        table.add_row(row["codec"] if first or not out.is_terminal else "", *(text(row) for _, text in columns))
    return table


def _scenes(out: Console, summary: dict[str, Any]) -> Table:
    level = str(LEVELS_DB[len(LEVELS_DB) // 2])
    codecs = list(summary["codecs"])
    table = new_table(out, f"Bits per sample at {level} dB", ["scene", *codecs])
    for scene, found in summary["bits_per_sample_at_per_scene"][level].items():
        best = min((bits for bits in found.values() if bits is not None), default=None)
        cells = []
        for codec in codecs:
            text = number(found[codec], 4)
            cells.append(f"[bold]{text}[/]" if found[codec] is not None and found[codec] == best else text)
        table.add_row(scene.replace("[", r"\["), *cells)
    return table


def _summary(out: Console, summary: dict[str, Any]) -> Table:
    levels = [str(level) for level in LEVELS_DB]
    reference = summary["bd_rate_of"]
    heads = [f"b/sample\nat {level} dB\n(n={summary['scenes_at'][level]})" for level in levels]
    names = ["codec", *heads, f"BD-rate of\n{reference}", "encode\nMS/s", "decode\nMS/s", "peak\nMB"]
    table = new_table(out, f"{summary['scenes']} scene{'s' * (summary['scenes'] != 1)}", names)
    for codec, speed in summary["codecs"].items():
        found = summary["bd_rate"].get(codec)
        if found is None:
            delta = "(itself)"
        elif found["percent"] is None:
            delta = "–"
        else:
            delta = f"{found['percent']:+.1f} % (n={found['scenes']})"
        table.add_row(
            codec,
            *(number(summary["bits_per_sample_at"][level][codec], 4) for level in levels),
            delta,
            number(speed["encode_msamples_per_s"], 1),
            number(speed["decode_msamples_per_s"], 1),
            number(speed["peak_rss_mb"], 0),
        )
    return table


def _notes(rows: Sequence[Row], summary: dict[str, Any]) -> list[str]:
    peaks = " or ".join(f"{peak:g}" for peak in sorted({row["peak"] for row in rows}))
    notes = [
        f"PSNR against {peaks}, from the mean squared error over all valid samples of a scene. Bits at a PSNR: mean "
        "over the n scenes on which all codecs reach it. MS/s: million samples per second. Peak memory is the codec's "
        "process: interpreter, libraries and the scene.",
    ]
    overlaps = [
        f"{found['overlap_db'][0]:.1f} to {found['overlap_db'][1]:.1f} dB against {codec}"
        for codec, found in summary["bd_rate"].items()
        if found["overlap_db"]
    ]
    if overlaps:
        notes.append(
            f"BD-rate of {summary['bd_rate_of']}, below 0 means fewer bits; median range {', '.join(overlaps)}."
        )
    for codec, found in summary["bd_rate"].items():
        if found["refused"]:
            scene, why = next(iter(found["refused"].items()))
            notes.append(f"No BD-rate against {codec} on {len(found['refused'])} scenes (on {scene}, {why}).")
    wrong = sum(row["nodata_wrong"] for row in rows)
    if wrong:
        notes.append(f"{wrong} samples changed between data and nodata: see nodata_wrong in the JSON.")
    return notes


def number(value: float | None, digits: int, absent: str = "–") -> str:
    """A figure as a table has it."""
    return absent if value is None else f"{value:.{digits}f}"
