"""The plots of the history page, and the sums above them."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from decoder_node.page import chart, words
from decoder_node.page.chart import Mark
from decoder_node.page.shelf import Shelf

LEAST_S: Final = 1800.0
PASSES_SHOWN: Final = 50


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
        Mark(at, at, ratio, f"{name}: {ratio:.3g} : 1", colour.get(node, 0), f"/scenes/{scene_id}")
        for at, ratio, name, scene_id, node in ratios
        if at >= start
    ]
    lines = [[(at, float(size)) for at, size in backlog.get(node, [])] for node in nodes]
    last = [one[-1][1] for one in backlog.values()]
    return {
        "nodes": nodes,
        "passes": list(reversed(passes))[:PASSES_SHOWN],
        "count": len(passes),
        "total": sum(one.bytes for one in passes),
        "completed": len(ratios),
        "median": median(row[1] for row in ratios) if ratios else None,
        "waiting": sum(last) if last else None,
        "bytes_plot": chart.bars(bars, start, now, words.size, "Bytes received in each pass"),
        "ratio_plot": chart.dots(dots, start, now, lambda value: f"{value:g} : 1", "Compression ratio of each scene"),
        "backlog_plot": chart.steps(lines, start, now, words.size, "Bytes that wait on board"),
        "any": {"passes": bool(bars), "ratios": bool(dots), "backlog": any(value for one in lines for _, value in one)},
    }
