"""What an ONNX file of a bundle may hold: one graph of standard operators, with all its weights inside.

A runtime that is given a model believes it: a tensor may name another file for its bytes, relative to wherever the
process happens to be; an operator of a foreign domain is whatever code somebody has registered; a loop may run for
ever. `check_graph` reads the file's protobuf structure (not its weights) and refuses, with `BundleError`: external
data, in initialisers, constants, subgraphs and functions alike; operators outside ONNX's own domain; control flow
(so a graph does an amount of work that its shapes give); and whatever is no such protobuf, ORT's own format included.
It needs no onnx.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from downlink.errors import BundleError

DOMAINS: Final = frozenset({"", "ai.onnx"})
CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
DEPTH_MAX: Final = 16  # graphs in attributes of nodes in graphs …: without control flow there are none at all

_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5

# Message -> field number -> the message that the field holds. From onnx.proto3, whose numbers are for ever.
_FIELDS: Final = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14


def check_graph(content: bytes, what: str) -> None:
    """Raise `BundleError` unless `content` is a model that a bundle may hold. `what` names it in messages."""
    if content[4:8] == b"ORTM":
        raise BundleError(f"{what}: in ORT's own format; a bundle holds plain ONNX, export it again")
    found = _check(memoryview(content), "model", what, 0)
    if "graph" not in found:
        raise BundleError(f"{what}: no ONNX model, it has no graph; export the bundle again")


def _check(message: memoryview, kind: str, what: str, depth: int) -> set[str]:
    """Check one message and all that it holds; the kinds of messages found directly in it."""
    if depth > 3 * DEPTH_MAX:
        raise BundleError(f"{what}: messages nested deeper than {3 * DEPTH_MAX}; this is no model of ours")
    inside, found = _FIELDS[kind], set()
    for number, value in fields(message, what):
        if kind == "tensor" and (number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0)):
            raise BundleError(f"{what}: a tensor's data lie in another file; export the bundle with all weights inside")
        if not isinstance(value, memoryview):
            continue
        if kind == "node" and number == _NODE_OPERATOR and _text(value) in CONTROL_FLOW:
            raise BundleError(f"{what}: operator {_text(value)} is control flow, which a bundle's graph must not have")
        if kind == "node" and number == _NODE_DOMAIN and _text(value) not in DOMAINS:
            raise BundleError(f"{what}: an operator of domain {_text(value)!r}; only ONNX's own are allowed")
        if number in inside:
            found.add(inside[number])
            _check(value, inside[number], what, depth + 1)
    return found


def _text(value: memoryview) -> str:
    return bytes(value[:80]).decode(errors="replace")


def fields(message: memoryview, what: str) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, varint or bytes) of a protobuf message; fields of fixed size as 0."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at, what)
        number, kind = tag >> 3, tag & 7
        value: int | memoryview = 0
        if kind == _VARINT:
            value, at = _varint(message, at, what)
        elif kind == _LEN:
            size, at = _varint(message, at, what)
            value, at = message[at : at + size], at + size
        elif kind in (_I64, _I32):
            at += 8 if kind == _I64 else 4
        if number == 0 or kind not in (_VARINT, _I64, _LEN, _I32) or at > len(message):
            raise BundleError(f"{what}: no ONNX model, its protobuf is broken; copy the bundle again")
        yield number, value


def _varint(message: memoryview, at: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        octet = message[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
    raise BundleError(f"{what}: no ONNX model, its protobuf is broken; copy the bundle again")
