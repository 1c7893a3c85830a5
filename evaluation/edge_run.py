"""Encodes a file as a board would, with nothing loaded but what a board has, and says what that took, as JSON:

    python -m evaluation.edge_run SCENE.npy --model universal --quality 40 --threads 1 --runs 1

`import_s`, `load_s` (bundle, sessions, self-test) and `first_s` (the first scene) are seconds of the clock since the
interpreter began to run this file; `runs` are [processor seconds, seconds] of encodings after the first one.
"""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()

import argparse  # noqa: E402
import hashlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402

from downlink import bundle  # noqa: E402
from downlink.accelerator import native  # noqa: E402
from encoder_node.encoder import PlaneEncoder  # noqa: E402
from encoder_node.pipeline import encode_scene  # noqa: E402
from encoder_node.source import open_source  # noqa: E402
from encoder_node.target import Target  # noqa: E402
from evaluation import memory  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scene")
    parser.add_argument("--model", default="universal")
    parser.add_argument("--quality", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=0)
    options = parser.parse_args()
    imported = time.perf_counter()
    encoder = PlaneEncoder(bundle.find(options.model), options.threads)
    loaded = time.perf_counter()
    memory.restart_peak()
    before = memory.peak_mb()
    payload, _ = encode(encoder, options.scene, options.quality)
    first = time.perf_counter()
    peak = memory.peak_mb()
    runs = [encode(encoder, options.scene, options.quality)[1] for _ in range(options.runs)]
    found = {
        "native": native(),
        "import_s": imported - _BEGAN,
        "load_s": loaded - imported,
        "first_s": first - loaded,
        "rss_before_mb": before,
        "peak_rss_mb": peak,
        "bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "runs": runs,
    }
    print(json.dumps(found))


def encode(encoder: PlaneEncoder, scene: str, quality: float) -> tuple[bytes, tuple[float, float]]:
    """The stream, and the processor seconds and seconds that it took, reading and writing included."""
    clock, cpu = time.perf_counter(), time.process_time()
    file = io.BytesIO()
    source = open_source(scene)
    with encode_scene(source, encoder, Target(quality=quality)) as encoded:
        encoded.write(file)
    source.close()
    return file.getvalue(), (time.process_time() - cpu, time.perf_counter() - clock)


if __name__ == "__main__":
    main()
