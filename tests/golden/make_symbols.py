"""Write the golden payloads of the entropy coder: `python tests/golden/make_symbols.py`. Append-only.

Each file holds tables, contexts, symbols and the payload, as JSON that needs none of our code to read. A file that
exists is never touched: a stream that has been written once must decode for ever. Integer arithmetic alone makes the
inputs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from downlink.symbol import SymbolEncoder
from downlink.table import Tables

FOLDER = Path(__file__).parent / "v1"


def numbers(seed: int) -> Iterator[int]:
    """A generator that no library can change (Numerical Recipes' linear congruences; the upper bits)."""
    while True:
        seed = (1664525 * seed + 1013904223) % (1 << 32)
        yield seed >> 12


def tables() -> Tables:
    """Three small tables and a flat one of 256 entries for five scales, the last two with raw bits."""
    pmfs = [(-1, [1, 14, 1, 0.01]), (-2, [1, 3, 9, 4, 1, 0.1]), (-1, [2, 3, 2, 0.2]), (-128, [1] * 256)]
    route = [[-1] * 8, [0] * 8, [1, 1, 1, 1, 2, 2, 2, 2], [2] * 8, [1] * 8, [3] * 8]
    shift = [0, 0, 0, 0, 3, 9]
    return Tables.from_pmfs([(low, np.array(p, float)) for low, p in pmfs], np.array(route), np.array(shift))


def segment(count: int, seed: int, scales: tuple[int, ...], surprises: bool) -> dict[str, list[int]]:
    """Symbols near their means; with surprises some escape, and some certain ones are exceptions."""
    draw = numbers(seed)
    found: dict[str, list[int]] = {"index": [], "mean": [], "values": []}
    for i in range(count):
        index = scales[next(draw) % len(scales)]
        mean = next(draw) % 160 - 80
        spread = (0, 1, 2, 3, 12, 900)[index]
        value = (mean + 4 >> 3) + (next(draw) % (2 * spread + 1) - spread if spread else 0)
        if surprises and i % 37 == 5:
            value += (-1) ** i * (next(draw) % 70_000)
        for name, number in (("index", index), ("mean", mean), ("values", value)):
            found[name].append(number)
    return found


CASES = {
    "certain": (None, [(40, 1, (0,), False), (0, 2, (0,), False)]),
    "exceptions": (None, [(80, 3, (0,), True), (40, 4, (0,), False)]),
    "one-lane": (1, [(150, 5, (0, 1, 2, 3), False), (60, 6, (1, 2), False)]),
    "everything": (4, [(150, 7, (0, 1, 2, 3, 4, 5), True), (0, 8, (0,), False), (90, 9, (0, 5), True)]),
    "many-lanes": (64, [(200, 10, (1, 2, 3), False), (30, 11, (0, 4), True)]),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (lanes, parts) in CASES.items():
        segments = [segment(*part) for part in parts]
        encoder = SymbolEncoder(tables())
        for part in segments:
            encoder.add(
                np.array(part["values"], np.int32), np.array(part["index"], np.uint8), np.array(part["mean"], np.int32)
            )
        case = {
            "tables": tables().pack().hex(),
            "lanes": lanes,
            "segments": segments,
            "payload": encoder.finish(lanes).hex(),
        }
        path = FOLDER / f"symbols-{name}.json"
        if path.exists():
            print(f"{path} exists and stays as it is")
            continue
        path.write_text(json.dumps(case, separators=(",", ":")) + "\n")
        print(f"{path}: {len(case['payload']) // 2} bytes of payload")


if __name__ == "__main__":
    main()
