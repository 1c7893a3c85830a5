"""The figures of a report, as SVG text: rate against quality, bits and speeds side by side, errors by band, tiles.

Every codec keeps its colour, its marker and its dash in all figures; markers and dashes alone tell them apart, so that
a figure reads in grey. Text stays text. Nothing is drawn beyond what was measured.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot, ticker

from evaluation.bdrate import Curve
from evaluation.summary import Row

INK: Final = "#1c2330"
GRID: Final = "#d9dee5"
STYLE: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.edgecolor": "#7a8494",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "latent downlink",
}


class Look(NamedTuple):
    colour: str
    marker: str
    dash: Any
    width: float


_OURS: Final = Look("#0b3c7d", "o", "-", 2.4)
_OTHERS: Final = (  # dark and light take turns, so that neighbours differ in grey as well
    Look("#d1495b", "s", (0, (5, 2)), 1.5),
    Look("#3a7d44", "^", (0, (1, 1.2)), 1.5),
    Look("#e39b1f", "D", (0, (6, 2, 1, 2)), 1.5),
    Look("#7b4b94", "v", (0, (3, 1.5)), 1.5),
    Look("#5b9bb5", "P", (0, (8, 3)), 1.5),
    Look("#8a6d4b", "X", (0, (2, 2)), 1.5),
    Look("#666e7a", "*", (0, (4, 1, 1, 1, 1, 1)), 1.5),
    Look("#b8578d", "<", (0, (1, 2.5)), 1.5),
    Look("#9aa531", ">", (0, (7, 1.5)), 1.5),
    Look("#2a9d8f", "h", (0, (2, 1)), 1.5),
)


def looks(codecs: Sequence[str], reference: str | None) -> dict[str, Look]:
    """One look per codec; the reference's is the strongest."""
    others = [codec for codec in codecs if codec != reference]
    found = {codec: _OTHERS[number % len(_OTHERS)] for number, codec in enumerate(others)}
    return {reference: _OURS, **found} if reference is not None else found


@contextmanager
def _figure(rows: int, columns: int, width: float, height: float, **more: Any) -> Iterator[Any]:
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **more
        )
        try:
            yield figure, axes
        finally:
            pyplot.close(figure)


def _svg(figure: Any, describes: str, salt: str) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue()[out.getvalue().index("<svg") :], flags=re.DOTALL)
    # the ids of two figures in one page must not meet
    text = re.sub(
        r'id="((?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib|legend|Path\w+|Line\w+)[^"]*)"', "", text
    )
    label = describes.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def log_ticks(axis: Any) -> None:
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_minor_locator(ticker.NullLocator())


# Measure, title, and how its axis is scaled.
_PANELS: Final = (
    ("psnr_db", "PSNR in dB", "linear", False),
    ("ssim", "SSIM, as -10 log10(1 - SSIM) in dB", "linear", True),
    ("sam_deg", "spectral angle in degrees", "log", False),
    ("max_error", "largest error of any sample in DN", "log", False),
    ("ndvi_error", "mean absolute error of NDVI", "log", False),
    ("land_cover_agreement", "pixels that change land cover in %", "log", False),
)


def quality(equal: dict[str, Any], reference: str, salt: str) -> str:
    """All measures against bits per sample, pooled; `equal` is what `at_equal_bits` gives."""
    bits = np.array(equal["bits_per_sample"])
    drawn = [panel for panel in _PANELS if any(v is not None for c in equal["codecs"].values() for v in c[panel[0]])]
    chosen = looks(list(equal["codecs"]), reference)
    rows = -(-len(drawn) // 3)
    with _figure(rows, 3, 10.4, 3.0 * rows + 0.5, sharex=True) as (figure, axes):
        handles: dict[str, Any] = {}
        for axis, (measure, title, scale, in_db) in zip(axes.flat, drawn, strict=False):
            for codec, look in chosen.items():
                values = np.array([np.nan if v is None else v for v in equal["codecs"][codec][measure]], float)
                if measure == "land_cover_agreement":
                    values = 100 * (1 - values)
                if in_db:
                    values = -10 * np.log10(np.maximum(1 - values, 1e-9))
                if np.isfinite(values).any():
                    handles[codec] = _line(axis, bits, values, look, codec, every=2)
            axis.set_title(title)
            axis.set_xscale("log")
            axis.set_yscale(scale)
            if scale == "log":
                log_ticks(axis.yaxis)
            log_ticks(axis.xaxis)
        for axis in list(axes.flat)[len(drawn) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            axis.set_xlabel("bits per sample (mean over scenes)")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(8, len(handles)))
        return _svg(figure, "Measures of quality against bits per sample, pooled over scenes", salt)


def _line(axis: Any, x: Any, y: Any, look: Look, label: str, every: int = 1, size: float = 4.5) -> Any:
    (line,) = axis.plot(
        x, y, color=look.colour, marker=look.marker, linestyle=look.dash, linewidth=look.width, markersize=size,
        markevery=every, label=label, markeredgecolor="white", markeredgewidth=0.5,
        zorder=3 if look is _OURS else 2,
    )  # fmt: skip
    return line


def per_scene(rows: Sequence[Row], reference: str, salt: str) -> str:
    """PSNR against bits per sample, a panel per scene; only points that no other of the codec beats."""
    scenes = list(dict.fromkeys(row["scene"] for row in rows))
    codecs = list(dict.fromkeys(row["codec"] for row in rows))
    chosen = looks(codecs, reference)
    columns = min(4, len(scenes))
    count = -(-len(scenes) // columns)
    width = 10.4 if columns > 2 else 5.2 * columns
    with _figure(count, columns, width, 2.35 * count + 0.6) as (figure, axes):
        handles: dict[str, Any] = {}
        for axis, scene in zip(axes.flat, scenes, strict=False):
            for codec, look in chosen.items():
                mine = [r for r in rows if r["scene"] == scene and r["codec"] == codec and r["psnr_db"] is not None]
                curve = Curve((row["bits_per_sample"], row["psnr_db"]) for row in mine)
                if curve.points:
                    handles[codec] = _line(axis, curve.bits, curve.psnr, look, codec, size=3.5)
            axis.set_title(_short(scene), fontsize=7.5, fontweight="normal")
            axis.set_xscale("log")
            log_ticks(axis.xaxis)
            axis.xaxis.set_major_locator(ticker.LogLocator(numticks=6))
            axis.tick_params(labelsize=7)
        for axis in list(axes.flat)[len(scenes) :]:
            axis.set_visible(False)
        figure.supxlabel("bits per sample", fontsize=9)
        figure.supylabel("PSNR in dB", fontsize=9)
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(8, len(handles)))
        return _svg(figure, "PSNR against bits per sample for each scene", salt)


def _short(scene: str, length: int = 34) -> str:
    return scene if len(scene) <= length else f"{scene[: length - 12]}…{scene[-11:]}"


def per_band(
    bands: Sequence[str], errors: dict[str, Sequence[float | None]], reference: str, unit: str, salt: str
) -> str:
    """RMSE of each band at equal bits."""
    chosen = looks(list(errors), reference)
    with _figure(1, 1, 10.4, 3.1) as (figure, axes):
        axis = axes[0, 0]
        at = np.arange(len(bands))
        for codec, look in chosen.items():
            _line(axis, at, np.array([np.nan if v is None else v for v in errors[codec]], float), look, codec)
        axis.set_xticks(at, bands)
        axis.set_ylabel(f"RMSE in {unit}")
        axis.set_ylim(bottom=0)
        figure.legend(loc="outside right center")
        return _svg(figure, "Root mean square error of each band at equal bits", salt)


def speed(found: dict[str, Any], reference: str, salt: str) -> str:
    """Bits at equal PSNR against encoding speed: one point per lossy codec, with the spread of its speed."""
    codecs = {name: one for name, one in found["codecs"].items() if one["kind"] == "lossy"}
    chosen = looks(list(codecs), reference)
    most = max(one["bits_per_sample"] for one in codecs.values())
    with _figure(1, 2, 10.4, 3.6, sharey=True) as (figure, axes):
        for axis, half in zip(axes[0], ("encode", "decode"), strict=True):
            lift = _lifted(codecs, half, most)
            for codec, one in codecs.items():
                look, rate = chosen[codec], one[half]
                axis.errorbar(
                    rate["median"], one["bits_per_sample"],
                    xerr=[[rate["median"] - rate["low"]], [rate["high"] - rate["median"]]],
                    color=look.colour, marker=look.marker, markersize=9 if look is _OURS else 7, capsize=2.5,
                    elinewidth=1.0, markeredgecolor="white",
                )  # fmt: skip
                axis.annotate(
                    codec.removesuffix(" (lossy)"), (rate["high"], one["bits_per_sample"]), xytext=(6, lift[codec]),
                    textcoords="offset points", va="center", fontsize=8,
                    fontweight="bold" if look is _OURS else "normal",
                )  # fmt: skip
            fastest = max(one[half]["high"] for one in codecs.values())
            axis.set_xscale("log")
            log_ticks(axis.xaxis)
            axis.set_xlim(right=2.5 * fastest)
            axis.set_ylim(0, 1.12 * most)
            axis.set_xlabel("million samples a second on one thread (further right is faster)")
            axis.set_title(f"{half.removesuffix('e')}ing")
        axes[0, 0].set_ylabel("bits per sample at equal PSNR\n(lower is better)")
        return _svg(figure, "Bits per sample at equal PSNR against speed", salt)


def _lifted(codecs: dict[str, Any], half: str, most: float) -> dict[str, float]:
    """By how many points labels are moved off their points' height, so that those of near neighbours do not meet."""
    order = sorted(codecs, key=lambda name: float(codecs[name]["bits_per_sample"]))
    found = dict.fromkeys(order, 0.0)
    for below, above in itertools.pairwise(order):
        one, two = codecs[below], codecs[above]
        low, high = sorted((one[half]["high"], two[half]["high"]))
        if two["bits_per_sample"] - one["bits_per_sample"] < 0.05 * most and high < 3 * low:
            found[below] -= 4.0
            found[above] += 6.0
    return found


def bounded(bounds: dict[str, Any], salt: str) -> str:
    """Bits per sample of every codec at every bound, as dots on a line each."""
    shown = {bound: found for bound, found in bounds.items() if found["scenes"]}
    names = list(next(iter(shown.values()))["codecs"])
    with _figure(1, len(shown), 10.4, 0.9 + 0.3 * len(names), sharey=True) as (figure, axes):
        for axis, (bound, found) in zip(axes[0], shown.items(), strict=True):
            order = sorted(names, key=lambda name: -found["codecs"][name]["bits_per_sample"])
            values = [found["codecs"][name]["bits_per_sample"] for name in order]
            axis.hlines(range(len(order)), 0, values, color=GRID, linewidth=2)
            for at, (name, value) in enumerate(zip(order, values, strict=True)):
                ours = name == names[0]
                axis.plot(
                    value, at, marker="o" if ours else "s", color=_OURS.colour if ours else "#7a8494", markersize=7
                )
                text = f"{name}  {value:.2f}"
                axis.annotate(
                    text, (value, at), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8,
                    fontweight="bold" if ours else "normal",
                )  # fmt: skip
            axis.set_yticks([])
            axis.grid(axis="y", visible=False)
            axis.spines["left"].set_visible(False)
            axis.set_xlim(0, max(values) * 1.45)
            axis.set_xlabel("bits per sample")
            axis.set_title("lossless" if bound == "0" else f"no sample off by more than {bound}")
        return _svg(figure, "Bits per sample of lossless and bounded codecs", salt)


def tiles(cells: Sequence[Sequence[float]], salt: str) -> str:
    """Bits per pixel by tile, written into the tiles."""
    values = np.array(cells)
    rows, columns = values.shape
    with _figure(1, 1, min(6.5, 1.1 * columns + 1.6), min(6.0, 1.0 * rows + 0.6)) as (figure, axes):
        axis = axes[0, 0]
        shown = axis.imshow(values, cmap="Greys", vmin=0, vmax=values.max() * 1.6)
        if values.size <= 100:
            for row in range(rows):
                for column in range(columns):
                    dark = values[row, column] > 0.85 * values.max()
                    axis.text(
                        column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8,
                        color="white" if dark else INK,
                    )  # fmt: skip
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
        figure.colorbar(shown, ax=axis, label="bits per pixel, all bands", shrink=0.85)
        return _svg(figure, "Bits per pixel of each tile", salt)
