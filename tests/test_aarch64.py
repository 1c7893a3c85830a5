"""Streams decode bit-exactly on aarch64: our own code there, under qemu, against this machine. See docs/conformance.md.

Skipped where the rig (tests/aarch64.py) has not been fetched; a test run itself fetches nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests
from downlink.bundle import find, find_id, released_names
from downlink.errors import BundleError
from downlink.selftest import SelfTest
from downlink.stream import StreamReader
from tests import scenes
from tests.aarch64 import NoRig, Rig
from tests.nodes import run
from training.conformance import Setting, prove

pytestmark = pytest.mark.aarch64

GOLDEN = Path(__file__).parent / "golden"
PIXELS_DIFFER_MAX = 1
"""In units of the scene's pixels: the synthesis is in floats, so a value beside a rounding boundary may cross it."""


@pytest.fixture(scope="module")
def rig() -> Rig:
    try:
        return Rig.find()
    except NoRig as missing:
        pytest.skip(str(missing))


def there(rig: Rig, *arguments: str | Path) -> str:
    """What `python ARGUMENTS...` prints on aarch64."""
    done = rig.run(arguments)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def read(path: Path) -> tuple[list[dict[str, Any]], np.ndarray[Any, Any]]:
    """Digests of a stream, and pixels (bands, height, width) of its first grid, on this machine."""
    with path.open("rb") as file:
        reader = StreamReader(file)
        decoder = None if reader.manifest.exact else PlaneDecoder(find_id(reader.manifest.bundle))
        rows = [row.pixels for row in decode_rows(reader.manifest, reader.chunk, decoder) if row.grid == 0]
        return grid_digests(reader.manifest, reader.chunk, decoder), np.concatenate(rows, axis=1)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the rig is for x86-64")
def test_a_machine_that_cannot_have_the_rig_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOWNLINK_CACHE", str(tmp_path))
    with pytest.raises(NoRig, match=rf"no aarch64 rig at {tmp_path}/.*; fetch it with: make rig"):
        Rig.find()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoRig, match="apt-get is not on this machine"):
        Rig.fetch()
    failing = tmp_path / "apt-get"
    failing.write_text("#!/bin/sh\necho E: nothing answers >&2\nexit 100\n")
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoRig, match="apt-get failed: E: nothing answers"):
        Rig.fetch()
    assert list(tmp_path.joinpath("latent-downlink").iterdir()) == []  # half a rig is none


def test_the_machine_there_is_another(rig: Rig) -> None:
    assert platform.machine() == "x86_64"
    assert there(rig, "-c", "import platform; print(platform.machine())") == "aarch64\n"


GOLDEN_PAYLOADS = """
import hashlib, json, sys
import numpy as np
from downlink.symbol import SymbolDecoder, SymbolEncoder
from downlink.table import Tables
for path in sys.argv[1:]:
    case = json.load(open(path))
    tables, payload = Tables.unpack(bytes.fromhex(case["tables"])), bytes.fromhex(case["payload"])
    decoder, encoder, digest = SymbolDecoder(tables, payload), SymbolEncoder(tables), hashlib.sha256()
    for segment in case["segments"]:
        index, mean = np.array(segment["index"], np.uint8), np.array(segment["mean"], np.int32)
        values = decoder.take(index, mean)
        encoder.add(values, index, mean)
        digest.update(values.astype("<i4").tobytes())
    decoder.close()
    print(digest.hexdigest(), encoder.finish(case["lanes"]) == payload)
"""


def test_golden_payloads_give_the_same_symbols_and_bytes(rig: Rig) -> None:
    paths = sorted(GOLDEN.rglob("symbols-*.json"))
    assert paths
    expected = ""
    for path in paths:
        segments = json.loads(path.read_text())["segments"]
        values = b"".join(np.array(segment["values"], "<i4").tobytes() for segment in segments)
        expected += f"{hashlib.sha256(values).hexdigest()} True\n"
    assert there(rig, "-c", GOLDEN_PAYLOADS, *paths) == expected


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("*.dl")), ids=lambda path: path.stem)
def test_golden_streams_give_the_same_hashes(rig: Rig, path: Path) -> None:
    """Symbols of streams coded by planes, pixels of all others."""
    try:
        with path.open("rb") as file:
            manifest = StreamReader(file).manifest
            if not manifest.exact:
                find_id(manifest.bundle, needs="decoder.onnx")
    except BundleError as missing:
        pytest.skip(f"its bundle is released no more: {missing}")
    assert json.loads(there(rig, "-m", "decoder_node.digest", path))["grids"] == read(path)[0]


SELF_TEST = """
import sys
from downlink.bundle import find
from downlink.errors import BundleError
from downlink import selftest
from decoder_node.decoder import PlaneDecoder
from encoder_node.encoder import PlaneEncoder
import msgspec
for node in (PlaneDecoder(find(sys.argv[1])), PlaneEncoder(find(sys.argv[1]))):
    packed = node.bundle.file("selftest.json")
    test = msgspec.json.decode(packed, type=selftest.SelfTest)
    print(selftest.answer(node.spec, node.tables, node.prior, test.seed, test.planes, test.size))
    try:
        spoilt = packed.replace(test.sha256[:8].encode(), b"00000000")
        selftest.check(node.spec, node.tables, node.prior, spoilt, "other")
    except BundleError:
        print("refused")
"""


@pytest.mark.parametrize("name", released_names())
def test_released_bundles_pass_their_self_test(rig: Rig, name: str) -> None:
    stated = msgspec.json.decode(find(name).file("selftest.json"), type=SelfTest).sha256
    assert there(rig, "-c", SELF_TEST, name) == f"{stated}\nrefused\n" * 2


PROVE = """
import json, sys
from downlink.bundle import find
from training.conformance import Setting, prove
settings = [Setting(*pair) for pair in json.loads(sys.argv[2])]
print(json.dumps(prove(find(sys.argv[1]), 60_000, settings, side=8)))
"""


@pytest.mark.parametrize("name", released_names())
def test_the_prior_answers_there_as_here(rig: Rig, name: str) -> None:
    """One hash over symbols, scale indices and means, with no graph optimisation and with all of it and 2 threads."""
    settings = [Setting(1, "ORT_DISABLE_ALL"), Setting(2, "ORT_ENABLE_ALL")]
    here = prove(find(name), 60_000, settings, side=8)
    found = json.loads(there(rig, "-c", PROVE, name, json.dumps(settings)))
    assert found["agree"]
    assert here["agree"]
    assert (found["sha256"], found["symbols"]) == (here["sha256"], here["symbols"])
    assert (found["on"]["machine"], here["on"]["machine"]) == ("aarch64", "x86_64")


DECODE = """
import json, sys
import numpy as np
from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests
from downlink.bundle import find_id
from downlink.stream import StreamReader
reader = StreamReader(open(sys.argv[1], "rb"))
decoder = PlaneDecoder(find_id(reader.manifest.bundle))
np.save(sys.argv[2], np.concatenate([row.pixels for row in decode_rows(reader.manifest, reader.chunk, decoder)], 1))
print(json.dumps(grid_digests(reader.manifest, reader.chunk, decoder)))
"""

ENCODE = """
import hashlib, sys
from encoder_node import cli
from encoder_node.encoder import PlaneEncoder
digest, real = hashlib.sha256(), PlaneEncoder.decide
def overheard(self, planes, code, cores, measures=True):
    found = real(self, planes, code, cores, measures)
    if measures:
        return found  # only tried
    for number in range(len(cores)):
        symbols = found.symbols(number)
        for part in (symbols.hyper, symbols.root, symbols.latent):
            digest.update(part.astype("<i4").tobytes())
    return found
PlaneEncoder.decide = overheard
cli.main(["encode", *sys.argv[1:]], standalone_mode=False)
print(digest.hexdigest())
"""
"""`encoder-node encode`, and the hash of the symbols that it has put into the stream."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles with a nodata corner."""
    path = tmp_path_factory.mktemp("aarch64") / "scene.npy"
    np.save(path, scenes.pixels(seed=5, bands=3, height=270, width=100))
    path.with_name("scene.npy.json").write_text('{"nodata": 0}')
    return path


def check_pixels(here: np.ndarray[Any, Any], found: np.ndarray[Any, Any], record: Any) -> None:
    """Equal but for the last bit of the synthesis; nodata exactly so."""
    assert (found.shape, found.dtype) == (here.shape, here.dtype)
    assert np.array_equal(found == 0, here == 0)
    difference = np.abs(found.astype(np.int64) - here)
    record("largest pixel difference", int(difference.max()))
    record("share of pixels that differ", float(np.count_nonzero(difference) / difference.size))
    print(f"pixels that differ: {np.count_nonzero(difference)} of {difference.size}, by {difference.max()} at most")
    assert difference.max() <= PIXELS_DIFFER_MAX


def test_a_stream_made_here_decodes_there(rig: Rig, scene: Path, record_property: Any) -> None:
    stream, pixels = scene.with_name("here.dl"), scene.with_name("there.npy")
    done = run("encoder_node", "encode", scene, stream)
    assert done.returncode == 0, done.stderr
    digests, here = read(stream)
    assert json.loads(there(rig, "-c", DECODE, stream, pixels)) == digests
    check_pixels(here, np.load(pixels), record_property)


def test_a_stream_made_there_decodes_here(rig: Rig, scene: Path) -> None:
    stream = scene.with_name("made-there.dl")
    symbols = there(rig, "-c", ENCODE, scene, stream).split()[-1]
    (digest,), pixels = read(stream)
    assert digest["sha256"] == symbols
    original = np.load(scene)
    assert np.array_equal(pixels == 0, original == 0)
    error = np.sqrt(((pixels.astype(float) - original) ** 2)[original != 0].mean())
    assert error < 200, "what came back is not the scene"


EXACT = """
import sys
from encoder_node import cli
cli.main(["encode", *sys.argv[1:], "--max-error", "0"], standalone_mode=False)
"""


def test_an_exact_stream_made_there_gives_every_pixel_back_here(rig: Rig, tmp_path: Path) -> None:
    """Its rules are fitted in floats there; what is coded is integers, so nothing may differ."""
    path, stream = tmp_path / "small.npy", tmp_path / "exact.dl"
    np.save(path, scenes.pixels(seed=6, bands=2, height=48, width=40))
    path.with_name("small.npy.json").write_text('{"nodata": 0}')
    there(rig, "-c", EXACT, path, stream)
    (digest,), pixels = read(stream)
    assert np.array_equal(pixels, np.load(path))
    assert json.loads(there(rig, "-m", "decoder_node.digest", stream))["grids"] == [digest]
