"""The inner loops of the tile codec in C, where they could be built: the same codec, sooner.

`downlink._native` (sources in `downlink/native/`) is an optional extension. Everything works without it, in numpy,
which is the reference; with it, what is between a tile's pixels and its payloads runs in C. Integers come out the
same; sums of floats may differ in their last bit. `accelerator_of`
gives what does that for a bundle, or None: where the extension is not built, where the environment says
DOWNLINK_NATIVE=0, and where the bundle holds networks or tables of another kind than the loops know.

What streams are refused is the reference's business: `decode` gives None for a stream it cannot take, and the caller
lets numpy say why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from downlink.context import COMPAND_TABLE, LEVEL_LIMIT
from downlink.dct import BLOCK, CHANNELS, ROOT, ROOT_CHANNELS, SUBBANDS, lapped, order, root_integers, subband, unlapped
from downlink.lookup import Lookup
from downlink.network import (
    HyperLayers,
    Layers,
    SynthesisLayers,
    feature_weights,
    hyper_weights,
    subband_weights,
    synthesis_weights,
)
from downlink.prior import FEATURES, GRAPHS, Symbols
from downlink.spec import PlaneSpec
from downlink.table import Tables

_VERSION: Final = 3
try:
    from downlink import _native

    if _native.version() != _VERSION:  # built from other sources
        _native = None  # type: ignore[assignment]
except (ImportError, AttributeError):  # not built here
    _native = None  # type: ignore[assignment]

SWITCH: Final = "DOWNLINK_NATIVE"
_LATENTS_PER_SIDE: Final = 64
_PLANES: Final = 1 << 10
_TURN: Final = 1 << 20
_TABLES: Final = 1 << 8
_SCALES: Final = 96

Floats = NDArray[np.float32]


def native() -> str | None:
    """Which inner loops run here: the kind of processor they are made for, or None where numpy does it all."""
    if _native is None or os.environ.get(SWITCH) == "0":
        return None
    return str(_native.level())


def crc32c(data: memoryview, value: int) -> int | None:
    """`downlink.checksum.crc32c` of contiguous bytes; None where numpy has to."""
    return None if native() is None else int(_native.crc32c(data, value))


class Part(NamedTuple):
    """Bands of one resolution: pixels (n, height, width), whether they have half the lattice's resolution, on which
    sides (above, below, left, right) half a block of neighbours belongs to the pixels, and which of the lattice's bands
    they are."""

    pixels: NDArray[Any]
    half: bool
    beside: tuple[bool, bool, bool, bool]
    places: NDArray[np.intp]


def _takes(pixels: NDArray[Any]) -> bool:
    return native() is not None and pixels.dtype.isnative and pixels.dtype.char in "BHhf"


def _pixels(part: Part) -> tuple[int, NDArray[Any], tuple[bool, bool, bool, bool]]:
    above, below, left, right = part.beside
    pixels = part.pixels
    if pixels.strides[-1] != pixels.itemsize:
        pixels = np.ascontiguousarray(pixels)
    return BLOCK // 2 if part.half else BLOCK, pixels, (above, left, below, right)


def forward(part: Part, out: Floats) -> bool:
    """Coefficients of bands into bands `places` of `out` (bands, 64, blocks down, blocks across), C order:
    `downlink.lap` and `downlink.dct.forward`. False, and nothing done, where numpy has to."""
    if not _takes(part.pixels):
        return False
    half, places = part.half, part.places.astype(np.int32)
    _native.forward(*_pixels(part), (len(out), *out.shape[2:]), lapped(half), order(half), places, out)
    return True


def back(
    coefficients: Floats,
    places: NDArray[np.intp],
    half: bool,
    mixed: tuple[int, int],
    window: tuple[int, int, int, int],
    dtype: str,
) -> NDArray[Any] | None:
    """Coefficients (bands, 64, h, w), C order, of bands `places` -> their pixels in an integer dtype: `dct.inverse`,
    `lap.unmix` between the first `mixed` blocks (down, across), rounded and clipped. `window` is (row, rows, column,
    columns) of the pixels wanted. None where numpy has to."""
    kind = np.dtype(dtype)
    if native() is None or kind.char not in "BHh" or not coefficients.flags.c_contiguous:
        return None
    _, rows, _, columns = window
    limits = np.iinfo(kind)
    out = np.empty((len(places), rows, columns), kind)
    bands, _, height, width = coefficients.shape
    _native.back(
        BLOCK // 2 if half else BLOCK,
        coefficients,
        (bands, height, width),
        places.astype(np.int32),
        unlapped(half),
        order(half),
        mixed,
        window,
        kind.char,
        (float(limits.min), float(limits.max)),
        out,
    )
    return out


class Mixing(NamedTuple):
    """How a subband's planes (rows) come from bands `columns`: matrix (rows, columns) and offset (rows), in float32."""

    matrix: Floats
    offset: Floats
    columns: NDArray[np.intp]


def front(parts: Sequence[Part], bands: int, mixings: Sequence[Mixing], limit: float, out: Floats) -> bool:
    """Pixels of the bands of a lattice -> planes `out` (planes, 64, blocks down, blocks across), C order, clipped to
    +-limit: `forward` and, for each subband, `mix`. False, and nothing done, where numpy has to."""
    if not all(_takes(part.pixels) for part in parts):
        return False
    _native.front(
        tuple((*_pixels(part), lapped(part.half), order(part.half), part.places.astype(np.int32)) for part in parts),
        (bands, *out.shape[2:]),
        tuple((_whole(m, np.float32), _whole(o, np.float32), m.shape, c.astype(np.int32)) for m, o, c in mixings),
        (0, *SUBBANDS),
        len(out),
        np.arange(len(out), dtype=np.int32),
        limit,
        out,
    )
    return True


def mix(
    matrix: Floats,
    offset: Floats,
    source: Floats,
    columns: NDArray[np.intp],
    out: Floats,
    rows: NDArray[np.intp],
    channels: slice,
) -> bool:
    """out[rows, channels] = matrix @ source[columns, channels] + offset of arrays (n, 64, h, w) in C order. False, and
    nothing done, where numpy has to."""
    whole = source.flags.c_contiguous and out.flags.c_contiguous
    if native() is None or not whole or source.dtype != np.float32 or out.dtype != np.float32:
        return False
    fields = source.shape[2] * source.shape[3]
    stride, first, count = CHANNELS * fields, channels.start * fields, (channels.stop - channels.start) * fields
    _native.mix(
        _whole(matrix, np.float32),
        _whole(offset, np.float32),
        matrix.shape,
        source,
        columns.astype(np.int32),
        (len(source), stride, first),
        out,
        rows.astype(np.int32),
        (len(out), stride, first),
        count,
    )
    return True


class Sent(NamedTuple):
    """A chunk as `Accelerator.encode` makes it: its payload, estimated bits (if they are measured) and coded
    symbols."""

    payload: bytes
    bits: float
    coded: int


class Code(Protocol):
    """What the loops take of a `downlink.latent.TileCode`."""

    @property
    def levels(self) -> NDArray[np.uint8]: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def turn(self) -> NDArray[np.int64]: ...
    @property
    def planes_per_chunk(self) -> int: ...


class Accelerator:
    """The loops of one bundle. Arrays are those of `downlink.latent`, of one tile."""

    def __init__(self, spec: PlaneSpec, tables: Tables, features: Layers, networks: Sequence[Layers]) -> None:
        lookup = Lookup(tables)
        self.tables = tables
        self._hyper = np.ascontiguousarray(spec.hyper_index, np.uint8), spec.hyper_limit
        entry_bits = np.zeros(1 << 16, np.uint32)
        entry_bits[: tables.entry_bits.size] = np.rint(tables.entry_bits.astype(np.float64) * 65536)
        self._model: Any = _native.model(
            (
                spec.hyper_latents,
                len(features.first),
                len(features.second) // spec.hyper**2,
                tables.scales,
                len(tables.frequencies),
                tables.first_shifted,
            ),
            *features,
            tuple((len(one.first), len(one.second), *_order(one)) for one in networks),
            COMPAND_TABLE.astype(np.uint8),
            np.ascontiguousarray(root_integers(), np.int16),
            np.ascontiguousarray(lookup.codes, np.uint16),
            np.ascontiguousarray(lookup.plain_codes, np.uint16),
            np.ascontiguousarray(lookup.costs, np.float32),
            tables.table_of.astype(np.uint16),
            np.ascontiguousarray(tables.low_of, np.int32),
            np.ascontiguousarray(tables.escape_of, np.int32),
            np.ascontiguousarray(tables.shift_of, np.uint8),
            entry_bits,
            np.ascontiguousarray(tables.frequencies, np.uint16),
        )

    def takes(self, code: Code, height: int, width: int) -> bool:
        """Whether the loops are made for tiles of (height, width) latents in this code."""
        sides = all(ROOT <= side <= _LATENTS_PER_SIDE and side % ROOT == 0 for side in (height, width))
        fits = len(code.levels) <= _PLANES and int(np.abs(code.turn).max(initial=0)) <= _TURN
        return sides and fits and int(code.levels.max(initial=0)) <= LEVEL_LIMIT

    def _code(self, code: Code) -> tuple[Any, ...]:
        levels = np.ascontiguousarray(code.levels, np.uint8)
        turn = np.ascontiguousarray(code.turn, np.int64)
        return levels, code.counts, turn, min(code.planes_per_chunk, _PLANES), *self._hyper

    def encode(
        self,
        code: Code,
        root: Floats,
        latent: Floats,
        hyper: Symbols,
        price: float,
        dead_zone: float,
        bounds: Floats,
        measures: bool,
        symbols: tuple[Symbols, Symbols] | None = None,
    ) -> tuple[list[Sent], float]:
        """Exact values in steps -> chunks by group, then block, and, if it `measures`, the squared error of all
        symbols. `symbols` are arrays of zeros (root, latent) that take them."""
        chunks, error = _native.encode(
            self._model,
            self._code(code),
            (len(latent), *latent.shape[-2:]),
            _whole(root, np.float32),
            _whole(latent, np.float32),
            _whole(hyper, np.int32),
            float(np.float32(price)),
            float(np.float32(dead_zone)),
            _whole(bounds, np.float32),
            measures,
            *(symbols or (None, None)),
        )
        return [Sent(*chunk) for chunk in chunks], float(error)

    def decode(
        self, code: Code, chunks: Sequence[bytes | None], hyper: Symbols, root_value: Floats, value: Floats
    ) -> int | None:
        """Fill `hyper`, `root_value` and `value`, which hold zeros, from chunks by group, then block. Returns the
        number of the first chunk that is not there, or -1; None, and arrays of no meaning, for a stream that is not
        right."""
        shape = (len(value), *value.shape[-2:])
        found: int | None = _native.decode(
            self._model, self._code(code), shape, tuple(chunks), hyper, root_value, value
        )
        return found

    def expect(
        self, code: Code, root: Symbols, latent: Symbols, hyper: Symbols
    ) -> list[tuple[NDArray[np.uint8], Symbols]]:
        """Scale index and mean of every symbol of a tile, per subband: of planes that are sent (planes, channels, h,
        w)."""
        planes, (height, width) = len(latent), latent.shape[-2:]
        shapes = [(planes, ROOT_CHANNELS, height // ROOT, width // ROOT)]
        shapes += [(planes, subband(n).stop - subband(n).start, height, width) for n in range(1, len(SUBBANDS))]
        index, mean = (tuple(np.zeros(shape, dtype) for shape in shapes) for dtype in (np.uint8, np.int32))
        given = (_whole(array, np.int32) for array in (root, latent, hyper))
        _native.follow(self._model, self._code(code), (planes, height, width), *given, index, mean)
        return [(i[:count], m[:count]) for i, m, count in zip(index, mean, code.counts, strict=True)]


class Ear:
    """The hyper-latents' network of one bundle."""

    def __init__(self, layers: HyperLayers, limit: int) -> None:
        first, second, last = layers
        self._latents = len(last.bias)
        self._model: Any = _native.hyper_model(self._latents, len(second.bias), len(first.bias), limit, *layers)

    def hear(self, planes: Floats, levels: NDArray[np.uint8]) -> Symbols:
        """Coefficients (n, 64, h, w) in steps, within +-2^20, and levels (n, 4) -> hyper-latents (n, latents, h / 4,
        w / 4)."""
        count, _, height, width = planes.shape
        out = np.empty((count, self._latents, height // ROOT, width // ROOT), np.int32)
        levels = _whole(levels, np.uint8)
        _native.hear(self._model, (count, height, width), _whole(planes, np.float32), levels, out)
        return out


class Corrector:
    """The synthesis' network of one bundle."""

    def __init__(self, layers: SynthesisLayers) -> None:
        enter, blocks, last, size = layers
        pairs = tuple((*see, *mix) for see, mix in blocks)
        self._model: Any = _native.synthesis_model(len(enter.bias), enter, pairs, last, size)

    def correct(self, values: Floats, levels: NDArray[np.uint8], alive: NDArray[np.intp]) -> Floats:
        """Values of symbols (planes, 64, h, w) and levels (planes, 4) -> the same with what the network adds to planes
        `alive`."""
        values = _whole(values, np.float32)
        out = np.empty_like(values)
        planes, _, height, width = values.shape
        chosen = np.zeros(planes, np.uint8)
        chosen[alive] = 1
        _native.correct(self._model, (planes, height, width), values, _whole(levels, np.uint8), chosen, out)
        return out


def corrector_of(content: bytes) -> Corrector | None:
    """Of a bundle's decoder.onnx."""
    if native() is None:
        return None
    layers = synthesis_weights(content)
    try:
        return None if layers is None else Corrector(layers)
    except ValueError:  # layers of other sizes than the loops know
        return None


def ear_of(content: bytes, limit: int) -> Ear | None:
    """Of a bundle's encoder.onnx, whose results lie within +-limit."""
    if native() is None:
        return None
    layers = hyper_weights(content, limit)
    try:
        return None if layers is None else Ear(layers, limit)
    except ValueError:  # layers of other sizes than the loops know
        return None


def _whole(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype)


def _order(layers: Layers) -> tuple[NDArray[Any], ...]:
    first, first_bias, second, second_bias = layers
    return np.ascontiguousarray(first.reshape(len(first), -1)), first_bias, np.ascontiguousarray(second), second_bias


def accelerator_of(file: Callable[[str], bytes], spec: PlaneSpec, tables: Tables) -> Accelerator | None:
    """Of a bundle whose files `file` gives."""
    if native() is None or spec.hyper != ROOT or len(tables.frequencies) >= _TABLES or tables.scales < _SCALES:
        return None
    features = feature_weights(file(FEATURES), spec.hyper)
    networks = [subband_weights(file(name), number) for number, name in enumerate(GRAPHS)]
    chosen = [one for one in networks if one is not None]
    if features is None or len(chosen) != len(networks):
        return None
    try:
        return Accelerator(spec, tables, features, chosen)
    except ValueError:  # layers of other sizes than the loops know
        return None
