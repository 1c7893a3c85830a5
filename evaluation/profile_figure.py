"""A profile in one picture: time per stage, speed by size, memory by size, and the networks under the core's roof."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot

from evaluation.figures import INK, STYLE

_SHADES = ("#0b3c7d", "#c9d6e8", "#5b86b8", "#e3b55b", "#8a5a1c", "#2f6f5e", "#a9cdbf", "#9aa1ab")
_LIGHT = ("#c9d6e8", "#e3b55b", "#a9cdbf")
_HATCHES = ("", "///", "", "", "", "", "", "")


def draw(found: dict[str, Any], kind: str) -> bytes:
    """The picture as a file of this kind: svg, png or pdf."""
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 10}):
        figure = pyplot.figure(figsize=(10.4, 6.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=(1.35, 2.4))
        _stages(top.subplots(), found["stages"], found["speed"])
        top.legend(loc="outside lower center", ncols=4, fontsize=8)
        speed, memory, roof = bottom.subplots(1, 3)
        _speed(speed, found["speed"])
        _memory(memory, found["memory"])
        _roof(roof, found)
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        pyplot.close(figure)
    return out.getvalue()


def _stages(axis: Any, stages: dict[str, float], speeds: list[dict[str, Any]]) -> None:
    rate = max((one for one in speeds if one["threads"] == 1), key=lambda one: one["size_px"])
    whole = 1e3 / rate["msamples_per_s"]["median"]
    left = 0.0
    for (stage, share), shade, hatch in zip(stages.items(), _SHADES, _HATCHES, strict=False):
        width = share * whole
        axis.barh(
            0,
            width,
            left=left,
            color=shade,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.8,
            label=f"{stage} {100 * share:.0f} %",
        )
        if share > 0.06:
            light = shade in _LIGHT
            axis.text(
                left + width / 2, 0, f"{stage.partition(',')[0]}\n{100 * share:.0f} %", ha="center", va="center",
                fontsize=8, color=INK if light else "white",
            )  # fmt: skip
        left += width
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.spines["left"].set_visible(False)
    axis.set_xlim(0, whole)
    axis.set_ylim(-0.5, 0.5)
    axis.set_xlabel("nanoseconds a sample, one thread")
    axis.set_title(f"Where the encoder's time goes ({rate['size_px']} x {rate['size_px']} px)")


def _speed(axis: Any, speeds: list[dict[str, Any]]) -> None:
    for number, threads in enumerate(sorted({one["threads"] for one in speeds})):
        mine = [one for one in speeds if one["threads"] == threads]
        sizes = [one["size_px"] for one in mine]
        rates = [one["msamples_per_s"] for one in mine]
        middle = np.array([rate["median"] for rate in rates])
        spread = np.abs(np.array([[rate["low"], rate["high"]] for rate in rates]).T - middle)
        axis.errorbar(
            sizes, middle, yerr=spread, marker="os"[number % 2], linestyle=("-", "--")[number % 2], capsize=2.5,
            color=("#0b3c7d", "#d1495b")[number % 2], linewidth=1.8,
            label="1 thread, processor time" if threads == 1 else f"{threads} threads, clock",
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("pixels a side (tiles are 256 at most)")
    axis.set_ylabel("million samples a second")
    axis.set_title("Encoding speed")
    axis.legend(fontsize=8)


def _memory(axis: Any, memory: list[dict[str, Any]]) -> None:
    size = [one["scene_mb"] for one in memory]
    axis.plot(
        size, [one["peak_rss_mb"] for one in memory], marker="o", color="#0b3c7d", linewidth=2, label="peak, all of it"
    )
    axis.plot(
        size, [one["rss_before_mb"] for one in memory], marker="s", linestyle="--", color="#7a8494",
        label="before the scene:\nPython, libraries, bundle",
    )  # fmt: skip
    axis.plot(size, size, linestyle=":", color="#d1495b", label="the scene itself")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1.45 * max(one["peak_rss_mb"] for one in memory))
    axis.set_xlabel("scene in MB")
    axis.set_ylabel("resident memory in MB")
    axis.set_title("Memory against scene size")
    axis.legend(fontsize=8, loc="upper left")


def _roof(axis: Any, found: dict[str, Any]) -> None:
    peak = found["gemm_peak_gmac_per_s"]
    graphs = sorted(found["graphs"], key=lambda one: one["gmac_per_s"])
    for at, one in enumerate(graphs):
        axis.barh(at, one["gmac_per_s"], color="#5b86b8", height=0.6)
        axis.text(one["gmac_per_s"], at, f" {100 * one['share_of_gemm_peak']:.0f} %", va="center", fontsize=8)
    axis.axvline(peak, color=INK, linewidth=1.5, linestyle="--")
    axis.text(peak, len(graphs) - 0.4, f"matrix product\n{peak:.0f} GMAC/s", ha="right", va="bottom", fontsize=8)
    axis.set_yticks(range(len(graphs)), [one["name"].removesuffix(".onnx") for one in graphs])
    axis.set_ylim(-0.6, len(graphs) + 0.7)
    axis.set_xlim(0, 1.08 * peak)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("GMAC/s in onnxruntime, one thread")
    axis.set_title("Networks under the roof")
