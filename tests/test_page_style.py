"""The page's colours can be read (WCAG 2.2 AA), in both themes; its plots are drawn to scale, wide and narrow."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the ground extra is not installed")

from decoder_node.page import chart
from decoder_node.page.chart import SIZES, Mark

CSS = (Path(chart.__file__).parent / "static" / "page.css").read_text()
THEMES = {"light": r":root \{([^}]*)\}", "dark": r':root\[data-theme="dark"\] \{([^}]*)\}'}
TEXT, GRAPHICS = 4.5, 3.0  # ratios that WCAG asks for: of text, and of what must be seen to understand
TONES = ("good", "wait", "part", "bad", "come")
Colour = tuple[float, float, float]


def colours(theme: str) -> dict[str, Colour]:
    found = re.search(THEMES[theme], CSS)
    assert found is not None
    pairs = re.findall(r"--([\w-]+): #([0-9a-f]{6})", found[1])
    return {name: tuple(int(digits[at : at + 2], 16) for at in (0, 2, 4)) for name, digits in pairs}  # type: ignore[misc]


def mixed(over: Colour, under: Colour, share: float) -> Colour:
    return tuple(share * one + (1 - share) * other for one, other in zip(over, under, strict=True))  # type: ignore[return-value]


def contrast(one: Colour, other: Colour) -> float:
    """WCAG's ratio of relative luminances."""

    def luminance(colour: Colour) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_all_words_can_be_read(theme: str) -> None:
    of = colours(theme)
    pairs = {
        (word, on): contrast(of[word], of[on]) for word, on in product(("ink", "dim", "link"), ("ground", "panel"))
    }
    pairs |= {(word, "sunk"): contrast(of[word], of["sunk"]) for word in ("ink", "dim")}
    pairs |= {(word, on): contrast(of[word], of[on]) for word, on in product(TONES, ("ground", "panel"))}
    for tone, on in product((*TONES, "dim"), ("ground", "panel")):  # a tag lies on a breath of its own colour
        pairs[f"tag {tone}", on] = contrast(of[tone], mixed(of[tone], of[on], 0.14))
    pairs["on-accent", "accent"] = contrast(of["on-accent"], of["accent"])
    pairs["on-accent", "wait"] = contrast(of["on-accent"], of["wait"])
    for name, under in (("white", (255.0, 255.0, 255.0)), ("black", (0.0, 0.0, 0.0))):  # degrees over a picture
        pairs["ink", f"panel over {name}"] = contrast(of["ink"], mixed(of["panel"], under, 0.82))
    assert {pair: round(ratio, 2) for pair, ratio in pairs.items() if ratio < TEXT} == {}


@pytest.mark.parametrize("theme", THEMES)
def test_all_marks_can_be_seen(theme: str) -> None:
    of = colours(theme)
    pairs = {(mark, "panel"): contrast(of[mark], of["panel"]) for mark in (*TONES, *(f"s{n}" for n in range(6)))}
    pairs |= {(state, land): contrast(of[state], of[land]) for state, land in product(TONES, ("land", "sea"))}
    pairs["accent", "ground"] = contrast(of["accent"], of["ground"])  # where the keyboard is
    assert {pair: round(ratio, 2) for pair, ratio in pairs.items() if ratio < GRAPHICS} == {}


def test_both_ways_to_dark_are_the_same() -> None:
    system = re.search(r'prefers-color-scheme: dark\) \{\s*:root:not\(\[data-theme="light"\]\) \{([^}]*)\}', CSS)
    assert system is not None
    chosen = colours("dark")
    assert {name: chosen[name] for name, _ in re.findall(r"--([\w-]+): (#\w{6})", system[1])} == chosen


def heights(svg: str) -> list[list[float]]:
    return [[float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', one)] for one in svg.split("</svg>")[:-1]]


def test_a_bar_twice_as_high_is_twice_as_much() -> None:
    marks = [Mark(0, 60, 100, "a"), Mark(600, 660, 200, "<b>")]
    svg = chart.bars(marks, 0, 3600, str, "bytes")
    assert svg.count("<svg") == len(SIZES)
    assert "&lt;b&gt;" in svg
    for low, high in heights(svg):
        assert high == pytest.approx(2 * low, rel=0.01)


@pytest.mark.parametrize("most", [1e-3, 0.9, 1, 7, 31.6, 99, 1234, 5.01e9])
def test_axes_have_few_round_numbers_and_hold_everything(most: float) -> None:
    for size in SIZES:
        frame = chart.linear(size, 0, 1, [most])
        assert most <= frame.top * 1.001 <= 2.1 * most
        assert 3 <= len(frame.values) <= size.values
        assert frame.values[-1] == pytest.approx(frame.top)
        assert frame.y(0) == frame.floor


def test_ratios_that_lie_far_apart_are_shown_in_powers() -> None:
    frame = chart.powers(SIZES[0], 0, 1, [1.8, 110])
    assert (frame.bottom, frame.top) == (1, 200)
    apart = [frame.y(1), frame.y(10), frame.y(100)]
    assert apart[0] - apart[1] == pytest.approx(apart[1] - apart[2])
    assert chart.powers(SIZES[0], 0, 1, [3, 4]).bottom == 0
    assert "<circle" in chart.dots([Mark(0.5, 0.5, 2, "x", href="/scenes/1")], 0, 1, str, "ratio")


def test_nothing_is_drawn_of_nothing() -> None:
    assert "NaN" not in chart.steps([[]], 0, 1, str, "backlog") + chart.bars([], 0, 1, str, "bytes")
