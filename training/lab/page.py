"""docs/lab.md: every row's question, table (mean and spread over seeds), claims and pictures. Written from results;
what stands before the rows is page.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from training.lab.config import Row
from training.lab.figures import LABELS
from training.lab.rows import Result, held_claims, spread

INTRO = Path(__file__).with_name("page.md")


def table(row: Row, results: list[Result]) -> str:
    """Markdown: a line for each variant, a column for each figure."""
    names = list(dict.fromkeys(key for one in results for key in one.figures))
    names = [name for name in row.base.columns or names if name in names]
    head = ["", *(LABELS.get(name, (name, ""))[0] for name in names)]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for variant in row.variants:
        own = [one.figures for one in results if one.variant == variant]
        cells = []
        for name in names:
            values = [figures[name] for figures in own if name in figures]
            cells.append(_cell(name, values))
        lines.append(" | ".join([variant, *cells]))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _cell(name: str, values: list[float]) -> str:
    if not values:
        return ""
    form = LABELS.get(name, (name, "{:.3f}"))[1]
    mean, half = spread(values)
    text = form.format(mean)
    if len(values) > 1 and half > 0:
        text += f" ± {form.format(half)}"
    return text


def section(number: int, row: Row, results: list[Result], pictures: Iterable[str]) -> str:
    """One row of the page."""
    lines = [f"## {number}. {row.base.title or row.base.name}", "", row.base.text, "", table(row, results), ""]
    for says, held, of in held_claims(row, results):
        lines.append(f"- {says}: " + (f"in all {of} seeds." if held == of else f"**in {held} of {of} seeds only**."))
    if row.base.claims:
        lines.append("")
    lines += [f"![{name.replace('_', ' ')}](lab/{row.base.name}_{name}.png)\n" for name in pictures]
    return "\n".join(lines)


def write(path: Path, intro: dict[str, str], sections: list[str]) -> None:
    """The page, whole or not at all."""
    text = INTRO.read_text().format(**intro) + "\n" + "\n".join(sections).rstrip() + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)
