"""Numbers and moments as people read them: the templates' filters."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup

from decoder_node.page.shelf import Row

STATE_WORDS: Final = {
    "receiving": "coming",
    "partial": "partial",
    "durable": "decoding",
    "decoded": "complete",
    "quarantined": "unusable",
}


def size(count: float | None) -> str:
    """Bytes: 1.5 MB."""
    if count is None:
        return "–"
    power = 0 if count < 1000 else min(4, int(math.log10(count) // 3))
    number = count / 1000**power
    return f"{number:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}" if number < 999.5 else f"{number:.0f} kB"


def rate(bps: float) -> str:
    """Bits per second: 1.5 Mbit/s."""
    power = 0 if bps < 1000 else min(3, int(math.log10(bps) // 3))
    return f"{bps / 1000**power:.3g} {('bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s')[power]}"


def ago(moment: float | None) -> Markup:
    """A moment as a `time` element; the browser says how long ago it is."""
    if moment is None:
        return Markup("–")
    at = datetime.fromtimestamp(moment, UTC)
    text = at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time class="ago" datetime="{}" title="{}">{}</time>').format(at.isoformat(), text, text[:16])


def at(moment: float) -> Markup:
    """A moment as a `time` element, as it stands: 21 Nov 13:05."""
    when = datetime.fromtimestamp(moment, UTC)
    return Markup('<time datetime="{}">{}</time>').format(when.isoformat(), when.strftime("%d %b %H:%M"))


def moment(text: str | None) -> str:
    """A STAC moment without what nobody reads."""
    return (
        "–"
        if not text
        else text.replace("T", " ").replace(".000Z", "Z").removesuffix("Z") + (" UTC" if text.endswith("Z") else "")
    )


def percent(share: float) -> str:
    """A share; never 100 % before all is there."""
    return f"{min(99, round(100 * share)) if share < 1 else 100} %"


def whose(node: str) -> str:
    """A node's name."""
    return node or "unnamed node"


def quality(result: dict[str, Any]) -> str:
    """What may be said about errors."""
    if "max_error" in result:
        return "lossless" if not result["max_error"] else f"every pixel within ±{result['max_error']}"
    return f"≈ {result['estimated_psnr_db']:.0f} dB PSNR" if "estimated_psnr_db" in result else "–"


def ratio(row: Row) -> str:
    """24 : 1."""
    return "–" if row.ratio is None else f"{row.ratio:.3g} : 1"


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "size": size, "rate": rate, "ago": ago, "at": at, "moment": moment, "percent": percent, "whose": whose,
    "quality": quality, "ratio": ratio, "state_word": STATE_WORDS.__getitem__,
}  # fmt: skip
