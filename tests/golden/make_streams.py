"""Write golden streams, one per released bundle and two of the exact method, when a bundle is released:

    python -m tests.golden.make_streams

`streams/NAME-ID.dl` is a small scene coded with that bundle, the `.json` beside it what it decodes to
(`decoder_node.digest`). A pair that exists is never touched: what has been written once must decode to the same, on
every machine, as long as its bundle is released. Streams made otherwise (another method, another maker) may lie
anywhere under tests/golden, with or without such a `.json`: the tests find every `*.dl`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests
from downlink import bundle
from downlink.scene import Scene
from encoder_node.encoder import PlaneEncoder
from encoder_node.exact import encode_exact
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import scenes

FOLDER = Path(__file__).parent / "streams"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for bound in (0, 10):
        exact(bound)
    pixels = scenes.pixels(seed=64, bands=3, height=270, width=650)  # tiles, some of them slivers; a nodata corner
    for name in bundle.released_names():
        found = bundle.find(name)
        path = FOLDER / f"{found.name}-{found.id.hex()[:12]}.dl"
        if path.exists():
            print(f"{path} exists and stays as it is")
            continue
        scene = scenes.scene(pixels, name="golden")
        with encode_scene(ArraySource(scene, pixels), PlaneEncoder(found), Target(quality=50)) as encoded:
            with path.open("wb") as file:
                encoded.write(file)
            grids = grid_digests(encoded.manifest, encoded.chunk, PlaneDecoder(found))
        path.with_suffix(".json").write_text(json.dumps({"bundle": found.id.hex(), "grids": grids}) + "\n")
        print(f"{path}: {path.stat().st_size} bytes")


def exact(max_error: int) -> None:
    """Everything that the exact method does: several tiles, nodata in some bands, bands that repeat in cells, that are
    resampled askew and that have few values, noise, a constant part, a second grid of another dtype."""
    path = FOLDER / f"exact-{max_error}.dl"
    if path.exists():
        print(f"{path} exists and stays as it is")
        return
    random = np.random.default_rng(7)
    one = scenes.pixels(seed=65, bands=9, height=260, width=64)
    one[3] = scenes.repeated(one[3], 2)
    one[4] = scenes.repeated(one[4], 6, 1, 4)
    for band in (5, 6, 8):  # 20 m pixels, resampled to the nearest on a grid that is turned a little
        rows, cols = np.mgrid[:260, :64]
        one[band] = one[band, (rows / 2.1 + cols / 30).astype(int), (cols / 2.2 + rows / 80).astype(int)]
    one[7] = np.cumsum(random.integers(40, 90, 256))[one[7] // 17 % 256]
    one[0, 30:80, :20] = random.integers(0, 65536, (50, 20))
    one[1, 100:120] = 0
    one[2, :, 50:] = 1234
    other = scenes.pixels(seed=66, bands=2, height=45, width=33, dtype="int16", nodata=None) - np.int16(1500)
    grids = scenes.scene(one).grids + scenes.scene(other, nodata=None).grids
    with encode_exact(scenes.GridsSource([one, other], Scene("golden", grids)), max_error, {}) as encoded:
        with path.open("wb") as file:
            encoded.write(file)
        digests = grid_digests(encoded.manifest, encoded.chunk, None)
    path.with_suffix(".json").write_text(json.dumps({"bundle": None, "grids": digests}) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
