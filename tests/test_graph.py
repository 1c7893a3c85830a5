"""What an ONNX file may hold: real models made with onnx, and broken ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pip install 'latent-downlink[training]'")
from onnx import TensorProto, helper, numpy_helper

from downlink import bundle
from downlink.bundle import Bundle
from downlink.errors import BundleError
from downlink.graph import check_graph


def model(*nodes: Any, initializers: tuple[Any, ...] = (), domains: tuple[str, ...] = ("",)) -> Any:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    graph = helper.make_graph(list(nodes) or [ADD], "g", [value], [out], list(initializers) or [WEIGHT])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 17) for domain in domains])


ADD = helper.make_node("Add", ["x", "w"], ["y"])
WEIGHT = numpy_helper.from_array(np.ones(1, np.float32), "w")


def external(name: str = "w") -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def subgraph() -> Any:
    out = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Constant", [], ["c"], value=external())], "inner", [], [out])


def with_function() -> Any:
    made = model()
    node = helper.make_node("Constant", [], ["c"], value=external())
    made.functions.append(helper.make_function("own", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))
    return made


def sparse() -> Any:
    made = model()
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    made.graph.sparse_initializer.add(values=external(), indices=indices, dims=[9])
    return made


def only_keys() -> Any:
    """external_data without data_location: a runtime may look at either."""
    tensor = external()
    tensor.data_location = TensorProto.DEFAULT
    return model(initializers=(tensor,))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an initialiser": (lambda: model(initializers=(external(),)), "data lie in another file"),
    "its keys alone": (only_keys, "data lie in another file"),
    "a constant": (lambda: model(helper.make_node("Constant", [], ["y"], value=external())), "in another file"),
    "tensors of a node": (lambda: model(helper.make_node("Add", ["x", "w"], ["y"], odd=[external()])), "another file"),
    "a graph in an attribute": (lambda: model(helper.make_node("Add", ["x", "w"], ["y"], odd=subgraph())), "another"),
    "a function": (with_function, "in another file"),
    "a sparse initialiser": (sparse, "in another file"),
    "a foreign operator": (lambda: model(helper.make_node("Add", ["x", "w"], ["y"], domain="evil")), "domain 'evil'"),
    "a loop": (lambda: model(helper.make_node("Loop", ["x", "w"], ["y"])), "Loop is control flow"),
    "a branch": (lambda: model(helper.make_node("If", ["x"], ["y"])), "If is control flow"),
}


def test_a_self_contained_model_of_standard_operators_passes() -> None:
    check_graph(model().SerializeToString(), "a.onnx")
    check_graph(model(helper.make_node("Add", ["x", "w"], ["y"], domain="ai.onnx")).SerializeToString(), "a.onnx")


@pytest.mark.parametrize("name", bundle.released_names())
def test_the_released_models_pass(name: str) -> None:
    found = bundle.find(name)
    models = [file for file in found.files if file.endswith(".onnx")]
    assert models
    for file in models:
        check_graph(found.file(file), file)


@pytest.mark.parametrize("name", REFUSED)
def test_what_reaches_beyond_the_file_is_refused(name: str) -> None:
    make, match = REFUSED[name]
    with pytest.raises(BundleError, match=match):
        check_graph(make().SerializeToString(), "a.onnx")


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing", b"\x08\x01", b"\x1c\x00\x00\x00ORTM" + bytes(100), b"\x3a\xff\xff\xff\xff\x0f", b"\x00\x00",
     b"\xff" * 30, b"\x3a\x01"],
)  # fmt: skip
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"no ONNX model|ORT's own"):
        check_graph(content, "a.onnx")


def test_deep_nesting_is_refused_before_python_is_exhausted() -> None:
    graph = b""
    for _ in range(5000):
        attribute = b"\x32" + _length(graph) + graph  # AttributeProto.g
        node = b"\x2a" + _length(attribute) + attribute
        graph = b"\x0a" + _length(node) + node
    with pytest.raises(BundleError, match="nested deeper"):
        check_graph(b"\x3a" + _length(graph) + graph, "a.onnx")


def _length(content: bytes) -> bytes:
    size, out = len(content), bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


def test_no_cut_of_a_model_raises_anything_else() -> None:
    whole = model(initializers=(WEIGHT, external("v"))).SerializeToString()
    for end in range(len(whole)):
        with pytest.raises(BundleError):
            check_graph(whole[:end], "a.onnx")


def test_a_bundle_hands_out_no_model_with_external_data(tmp_path: Path) -> None:
    """With the right hash in bundle.json: the hash says who wrote it, not what it does."""
    content = model(initializers=(external(),)).SerializeToString()
    (tmp_path / "decoder.onnx").write_bytes(content)
    files = {"decoder.onnx": hashlib.sha256(content).hexdigest()}
    stated = {"format": 1, "name": "evil", "version": "1", "kind": "planes", "files": files, "parameters": {}}
    (tmp_path / "bundle.json").write_text(json.dumps(stated))
    with pytest.raises(BundleError, match=r"bundle evil: decoder\.onnx: a tensor's data lie in another file"):
        Bundle.read(tmp_path).file("decoder.onnx")
