"""What a bundle's graphs cost, each by itself: parameters, multiplications, and time in onnxruntime.

Counted from what onnxruntime says that it ran, node by node, with graph optimisation off: no other library is needed,
so it works on board. A multiplication (MAC) is one of a convolution, matrix product or dense layer.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from downlink.accelerator import SWITCH
from downlink.bundle import Bundle
from downlink.graph import fields
from encoder_node.encoder import PlaneEncoder
from evaluation.edge_run import encode

SIDE: Final = 32
"""Latents a side of a tile of 256 px."""
PLANES: Final = 8
RUNS: Final = 7


def graphs(bundle: Bundle) -> list[dict[str, Any]]:
    """One entry per graph that is there."""
    return [
        graph(bundle.file(name), name) for name in sorted(bundle.files) if name.endswith(".onnx") and bundle.has(name)
    ]


def work(bundle: Bundle, pixels: NDArray[Any], quality: float) -> dict[str, float]:
    """Multiplications a sample that each graph takes to encode a picture (bands, height, width), in thousands: counted
    from the positions that the encoder asks it about, trials of front ends included."""
    asked: Counter[str] = Counter()
    per_position: dict[str, float] = {}

    class Counting(PlaneEncoder):
        def _run(self, name: str, inputs: dict[str, NDArray[np.float32]]) -> list[Any]:
            asked[name] += _positions(inputs)
            return super()._run(name, inputs)

    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder) / "scene.npy"
        np.save(scene, pixels)
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = "0"  # the native loops do the same and ask nobody
        try:
            encoder = Counting(bundle)
            asked.clear()  # the self-test
            encode(encoder, str(scene), quality)
        finally:
            os.environ.pop(SWITCH) if before is None else os.environ.update({SWITCH: before})
    for name in asked:
        inputs = given(bundle.file(name))
        per_position[name] = sum(map(_macs, _nodes(bundle.file(name), inputs))) / _positions(inputs)
    return {name: asked[name] * per_position[name] / 1e3 / pixels.size for name in sorted(asked)}


def _positions(inputs: dict[str, NDArray[np.float32]]) -> int:
    first = next(iter(inputs.values()))
    return len(first) * math.prod(first.shape[2:])


def graph(content: bytes, name: str) -> dict[str, Any]:
    """Figures of one graph: `macs` are of the inputs' shapes that are stated."""
    inputs = given(content)
    nodes = _nodes(content, inputs)
    macs = sum(map(_macs, nodes))
    seconds = timed(content, inputs)
    return {
        "name": name,
        "bytes": len(content),
        "parameters": _parameters(content),
        "shapes": {key: list(value.shape) for key, value in inputs.items()},
        "macs": macs,
        "ms": 1e3 * seconds,
        "gmac_per_s": macs / seconds / 1e9,
    }


def given(content: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs of a tile's size; the same name of a dimension is the same size."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    made = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else PLANES if at == 0 else SIDE for at, size in enumerate(value.shape)]
        made[value.name] = np.rint(random.normal(scale=3, size=shape)).astype(np.float32)
    return made


def timed(content: bytes, inputs: dict[str, Any], threads: int = 1) -> float:
    """Median processor seconds of a run with one thread, else seconds of the clock."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    clock = time.process_time if threads == 1 else time.perf_counter
    taken = []
    for run in range(RUNS + 1):
        start = clock()
        session.run(None, inputs)
        if run:
            taken.append(clock() - start)
    return max(statistics.median(taken), 1e-9)


def eight_bits(content: bytes) -> dict[str, Any]:
    """Milliseconds of a run in float32, and with weights and activations in 8 bits as onnxruntime quantises them; why
    not, where that needs what is not installed."""
    try:
        from onnxruntime import quantization
    except ImportError as error:
        return {"missing": f"onnxruntime quantises graphs with the package {error.name}, which is not installed"}
    inputs = given(content)

    class Once(quantization.CalibrationDataReader):  # type: ignore[misc]
        """The inputs themselves: what is measured is time."""

        def __init__(self) -> None:
            self._left = [inputs]

        def get_next(self) -> dict[str, Any] | None:
            return self._left.pop() if self._left else None

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(content)
        logging.disable(logging.WARNING)  # it recommends a step that these graphs do not need
        try:
            quantization.quantize_static(before, after, Once(), per_channel=True)
        finally:
            logging.disable(logging.NOTSET)
        quantised = after.read_bytes()
    return {
        "float32_ms": 1e3 * timed(content, inputs),
        "int8_ms": 1e3 * timed(quantised, inputs),
        "float32_bytes": len(content),
        "int8_bytes": len(quantised),
    }


def _nodes(content: bytes, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """What onnxruntime ran: operator and shapes of each node."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    return [event["args"] for event in events if "output_type_shape" in event.get("args", {})]


def _macs(node: dict[str, Any]) -> int:
    sources = [shape for one in node["input_type_shape"] for shape in one.values()]
    output = next(shape for one in node["output_type_shape"] for shape in one.values())
    kind = node["op_name"]
    if kind == "Conv":
        return math.prod(output) * math.prod(sources[1][1:])
    if kind == "ConvTranspose":
        return math.prod(sources[0]) * math.prod(sources[1][1:])
    if kind in ("MatMul", "Gemm"):
        return math.prod(output) * sources[0][-1]
    return 0


def _parameters(content: bytes) -> int:
    """Elements of all floating-point weights, from the file's own structure: every tensor of a graph that is one."""
    count = 0
    for number, value in fields(memoryview(content), "graph"):
        if number != 7 or not isinstance(value, memoryview):  # ModelProto.graph
            continue
        for inner, tensor in fields(value, "graph"):
            if inner == 5 and isinstance(tensor, memoryview):  # GraphProto.initializer
                count += _elements(tensor)
    return count


def _elements(tensor: memoryview) -> int:
    dims: list[int] = []
    for number, value in fields(tensor, "tensor"):
        if number == 1:  # TensorProto.dims, packed or not
            dims += list(_varints(value)) if isinstance(value, memoryview) else [value]
    return math.prod(dims)


def _varints(packed: memoryview) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in packed:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value = shift = 0
    return found


def gemm_gmac_per_s(side: int = 1024, runs: int = 5) -> float:
    """Multiplications a second of the fastest of some float32 matrix products in numpy, in thousand millions: what this
    core can do at best. With OPENBLAS_NUM_THREADS=1 it is one core's."""
    one = np.random.default_rng(0).random((side, side), np.float32)
    out, best = np.empty_like(one), math.inf
    for _ in range(runs):
        start = time.process_time()
        np.matmul(one, one, out=out)
        best = min(best, time.process_time() - start)
    return side**3 / max(best, 1e-9) / 1e9
