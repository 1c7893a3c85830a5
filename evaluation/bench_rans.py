"""How fast symbols are coded, and how far above their entropy: `python -m evaluation.bench_rans`.

Symbols are drawn from the tables themselves (scales 1 to 40, sixteen segments of 65 536), so the ideal size is known.
`coder` is the rANS loop alone; `payload` is `SymbolEncoder`/`SymbolDecoder` as the nodes use them. One thread; the
best of the repetitions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from downlink import rans
from downlink.symbol import SymbolEncoder
from downlink.symbol_decoder import SymbolDecoder
from downlink.table import Tables

SEGMENT = 1 << 16
SCALES = 40


def drawn(tables: Tables, segments: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Values, scale indices and means: a random slot of a table has just the table's probabilities."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(segments):
        index = random.integers(1, SCALES + 1, SEGMENT).astype(np.uint8)
        mean = random.integers(-400, 400, SEGMENT).astype(np.int32)
        keys = tables.keys(index, mean)
        entry = tables.model.slot_entries[
            tables.table_of[keys.route] * rans.TOTAL + random.integers(0, rans.TOTAL, SEGMENT)
        ]
        shift = tables.shift_of[keys.route]
        raw = random.integers(0, 1 << 24, SEGMENT) & ((1 << shift.astype(int)) - 1)
        values = ((entry + tables.low_of[keys.route]) << shift) + raw + keys.base
        found.append((values.astype(np.int32), index, mean))
    return found


def best(repetitions: int, action: Callable[[], object]) -> float:
    """Shortest wall time in seconds."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    arguments = parser.parse_args()
    tables = Tables.parametric()
    print("lanes | coder enc  dec Msym/s | payload enc  dec Msym/s | bytes over the cost of the symbols")
    for lanes in arguments.lanes:
        segments = drawn(tables, 16 if lanes > 16 else 2)
        count = SEGMENT * len(segments)
        located = [tables.locate(*segment) for segment in segments]
        entries = [part.entries for part in located]
        numbers = [part.entries >> 8 for part in located]
        states, words = rans.encode(tables.model, entries, lanes)

        def decode(states: np.ndarray = states, words: np.ndarray = words, numbers: list[np.ndarray] = numbers) -> None:
            decoder = rans.Decoder(tables.model, states, words)
            for number in numbers:
                decoder.decode(number)

        def write(lanes: int = lanes, segments: list = segments) -> bytes:
            encoder = SymbolEncoder(tables)
            for segment in segments:
                encoder.add(*segment)
            return encoder.finish(lanes)

        payload = write()

        def read(payload: bytes = payload, segments: list = segments) -> None:
            decoder = SymbolDecoder(tables, payload)
            for _, index, mean in segments:
                decoder.take(index, mean)
            decoder.close()

        decode()
        speeds = [
            count / 1e6 / best(arguments.repetitions, action)
            for action in (lambda e=entries, n=lanes: rans.encode(tables.model, e, n), decode, write, read)
        ]
        ideal = sum(tables.cost_bits(*segment) for segment in segments) / 8
        print("{:5d} | {:9.1f} {:5.1f}       | {:11.1f} {:5.1f}".format(lanes, *speeds), end="")
        print(f"       | {len(payload) - ideal:6.0f} of {ideal:.0f} ({len(payload) / ideal - 1:.2%})")
    values, index, mean = drawn(tables, 1)[0]
    seconds = best(arguments.repetitions, lambda: tables.cost_bits(values, index, mean))
    print(f"cost_bits: {SEGMENT / 1e6 / seconds:.0f} Msym/s")


if __name__ == "__main__":
    main()
