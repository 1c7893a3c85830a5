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


EMULATED = """
import hashlib, json, sys, traceback
import msgspec
import numpy as np
from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from decoder_node.digest import grid_digests
from downlink import selftest
from downlink.bundle import find, find_id
from downlink.errors import BundleError
from downlink.stream import StreamReader
from downlink.symbol import SymbolEncoder
from downlink.symbol_decoder import SymbolDecoder
from downlink.table import Tables
from encoder_node import cli
from encoder_node.encoder import PlaneEncoder
from training.conformance import Setting, prove

def payload(path):
    case = json.load(open(path))
    tables, payload = Tables.unpack(bytes.fromhex(case["tables"])), bytes.fromhex(case["payload"])
    decoder, encoder, digest = SymbolDecoder(tables, payload), SymbolEncoder(tables), hashlib.sha256()
    for segment in case["segments"]:
        index, mean = np.array(segment["index"], np.uint8), np.array(segment["mean"], np.int32)
        values = decoder.take(index, mean)
        encoder.add(values, index, mean)
        digest.update(values.astype("<i4").tobytes())
    decoder.close()
    return [digest.hexdigest(), encoder.finish(case["lanes"]) == payload]

def stream(path, pixels=None):
    with open(path, "rb") as file:
        reader = StreamReader(file)
        decoder = None if reader.manifest.exact else PlaneDecoder(find_id(reader.manifest.bundle))
        if pixels:
            rows = [row.pixels for row in decode_rows(reader.manifest, reader.chunk, decoder)]
            np.save(pixels, np.concatenate(rows, axis=1))
        return grid_digests(reader.manifest, reader.chunk, decoder)

def self_test(name):
    found = []
    for node in (PlaneDecoder(find(name)), PlaneEncoder(find(name))):
        packed = node.bundle.file("selftest.json")
        test = msgspec.json.decode(packed, type=selftest.SelfTest)
        found.append(selftest.answer(node.spec, node.tables, node.prior, test.seed, test.planes, test.size))
        try:
            spoilt = packed.replace(test.sha256[:8].encode(), b"00000000")
            selftest.check(node.spec, node.tables, node.prior, spoilt, "other")
        except BundleError:
            found.append("refused")
    return found

def proof(name, settings):
    return prove(find(name), 24_000, [Setting(*pair) for pair in settings], side=8)

def encode(*arguments):
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
    cli.main(["encode", *arguments], standalone_mode=False)
    PlaneEncoder.decide = real
    return digest.hexdigest()

found = {}
for name, (action, *arguments) in json.load(open(sys.argv[1])).items():
    try:
        found[name] = {"found": globals()[action](*arguments)}
    except BaseException:
        found[name] = {"failed": traceback.format_exc()}
json.dump(found, open(sys.argv[2], "w"))
"""
"""Everything that is asked of the machine there, in one process: starting one under qemu takes longer than most
answers. `encode` is `encoder-node encode` and gives the hash of the symbols that it has put into the stream."""

SETTINGS = [(1, "ORT_DISABLE_ALL"), (2, "ORT_ENABLE_ALL")]


def streams() -> list[Path]:
    """The golden ones whose bundles are still released."""
    found = []
    for path in sorted(GOLDEN.rglob("*.dl")):
        with path.open("rb") as file:
            manifest = StreamReader(file).manifest
        try:
            if not manifest.exact:
                find_id(manifest.bundle, needs="decoder.onnx")
        except BundleError:
            continue
        found.append(path)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles with a nodata corner, a stream of them made here, and a small scene."""
    made = tmp_path_factory.mktemp("aarch64")
    np.save(made / "scene.npy", scenes.pixels(seed=5, bands=3, height=270, width=100))
    np.save(made / "small.npy", scenes.pixels(seed=6, bands=2, height=48, width=40))
    for name in ("scene", "small"):
        (made / f"{name}.npy.json").write_text('{"nodata": 0}')
    done = run("encoder_node", "encode", made / "scene.npy", made / "here.dl")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def answers(rig: Rig, folder: Path) -> dict[str, Any]:
    """What the machine there has found, by question: {"found": ...} or {"failed": its traceback}."""
    asked: dict[str, list[Any]] = {f"stream {path.name}": ["stream", str(path)] for path in streams()}
    asked |= {f"payload {path.name}": ["payload", str(path)] for path in sorted(GOLDEN.rglob("symbols-*.json"))}
    for name in released_names():
        asked |= {f"self-test {name}": ["self_test", name], f"proof {name}": ["proof", name, SETTINGS]}
    at = {name: str(folder / name) for name in ("here.dl", "there.npy", "there.dl", "scene.npy", "small.npy")}
    exact = str(folder / "exact.dl")
    asked |= {
        "decode": ["stream", at["here.dl"], at["there.npy"]],
        "encode": ["encode", at["scene.npy"], at["there.dl"]],
        "encode exactly": ["encode", at["small.npy"], exact, "--max-error", "0"],
        "decode exactly": ["stream", exact],
    }
    (folder / "asked.json").write_text(json.dumps(asked))
    there(rig, "-c", EMULATED, folder / "asked.json", folder / "found.json")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert found.keys() == asked.keys()
    return found


def answer(answers: dict[str, Any], name: str) -> Any:
    assert "found" in answers[name], answers[name]["failed"]
    return answers[name]["found"]


def test_golden_payloads_give_the_same_symbols_and_bytes(answers: dict[str, Any]) -> None:
    paths = sorted(GOLDEN.rglob("symbols-*.json"))
    assert paths
    for path in paths:
        segments = json.loads(path.read_text())["segments"]
        values = b"".join(np.array(segment["values"], "<i4").tobytes() for segment in segments)
        assert answer(answers, f"payload {path.name}") == [hashlib.sha256(values).hexdigest(), True]


@pytest.mark.parametrize("path", streams(), ids=lambda path: path.stem)
def test_golden_streams_give_the_same_hashes(answers: dict[str, Any], path: Path) -> None:
    """Symbols of streams coded by planes, pixels of all others."""
    assert answer(answers, f"stream {path.name}") == read(path)[0]


@pytest.mark.parametrize("name", released_names())
def test_released_bundles_pass_their_self_test(answers: dict[str, Any], name: str) -> None:
    stated = msgspec.json.decode(find(name).file("selftest.json"), type=SelfTest).sha256
    assert answer(answers, f"self-test {name}") == [stated, "refused"] * 2


@pytest.mark.parametrize("name", released_names())
def test_the_prior_answers_there_as_here(answers: dict[str, Any], name: str) -> None:
    """One hash over symbols, scale indices and means, with no graph optimisation and with all of it and 2 threads."""
    here = prove(find(name), 24_000, [Setting(*pair) for pair in SETTINGS], side=8)
    found = answer(answers, f"proof {name}")
    assert found["agree"]
    assert here["agree"]
    assert (found["sha256"], found["symbols"]) == (here["sha256"], here["symbols"])
    assert (found["on"]["machine"], here["on"]["machine"]) == ("aarch64", "x86_64")


def check_pixels(here: np.ndarray[Any, Any], found: np.ndarray[Any, Any], record: Any) -> None:
    """Equal but for the last bit of the synthesis; nodata exactly so."""
    assert (found.shape, found.dtype) == (here.shape, here.dtype)
    assert np.array_equal(found == 0, here == 0)
    difference = np.abs(found.astype(np.int64) - here)
    record("largest pixel difference", int(difference.max()))
    record("share of pixels that differ", float(np.count_nonzero(difference) / difference.size))
    print(f"pixels that differ: {np.count_nonzero(difference)} of {difference.size}, by {difference.max()} at most")
    assert difference.max() <= PIXELS_DIFFER_MAX


def test_a_stream_made_here_decodes_there(answers: dict[str, Any], folder: Path, record_property: Any) -> None:
    digests, here = read(folder / "here.dl")
    assert answer(answers, "decode") == digests
    check_pixels(here, np.load(folder / "there.npy"), record_property)


def test_a_stream_made_there_decodes_here(answers: dict[str, Any], folder: Path) -> None:
    symbols = answer(answers, "encode")
    (digest,), pixels = read(folder / "there.dl")
    assert digest["sha256"] == symbols
    original = np.load(folder / "scene.npy")
    assert np.array_equal(pixels == 0, original == 0)
    error = np.sqrt(((pixels.astype(float) - original) ** 2)[original != 0].mean())
    assert error < 200, "what came back is not the scene"


def test_an_exact_stream_made_there_gives_every_pixel_back_here(answers: dict[str, Any], folder: Path) -> None:
    """Its rules are fitted in floats there; what is coded is integers, so nothing may differ."""
    answer(answers, "encode exactly")
    (digest,), pixels = read(folder / "exact.dl")
    assert np.array_equal(pixels, np.load(folder / "small.npy"))
    assert answer(answers, "decode exactly") == [digest]
