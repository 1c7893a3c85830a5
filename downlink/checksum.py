"""CRC-32C (Castagnoli), natively or in numpy, so that the edge needs no further package; zlib has only the other
polynomial.

A CRC is linear over GF(2), so the CRC of 64 bytes is the XOR of what each byte at its position contributes: one look-up
per byte, all independent. A level turns each 64 bytes into the 4 bytes of their CRC; the next level does the same to
the CRCs, with tables that also move each one past the zeros that its right neighbours stand for. Four levels turn
256 KiB into one CRC, with no Python loop over bytes.

>>> hex(crc32c(b"123456789"))
'0xe3069283'
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from downlink import accelerator

POLYNOMIAL: Final = 0x82F63B78  # 0x1EDC6F41 with its bits reversed

_GROUP: Final = 64  # bytes that one level turns into 4
_PIECE_BYTES: Final = 256 * 1024  # for longer input: keeps memory small and the work in cache
_SHORT_BYTES: Final = 128  # below this a plain loop is faster
_ROW_OFFSETS: Final = np.arange(0, _GROUP * 256, 256, dtype=np.uint16)[:, None]


def crc32c(data: bytes | memoryview, value: int = 0) -> int:
    """The CRC-32C of `data`, continuing from `value` (the CRC of what came before), as zlib.crc32 does."""
    view = memoryview(data).cast("B")
    found = accelerator.crc32c(view, value)
    if found is not None:
        return found
    state = value ^ 0xFFFFFFFF
    for start in range(0, len(view), _PIECE_BYTES):
        piece = view[start : start + _PIECE_BYTES]
        state = _by_bytes(piece, state) if len(piece) < _SHORT_BYTES else _by_levels(piece, state)
    return state ^ 0xFFFFFFFF


def _by_bytes(piece: memoryview, state: int) -> int:
    table = _byte_list()
    for byte in piece:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state


def _by_levels(piece: memoryview, state: int) -> int:
    # Starting from a state is the same as starting from zero with the state's bytes XORed onto the first four bytes.
    row = np.array(piece, np.uint8)
    row[:4] ^= np.array([state], "<u4").view(np.uint8)
    level = 0
    while len(row) > 4:
        missing = -len(row) % _GROUP
        if missing:  # zeros in front leave a zero state zero
            row = np.concatenate([np.zeros(missing, np.uint8), row])
        entries = np.take(_table(level), row.reshape(-1, _GROUP).T + _ROW_OFFSETS, mode="clip")
        row = np.bitwise_xor.reduce(entries, axis=0).astype("<u4", copy=False).view(np.uint8)
        level += 1
    return int(row.view("<u4")[0])


def _after_zero_byte(states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    moved: NDArray[np.uint32] = _byte_table()[states & 0xFF] ^ (states >> 8)
    return moved


def _bytes_of_state() -> NDArray[np.uint32]:
    """(4, 256): the states that have one byte set."""
    return np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)


@cache
def _byte_table() -> NDArray[np.uint32]:
    """What each byte value makes of an empty state."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ POLYNOMIAL, table >> 1).astype(np.uint32)
    return table


@cache
def _byte_list() -> list[int]:
    return [int(entry) for entry in _byte_table()]


@cache
def _table(level: int) -> NDArray[np.uint32]:
    """(64 * 256): what each byte at each position of a group adds to the group's CRC."""
    rows: list[NDArray[np.uint32]] = []  # from the last position to the first
    if level == 0:
        rows.append(_byte_table())
        while len(rows) < _GROUP:
            rows.append(_after_zero_byte(rows[-1]))
    else:
        crcs = _bytes_of_state()
        while len(rows) < _GROUP:
            rows.extend(crcs[::-1])
            crcs = _moved(crcs, _moves(_GROUP * (_GROUP // 4) ** (level - 1)))
    return np.concatenate(rows[::-1])


@cache
def _moves(zeros: int) -> NDArray[np.uint32]:
    """(4, 256): where the states that have one byte set go when `zeros` (a power of two) zero bytes follow."""
    if zeros == 1:
        return _after_zero_byte(_bytes_of_state())
    half = _moves(zeros // 2)
    return _moved(half, half)


def _moved(states: NDArray[np.uint32], moves: NDArray[np.uint32]) -> NDArray[np.uint32]:
    low = moves[0][states & 0xFF] ^ moves[1][(states >> 8) & 0xFF]
    high = moves[2][(states >> 16) & 0xFF] ^ moves[3][states >> 24]
    moved: NDArray[np.uint32] = low ^ high
    return moved
