"""The integer networks as plain numbers, read out of their ONNX files without a runtime.

What computes them natively (`downlink.accelerator`) does one thing: the layers that `training.export` writes. So a file
is taken apart only if it says exactly that, operator by operator and constant by constant, with weights that are
integers within 8 bits; of any other file the functions here give None, and onnxruntime runs it.
`BundleError` for what is no ONNX file.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from downlink.dct import CHANNELS, ROOT_CHANNELS, SUBBANDS, subband
from downlink.graph import fields
from downlink.prior import MEANS, PREDICTED
from downlink.synthesis import SEEN_CHANNELS

_END: Final = 2**63 - 1
_SHIFT: Final = 6
_TYPES: Final = {1: "<f4", 7: "<i8"}
_LIMITS: Final = 127, 1 << 20
"""Of weights, of biases."""
_SHIFT_MOST: Final = 16


class Layers(NamedTuple):
    """Two layers: int8 weights (outputs, inputs) or (outputs, inputs, 3, 3), and int32 biases (outputs)."""

    first: NDArray[np.int8]
    first_bias: NDArray[np.int32]
    second: NDArray[np.int8]
    second_bias: NDArray[np.int32]


def subband_weights(content: bytes, number: int) -> Layers | None:
    """Of the network of subband `number`: hidden units, and the head."""
    program, weights = _read(content)
    if len(weights) != 4:
        return None
    inputs, hidden = weights[0].shape[1], weights[0].shape[0]
    seen = weights[2].shape[1] - hidden
    channels = ROOT_CHANNELS if number == 0 else subband(number).stop - subband(number).start
    wanted = [
        *_layer("known", (hidden, inputs, 1, 1), (hidden,), "", 0, 0, 255),
        f"Slice known [{-seen}] [{_END}] [1] [1]",
        "Concat n3 n4 axis=1",
        *_layer("n5", (channels + MEANS[number] + PREDICTED[number], hidden + seen, 1, 1),
                (channels + MEANS[number] + PREDICTED[number],), "", 6, -2047, 2047),
    ]  # fmt: skip
    if MEANS[number]:
        last = channels + MEANS[number]
        wanted += [
            f"Slice n9 [0] [{channels}] [1] [1]",
            "Clip n10 0.0 95.0",
            f"Slice n9 [{channels}] [{last}] [1] [1]",
            f"Slice n9 [{last}] [{_END}] [1] [1]",
            "Clip n13 0.0 31.0",
            "Concat n11 n12 n14 axis=1",
        ]
    else:
        wanted.append("Clip n9 0.0 95.0")
    return _layers(weights) if program == wanted else None


def feature_weights(content: bytes, hyper: int) -> Layers | None:
    """Of the network that turns hyper-latents into features, `hyper` latents to a hyper-latent."""
    program, weights = _read(content)
    if len(weights) != 4:
        return None
    coarse, latents = weights[0].shape[:2]
    fine = weights[2].shape[0]
    wanted = [
        "Mul hyper 8.0",
        *_layer("n0", (coarse, latents, 3, 3), (coarse,), " pads=[1, 1, 1, 1]", 1, 0, 255),
        *_layer("n4", (fine, coarse, 1, 1), (fine,), "", 5, 0, 255),
        f"DepthToSpace n8 blocksize={hyper} mode=CRD",
    ]
    return _layers(weights) if program == wanted else None


class HyperLayer(NamedTuple):
    """int8 weights (outputs, inputs, k, k) and int32 biases (outputs), in units of 2^-shift."""

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    shift: int


HyperLayers = tuple[HyperLayer, HyperLayer, HyperLayer]
_HEARD: Final = CHANNELS + 4 + len(SUBBANDS)


def hyper_weights(content: bytes, limit: int) -> HyperLayers | None:
    """Of the network that hyper-latents come from, whose results lie within +-limit: two layers with stride 2, and the
    last."""
    program, weights = _read(content)
    shifts = [_shift_of(line) for line in program if line.startswith("Mul ")]
    if len(weights) != 6 or len(shifts) != 3 or weights[0].shape[1:] != (_HEARD, 3, 3) or None in shifts:
        return None
    wide, middle, latents = (len(bias) for bias in weights[1::2])
    halving = " pads=[1, 1, 1, 1] strides=[2, 2]"
    first, second, last = (int(shift or 0) for shift in shifts)
    wanted = [
        *_layer("loudness", (wide, _HEARD, 3, 3), (wide,), halving, 0, 0, 255, first),
        *_layer("n3", (middle, wide, 3, 3), (middle,), halving, 4, 0, 255, second),
        *_layer("n7", (latents, middle, 1, 1), (latents,), "", 8, -limit, limit, last),
    ]
    if program != wanted or not all(_integers(array, _LIMITS[n % 2]) for n, array in enumerate(weights)):
        return None
    found = [
        HyperLayer(np.ascontiguousarray(weight, np.int8), np.ascontiguousarray(bias, np.int32), shift)
        for weight, bias, shift in zip(weights[::2], weights[1::2], (first, second, last), strict=True)
    ]
    return found[0], found[1], found[2]


class SynthesisLayers(NamedTuple):
    """The layer that is entered by, residual blocks of two layers, the last layer's weights and biases, and what one of
    its integers stands for (64)."""

    enter: HyperLayer
    blocks: tuple[tuple[HyperLayer, HyperLayer], ...]
    last: tuple[NDArray[np.int8], NDArray[np.int32]]
    size: NDArray[np.float32]


_TRUNK: Final = -2048, 2047
_UPPER: Final = 0.0625


def synthesis_weights(content: bytes) -> SynthesisLayers | None:
    """Of the synthesis' network."""
    program, weights = _read(content)
    residuals, rest = divmod(len(weights) - 5, 4)
    if rest or residuals < 1 or weights[-1].shape != (1, CHANNELS, 1, 1):
        return None
    width = len(weights[0])
    found: list[int] = []
    wanted = _layer("seen", (width, SEEN_CHANNELS, 1, 1), (width,), "", 0, *_TRUNK, _given(program, 1, found))
    trunk = 3
    for block in range(residuals):
        at = 4 + 11 * block
        wanted += [f"Mul n{trunk} {_UPPER}", f"Floor n{at}"]
        wanted += _layer(f"n{at + 1}", (width, width, 3, 3), (width,), " pads=[1, 1, 1, 1]", at + 2, 0, 255,
                         _given(program, at + 3, found))  # fmt: skip
        wanted += _layer(
            f"n{at + 5}", (width, width, 1, 1), (width,), "", at + 6, 0, 0, _given(program, at + 7, found)
        )[:3]
        wanted += [f"Add n{trunk} n{at + 8}", f"Clip n{at + 9} {float(_TRUNK[0])} {float(_TRUNK[1])}"]
        trunk = at + 10
    last = [
        f"Mul n{trunk} {_UPPER}",
        f"Floor n{trunk + 1}",
        f"Conv n{trunk + 2} ({CHANNELS}, {width}, 1, 1) ({CHANNELS},)",
    ]
    wanted += [*last, f"Mul n{trunk + 3} (1, {CHANNELS}, 1, 1)"]
    if program != wanted or not all(_integers(a, _LIMITS[n % 2]) for n, a in enumerate(weights[:-1])):
        return None
    layers = [
        HyperLayer(np.ascontiguousarray(weight, np.int8), np.ascontiguousarray(bias, np.int32), shift)
        for weight, bias, shift in zip(weights[:-1:2], weights[1:-1:2], (*found, 0), strict=True)
    ]
    blocks = tuple(zip(layers[1:-1:2], layers[2:-1:2], strict=True))
    size = np.ascontiguousarray(weights[-1].ravel(), np.float32)
    return SynthesisLayers(layers[0], blocks, layers[-1][:2], size)


def _given(program: list[str], line: int, found: list[int]) -> int:
    """The shift that a line of a program states, if it states one; added to those found."""
    shift = _shift_of(program[line]) if line < len(program) else None
    found.append(0 if shift is None else shift)
    return found[-1]


def _shift_of(line: str) -> int | None:
    """k of a node "Mul n 2^-k"; None if it is of another kind."""
    try:
        shift = -float(np.log2(float(line.split()[-1])))
    except ValueError:
        return None
    return int(shift) if 0 <= shift <= _SHIFT_MOST and shift == int(shift) else None


def _layer(
    source: str,
    weight: tuple[int, ...],
    bias: tuple[int, ...],
    attributes: str,
    first: int,
    low: int,
    high: int,
    shift: int = _SHIFT,
) -> list[str]:
    """A convolution of integers in units of 2^-shift, rounded down and clipped, whose nodes are numbered from
    `first`."""
    return [
        f"Conv {source} {weight} {bias}{attributes}",
        f"Mul n{first} {2.0**-shift}",
        f"Floor n{first + 1}",
        f"Clip n{first + 2} {float(low)} {float(high)}",
    ]


def _layers(weights: list[NDArray[Any]]) -> Layers | None:
    if not all(_integers(array, _LIMITS[number % 2]) for number, array in enumerate(weights)):
        return None
    first, first_bias, second, second_bias = weights
    return Layers(
        np.ascontiguousarray(first, np.int8),
        np.ascontiguousarray(first_bias, np.int32),
        np.ascontiguousarray(second.reshape(second.shape[:2]), np.int8),
        np.ascontiguousarray(second_bias, np.int32),
    )


def _integers(array: NDArray[Any], limit: int) -> bool:
    return bool(np.array_equal(array, np.rint(array)) and np.abs(array).max(initial=0) <= limit)


# ---- ONNX: field numbers are those of onnx.proto3


def _read(content: bytes) -> tuple[list[str], list[NDArray[Any]]]:
    """What a graph does, a line for each node: operator, inputs (results by the number of their node, weights by their
    shape, small constants by value) and attributes that are not the default; and its weights in the order of use."""
    what = "a network"
    graph = next((value for number, value in fields(memoryview(content), what) if number == 7), None)
    nodes: list[memoryview] = []
    known: dict[str, NDArray[Any]] = {}
    if isinstance(graph, memoryview):
        for number, value in fields(graph, what):
            if number == 1 and isinstance(value, memoryview):
                nodes.append(value)
            elif number == 5 and isinstance(value, memoryview):
                name, array = _tensor(value, what)
                known[name] = array
    program, weights, results = [], [], {}
    for place, node in enumerate(nodes):
        parts, attributes, operator = [], [], ""
        for number, value in fields(node, what):
            if number == 4:
                operator = _string(value)
            elif number == 5 and isinstance(value, memoryview):
                attributes.append(_attribute(value, what))
            elif number == 2:
                results[_string(value)] = f"n{place}"
            elif number == 1:
                name = _string(value)
                if name not in known:
                    parts.append(results.get(name, name))
                elif known[name].size > 1 or known[name].ndim > 1:
                    weights.append(known[name])
                    parts.append(str(known[name].shape))
                else:
                    parts.append(str(known[name].tolist()))
        program.append(" ".join([operator, *parts, *sorted(filter(None, attributes))]))
    return program, weights


def _tensor(message: memoryview, what: str) -> tuple[str, NDArray[Any]]:
    dims: list[int] = []
    name, kind, raw = "", 0, b""
    for number, value in fields(message, what):
        if number == 1:
            dims += [value] if isinstance(value, int) else _numbers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = _string(value)
        elif number == 9 and isinstance(value, memoryview):
            raw = bytes(value)
    dtype = np.dtype(_TYPES.get(kind, "V1"))
    if len(raw) != int(np.prod(dims)) * dtype.itemsize:  # of another type, or kept otherwise
        return name, np.zeros((0, 0), np.float32)
    return name, np.frombuffer(raw, dtype).reshape(dims)


def _attribute(message: memoryview, what: str) -> str:
    """name=value; empty where it says nothing: the default."""
    name, value = "", ""
    several: list[int] = []
    for number, found in fields(message, what):
        if number == 1:
            name = _string(found)
        elif number == 3 and isinstance(found, int):
            value = str(found)
        elif number == 4:
            value = _string(found)
        elif number == 8:
            several += _numbers(found) if isinstance(found, memoryview) else [found]
            value = str(several)
    defaults = {("group", "1"), ("auto_pad", "NOTSET"), ("strides", "[1, 1]"), ("dilations", "[1, 1]")}
    defaults |= {("pads", "[0, 0, 0, 0]"), ("kernel_shape", "[1, 1]"), ("kernel_shape", "[3, 3]")}
    return "" if (name, value) in defaults else f"{name}={value}"


def _numbers(packed: memoryview) -> list[int]:
    out: list[int] = []
    number = shift = 0
    for octet in packed:
        number |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            out.append(number)
            number = shift = 0
    return out


def _string(value: int | memoryview) -> str:
    return bytes(value).decode(errors="replace") if isinstance(value, memoryview) else ""
