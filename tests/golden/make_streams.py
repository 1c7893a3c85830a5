"""Write a golden stream per released bundle: `python tests/golden/make_streams.py`, when a bundle is released.

`streams/NAME-ID.dl` is a small scene coded with that bundle, the `.json` beside it what it decodes to
(`decoder_node.digest`). A pair that exists is never touched: what has been written once must decode to the same, on
every machine, as long as its bundle is released. Streams made otherwise (another method, another maker) may lie
anywhere under tests/golden, with or without such a `.json`: the tests find every `*.dl`.
"""

from __future__ import annotations

import json
from pathlib import Path

from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests
from downlink import bundle
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import scenes

FOLDER = Path(__file__).parent / "streams"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    pixels = scenes.pixels(seed=64, bands=3, height=270, width=140)  # two tiles, the second a sliver; a nodata corner
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


if __name__ == "__main__":
    main()
