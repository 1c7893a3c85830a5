import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import downlink.bundle
from downlink import limits
from downlink.bundle import Bundle, find, find_id, released, released_names, split
from downlink.errors import BundleError

CONTENT = {
    "encoder.onnx": b"\x12\x07encoder\x3a\x00",  # ONNX: made by "encoder", an empty graph
    "decoder.onnx": b"\x12\x07decoder\x3a\x00",
    "prior.onnx": b"\x12\x05prior\x3a\x00",
    "tables.bin": b"tables",
    "card.md": b"# Card",
}


def make(folder: Path, name: str = "planes-1", **changes: Any) -> bytes:
    """A bundle in `folder`; returns its id."""
    folder.mkdir(parents=True)
    stated = {
        "format": 1,
        "name": name,
        "version": "1.0",
        "kind": "planes",
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in CONTENT.items()},
        "parameters": {"channels": 64, "nested": {"a": [1, 2.5]}},
    } | changes
    for file, content in CONTENT.items():
        (folder / file).write_bytes(content)
    (folder / "bundle.json").write_text(json.dumps(stated))
    return hashlib.sha256((folder / "bundle.json").read_bytes()).digest()


def test_a_bundle_hands_out_what_it_states(tmp_path: Path) -> None:
    digest = make(tmp_path / "m")
    bundle = Bundle.read(tmp_path / "m")
    assert (bundle.name, bundle.version, bundle.kind, bundle.id) == ("planes-1", "1.0", "planes", digest)
    assert bundle.parameters == {"channels": 64, "nested": {"a": [1, 2.5]}}
    assert {name: bundle.file(name) for name in bundle.files} == CONTENT
    assert bundle.has("encoder.onnx")
    assert not bundle.has("other.bin")
    assert repr(bundle) == f"Bundle(planes-1 1.0, id {digest.hex()[:12]})"
    bundle.verify()


def test_halves_have_the_id_of_the_whole_and_say_what_they_lack(tmp_path: Path) -> None:
    digest = make(tmp_path / "m")
    for half, other in (("encoder", "decoder"), ("decoder", "encoder")):
        files = split(tmp_path / "m", half)  # type: ignore[arg-type]
        assert set(files) == {"bundle.json", *CONTENT} - {f"{other}.onnx"}
        folder = tmp_path / half
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        bundle = Bundle.read(folder)
        assert bundle.id == digest
        assert bundle.file(f"{half}.onnx") == CONTENT[f"{half}.onnx"]
        assert not bundle.has(f"{other}.onnx")
        bundle.verify()
        with pytest.raises(BundleError, match=f"lacks {other}.onnx: this is the {half} half"):
            bundle.file(f"{other}.onnx")
    with pytest.raises(BundleError, match="no 'middle' half"):
        split(tmp_path / "m", "middle")  # type: ignore[arg-type]


def test_changed_files_are_refused_on_every_read(tmp_path: Path) -> None:
    make(tmp_path / "m")
    bundle = Bundle.read(tmp_path / "m")
    assert bundle.file("prior.onnx") == CONTENT["prior.onnx"]
    (tmp_path / "m" / "prior.onnx").write_bytes(b"another prior")
    for read in (lambda: bundle.file("prior.onnx"), bundle.verify, lambda: split(tmp_path / "m", "encoder")):
        with pytest.raises(BundleError, match=r"prior.onnx has sha256 .*stated in bundle.json"):
            read()


def test_files_that_are_not_stated_or_not_there_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "m")
    bundle = Bundle.read(tmp_path / "m")
    (tmp_path / "m" / "extra.bin").write_bytes(b"")
    for name in ("extra.bin", "../m/card.md", "bundle.json"):
        with pytest.raises(BundleError, match="has no file"):
            bundle.file(name)
        assert not bundle.has(name)
    (tmp_path / "m" / "tables.bin").unlink()
    with pytest.raises(BundleError, match=r"lacks tables.bin: copy the bundle again"):
        bundle.file("tables.bin")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "..",
        ".",
        ".hidden",
        "",
        "a\x00b",
        "a\n",
        "C:x",
        "x" * 65,
        "é",
        "bundle.json",
    ],
)
def test_file_names_with_a_path_in_them_are_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path / "m", files={name: "0" * 64})
    with pytest.raises(BundleError, match="must be a plain name"):
        Bundle.read(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 2}, "format 2, this program knows 1"),
        ({"kind": "joint"}, "kind 'joint' is none of planes"),
        ({"name": "../up"}, "name '../up'"),
        ({"files": {"a.bin": "00"}}, "not 64 lower-case hex"),
        ({"files": {"a.bin": "G" * 64}}, "not 64 lower-case hex"),
        ({"files": ["a.bin"]}, "Expected `object`"),
        ({"parameters": None}, "Expected `object`"),
    ],
)
def test_a_bundle_json_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    make(tmp_path / "m", **changes)
    with pytest.raises(BundleError, match=match):
        Bundle.read(tmp_path / "m")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format": "1"}', b'{"name": "\xff"}', b"[" * 100_000])
def test_anything_else_in_bundle_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle.json: "):
        Bundle.read(tmp_path)


def test_an_overlong_bundle_json_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "at", parameters={})
    stated = (tmp_path / "at" / "bundle.json").read_bytes()
    (tmp_path / "at" / "bundle.json").write_bytes(stated + b" " * (limits.BUNDLE_JSON_BYTES_MAX - len(stated)))
    assert Bundle.read(tmp_path / "at").name == "planes-1"
    (tmp_path / "at" / "bundle.json").write_bytes(stated + b" " * (limits.BUNDLE_JSON_BYTES_MAX - len(stated) + 1))
    with pytest.raises(BundleError, match="above 1048576"):
        Bundle.read(tmp_path / "at")


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.read(tmp_path / "nowhere")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Released bundles of this test only: "planes-1" and "lite"."""
    folder = tmp_path / "released"
    make(folder / "planes-1")
    make(folder / "lite", "lite")
    (folder / "no-bundle").mkdir()
    monkeypatch.setattr(downlink.bundle, "_shelves", lambda: iter([tmp_path / "not there", folder]))
    return folder


def test_released_bundles_are_found_by_name(shelf: Path) -> None:
    assert released_names() == ["lite", "planes-1"]
    assert released("lite") == shelf / "lite"
    for name in ("other", "no-bundle", "../released/lite", "/etc", ""):
        with pytest.raises(BundleError, match="there are: lite, planes-1"):
            released(name)


def test_find_takes_a_name_or_a_path(shelf: Path, tmp_path: Path) -> None:
    assert find("lite").name == "lite"
    assert find(shelf / "lite").name == "lite"
    assert find(str(shelf / "lite")).name == "lite"
    make(tmp_path / "mine" / "lite", "lite", version="2.0")
    assert find("lite", [tmp_path / "mine"]).version == "2.0"  # the user's own come first
    for wanted in ("heavy", "./lite", str(tmp_path)):
        with pytest.raises(BundleError, match=r"released ones .lite, planes-1"):
            find(wanted)


def test_a_bundle_is_found_by_id_wherever_it_lies(shelf: Path, tmp_path: Path) -> None:
    mine = make(tmp_path / "mine" / "any-folder", "special")
    single = make(tmp_path / "single", "single")
    (tmp_path / "mine" / "damaged").mkdir()
    (tmp_path / "mine" / "damaged" / "bundle.json").write_bytes(b"{")
    (tmp_path / "mine" / "overlong").mkdir()
    (tmp_path / "mine" / "overlong" / "bundle.json").write_bytes(b" " * (limits.BUNDLE_JSON_BYTES_MAX + 1))
    dirs = [tmp_path / "mine", tmp_path / "single", tmp_path / "not there"]
    assert find_id(mine, dirs).name == "special"
    assert find_id(single, dirs).name == "single"
    assert find_id(Bundle.read(shelf / "lite").id).name == "lite"


def test_a_half_does_not_hide_the_whole(shelf: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    for name, content in split(shelf / "lite", "encoder").items():
        (half / name).write_bytes(content)
    wanted = Bundle.read(half).id
    assert find_id(wanted, [half]).folder == half
    assert find_id(wanted, [half], needs="encoder.onnx").folder == half
    assert find_id(wanted, [half], needs="decoder.onnx").folder == shelf / "lite"
    (shelf / "lite" / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks decoder.onnx: this is the encoder half"):
        find_id(wanted, [half], needs="decoder.onnx").file("decoder.onnx")


def test_an_unknown_id_is_refused_naming_both_ids(shelf: Path) -> None:
    here = Bundle.read(shelf / "lite").id.hex()[:12]
    with pytest.raises(BundleError, match=rf"id {'ab' * 32}; here are: lite {here}, planes-1 .*Install that bundle"):
        find_id(b"\xab" * 32)


def test_shelves_are_the_package_and_the_checkout() -> None:
    repository = Path(downlink.bundle.__file__).parent.parent
    assert list(downlink.bundle._shelves()) == [repository / "downlink" / "models", repository / "models"]
