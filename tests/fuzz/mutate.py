"""Mutations of byte strings: what bit rot, truncation and malice look like, without coverage to steer by."""

from __future__ import annotations

import random
from collections.abc import Sequence

NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]
SIZE_MAX = 1 << 17


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds with one to eight mutations, or a splice of two of them with those."""
    data = bytearray(chance.choice(seeds))
    if len(seeds) > 1 and chance.random() < 0.1:
        other = chance.choice(seeds)
        data = data[: chance.randint(0, len(data))] + other[chance.randint(0, len(other)) :]
    for _ in range(1 << chance.randint(0, 3)):
        at = chance.randint(0, max(0, len(data) - 1))
        end = min(len(data), at + 1 + int(chance.expovariate(1 / 8)))
        match chance.randint(0, 8):
            case 0 | 1 if data:
                data[at] ^= 1 << chance.randint(0, 7)
            case 2 if data:
                data[at] = chance.randint(0, 255)
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = chance.randbytes(end - at)
            case 5:
                data[at:at] = data[at:end] * chance.choice((1, 2, 50))
            case 6:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(NUMBERS) & ((1 << 8 * width) - 1)
                data[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
            case 7:
                del data[chance.randint(0, len(data)) :]
            case 8:
                data[at:end] = bytes([chance.choice((0, 0x7F, 0x80, 0xFF))]) * (end - at)
    return bytes(data[:SIZE_MAX])
