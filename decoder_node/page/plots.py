"""The plots of the history page."""

from __future__ import annotations

from typing import Any, Final

from decoder_node.page import chart, words
from decoder_node.page.chart import Mark
from decoder_node.page.shelf import Shelf

LEAST_S: Final = 1800.0


def plots(shelf: Shelf, now: float, span_s: float) -> dict[str, Any]:
    """What came in each pass, how small scenes were made, and what waited on board, over the last `span_s`."""
    start = now - span_s
    passes, ratios, backlog = shelf.passes(start), shelf.ratios(start), shelf.backlog(start)
    moments = [one.start for one in passes] + [row[0] for row in ratios]
    moments += [at for one in backlog.values() for at, _ in one]
    first = min((at for at in moments if at >= start), default=start)
    start = max(start, min(first - 0.1 * (now - first), now - LEAST_S))  # a young station fills its plots
    nodes = sorted({one.node for one in passes} | backlog.keys())
    colour = {node: number for number, node in enumerate(nodes)}
    bars = [
        Mark(one.start, one.end, one.bytes, f"{words.whose(one.node)}: {words.size(one.bytes)}", colour[one.node])
        for one in passes
    ]
    dots = [
        Mark(at, at, ratio, f"{name}: {ratio:.3g} : 1", href=f"/scenes/{scene_id}")
        for at, ratio, name, scene_id in ratios
        if at >= start
    ]
    lines = [[(at, float(size)) for at, size in backlog.get(node, [])] for node in nodes]
    return {
        "nodes": nodes,
        "passes": list(reversed(passes))[:50],
        "total": sum(one.bytes for one in passes),
        "bytes_plot": chart.bars(bars, start, now, words.size, "Bytes received in each pass"),
        "ratio_plot": chart.dots(dots, start, now, lambda value: f"{value:g}×", "Compression ratio of each scene"),
        "backlog_plot": chart.steps(lines, start, now, words.size, "Bytes that wait on board"),
        "any": {"passes": bool(bars), "ratios": bool(dots), "backlog": any(lines)},
    }
