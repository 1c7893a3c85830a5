import hashlib
import math
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from downlink import limits
from downlink.chunk import ChunkList, GridCoding
from downlink.cover import Cover
from downlink.errors import Corrupt, Malformed, StreamError, TooLarge, Unsupported
from downlink.lattice import Resolution
from downlink.manifest import VERSION, Manifest, scene_id
from downlink.scene import Band, Grid, Scene
from downlink.words import WORDS
from tests.scenes import PATCH, PATCH_CODING, fake_stream


def manifest_of(**changes: Any) -> Manifest:
    return msgspec.structs.replace(MANIFEST, **changes)


MANIFEST, CHUNKS = fake_stream()
PACKED = MANIFEST.pack()
VERSION_BYTE = bytes([VERSION])
RESAMPLED, _ = fake_stream(
    PATCH,
    (
        msgspec.structs.replace(PATCH_CODING, planes=9),
        msgspec.structs.replace(PATCH_CODING, planes=1, planes_per_chunk=1),
    ),
    resolutions=(Resolution(0, "612222122622"),),
)


def raw_of(manifest: Manifest = MANIFEST) -> list[Any]:
    """The manifest as the plain lists that go on the wire."""
    raw: list[Any] = msgspec.to_builtins(manifest, builtin_types=(bytes,))
    return msgspec.msgpack.decode(msgspec.msgpack.encode(raw))  # type: ignore[no-any-return]


def packed_raw(raw: object) -> bytes:
    return VERSION_BYTE + zstandard.compress(msgspec.msgpack.encode(raw))


def test_unpack_is_the_inverse_of_pack() -> None:
    assert Manifest.unpack(PACKED) == MANIFEST


def test_a_patch_takes_less_than_300_bytes() -> None:
    assert len(PACKED) < 300, len(PACKED)


def test_the_dictionary_never_changes() -> None:
    """Without these very bytes no manifest of this version can be read."""
    assert len(WORDS) == 1142
    assert hashlib.sha256(WORDS).hexdigest() == "0c0ee86ca722934ac4b837c8126a2e7a7549716bd3f67351dc106f21c18ab753"


def test_resolutions_come_back_and_are_not_written_where_there_are_none() -> None:
    assert Manifest.unpack(RESAMPLED.pack()) == RESAMPLED
    assert len(RESAMPLED.layout()) > len(MANIFEST.layout())
    assert [lattice.unit for lattice in RESAMPLED.lattices()] == [1, 6]
    for manifest, fields in ((RESAMPLED, 10), (MANIFEST, 9)):
        raw = limits.expand(manifest.pack()[1:], limits.MANIFEST_RAW_BYTES_MAX, "test", WORDS)
        assert len(msgspec.msgpack.decode(raw)) == fields
    assert Manifest.unpack(packed_raw(raw_of()[:9])) == Manifest.unpack(packed_raw([*raw_of()[:9], []])) == MANIFEST


@pytest.mark.parametrize(
    ("resolutions", "match"),
    [
        ((Resolution(),) * 2, "2 resolutions for 1 grids"),
        ((Resolution(2),), "begin with unit 2"),
        ((Resolution(7),), "unit 7 is none of"),
        ((Resolution(0, "12"),), "repeats '12' for 12 bands"),
        ((Resolution(0, "1" * 11 + "4"),), "repeats"),
        ((Resolution(0, "1" * 11 + "6"),), "1 codings for 2 grids"),
    ],
)
def test_resolutions_that_cannot_be_are_refused_on_both_ends(resolutions: Any, match: str) -> None:
    manifest = manifest_of(resolutions=resolutions)
    with pytest.raises(Malformed, match=match):
        manifest.pack()
    with pytest.raises(Malformed, match=match):
        Manifest.unpack(packed_raw(raw_of(manifest)))


@pytest.mark.parametrize("field", [[0, "", 6, 0], [0, "", 0, -1], [0, "1" * 513], [0, "", 0, 0, 0], [1.5], "1", {}])
def test_a_resolution_of_other_fields_is_refused(field: Any) -> None:
    with pytest.raises(Malformed, match="manifest: "):
        Manifest.unpack(packed_raw([*raw_of()[:9], [field]]))


def test_as_many_lattices_as_grids_can_have_come_back_and_one_more_is_refused() -> None:
    grid = Grid(12, 12, "uint8", (Band("a"), Band("b")))
    coding = GridCoding(planes=1, planes_per_chunk=1, groups=1, mask="none", step=1.0)
    scene, resolutions = Scene("many", (grid,) * limits.GRIDS_MAX), (Resolution(0, "13"),) * limits.GRIDS_MAX
    made, _ = fake_stream(scene, (coding,) * limits.LATTICES_MAX, resolutions=resolutions)
    assert len(made.lattices()) == len(made.codings) == limits.LATTICES_MAX
    assert Manifest.unpack(made.pack()) == made
    more = msgspec.structs.replace(made, codings=(coding,) * (limits.LATTICES_MAX + 1))
    with pytest.raises(Malformed, match="of length <= 32"):
        Manifest.unpack(packed_raw(raw_of(more)))


def test_the_id_is_the_hash_of_the_packed_bytes() -> None:
    assert scene_id(PACKED) == hashlib.sha256(PACKED).hexdigest()


@settings(deadline=None)
@given(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False, width=64)] * 6))
def test_transforms_are_exact_to_the_last_bit(transform: tuple[float, float, float, float, float, float]) -> None:
    grid = msgspec.structs.replace(PATCH.grids[0], transform=transform)
    manifest = manifest_of(scene=msgspec.structs.replace(PATCH, grids=(grid,)))
    a, b, _, d, e, _ = transform
    assume(a * e - b * d != 0 and math.isfinite(a * e - b * d))
    back = Manifest.unpack(manifest.pack())
    found = back.scene.grids[0].transform
    assert found is not None
    assert struct.pack("<6d", *found) == struct.pack("<6d", *transform)
    assert all(type(number) is float for number in found)


def test_minus_zero_stays_minus_zero() -> None:
    transform = (10.0, -0.0, 0.5, -0.0, -10.0, 2.0**53 + 2)
    grid = msgspec.structs.replace(PATCH.grids[0], transform=transform)
    back = Manifest.unpack(manifest_of(scene=Scene("z", (grid,))).pack())
    assert str(back.scene.grids[0].transform) == str(transform)


def test_whole_numbers_of_settings_come_back_as_floats() -> None:
    back = Manifest.unpack(manifest_of(settings={"quality": 50, "target": "quality"}).pack())
    assert type(back.settings["quality"]) is float


def test_of_counts_and_hashes_pages_first() -> None:
    scene = Scene("tiny", (Grid(1, 1, "uint8", (Band(),)),))
    coding = GridCoding(planes=1, planes_per_chunk=1, groups=1, mask="none", step=1.0)
    listed = ChunkList.of([b"side", b"latent"])
    facts: dict[str, Any] = {"bundle": bytes(range(32)), "bundle_name": "m", "settings": {}, "listed": listed}
    manifest = Manifest.of(scene=scene, codings=[coding], chunks=[b"side", b"latent"], **facts)
    (page,) = listed.pages()
    assert manifest.payload_sha256 == hashlib.sha256(page + b"side" + b"latent").digest()
    assert manifest.chunk_count == 3
    assert manifest.payload_bytes == len(page) + 10
    with pytest.raises(Corrupt, match="chunk 2"):
        Manifest.of(scene=scene, codings=[coding], chunks=[b"side", b"lateNt"], **facts)
    with pytest.raises(Malformed, match="states 2 chunks, its geometry gives 3"):
        Manifest.of(scene=scene, codings=[coding], chunks=[b"side"], **facts)


def test_chunk_list_checks_pages_against_the_manifest() -> None:
    manifest, pages, listed = MANIFEST, CHUNKS[:1], ChunkList.of(CHUNKS[1:])
    assert np.array_equal(manifest.chunk_list(pages).crcs, listed.crcs)
    with pytest.raises(Corrupt, match="chunk 0: crc32c"):
        manifest.chunk_list([pages[0][:-1] + bytes([pages[0][-1] ^ 1])])
    with pytest.raises(Corrupt, match="chunk 0: 3 bytes"):
        manifest.chunk_list([b"abc"])
    with pytest.raises(Malformed, match="2 pages given, the manifest states 1"):
        manifest.chunk_list(pages * 2)
    lying = manifest_of(payload_bytes=manifest.payload_bytes + 1)
    with pytest.raises(Malformed, match=f"have {manifest.payload_bytes} bytes, the manifest states"):
        lying.chunk_list(pages)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"bundle": bytes(31)}, Malformed, "bundle has 31 bytes"),
        ({"bundle": bytes(32)}, Malformed, "names no bundle"),
        ({"payload_sha256": b""}, Malformed, "payload_sha256 has 0 bytes"),
        ({"bundle_name": "../planes"}, Malformed, "bundle name '../planes'"),
        ({"bundle_name": "a\n"}, Malformed, "bundle name"),
        ({"bundle_name": ""}, Malformed, "bundle name"),
        ({"codings": ()}, Malformed, "0 codings for 1 grids"),
        ({"codings": (PATCH_CODING, PATCH_CODING)}, Malformed, "2 codings for 1 grids"),
        ({"settings": {"quality": math.inf}}, Malformed, "setting 'quality': inf"),
        ({"settings": {"a\n": 1.0}}, Malformed, "key of a setting"),
        ({"settings": {"a": "\x07"}}, Malformed, "setting 'a'"),
        ({"chunk_count": 10**9}, Malformed, "states 1000000000 chunks, its geometry gives 12"),
        ({"chunk_count": -1}, Malformed, "states -1 chunks"),
        ({"pages": ()}, Malformed, "states 0 pages, 1 list 12 chunks"),
        ({"pages": ((0, 0),)}, Malformed, "page 0 of 0 bytes"),
        ({"pages": ((limits.CHUNK_BYTES_MAX + 1, 0),)}, Malformed, "page 0 of 262145 bytes"),
        ({"pages": ((9, 2**32),)}, Malformed, "cannot be"),
        ({"payload_bytes": 3}, Malformed, "states 3 payload bytes"),
        ({"payload_bytes": 2**62}, Malformed, "payload bytes, .* are possible"),
        ({"scene": Scene("x", ())}, Malformed, "0 grids"),
    ],
)
def test_values_that_disagree_are_refused_on_both_ends(changes: Any, error: type[StreamError], match: str) -> None:
    manifest = manifest_of(**changes)
    with pytest.raises(error, match=match):
        manifest.pack()
    with pytest.raises(error, match=match):
        Manifest.unpack(packed_raw(raw_of(manifest)))


@pytest.mark.parametrize(
    ("packed", "error", "match"),
    [
        (b"", Malformed, "0 bytes"),
        (b"\x01" + PACKED[1:], Unsupported, "version 1, this program knows 2"),
        (b"\x03" + PACKED[1:], Unsupported, "version 3, this program knows 2"),
        (PACKED[:1], Malformed, "zstd"),
        (PACKED + b"\x00", Malformed, "1 bytes after"),
        (PACKED + zstandard.compress(b"more"), Malformed, "bytes after"),
        (VERSION_BYTE + zstandard.compress(b""), Malformed, "truncated"),
        (VERSION_BYTE + zstandard.compress(b"\x93\xa1\xff"), Malformed, "manifest: "),
        (packed_raw({"scene": 1}), Malformed, "Expected `array`"),
        (packed_raw([*raw_of(), 1]), Malformed, "at most length 12"),
        (packed_raw(raw_of()[:8]), Malformed, "at least length 9"),
        (VERSION_BYTE + zstandard.compress(b"\x91" * 100_000), Malformed, "manifest: "),
        (bytes(limits.MANIFEST_BYTES_MAX + 1), TooLarge, "65537 is above the limit of 65536"),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(packed: bytes, error: type[StreamError], match: str) -> None:
    with pytest.raises(error, match=match):
        Manifest.unpack(packed)


def test_every_truncation_is_refused() -> None:
    for length in range(len(PACKED)):
        with pytest.raises(StreamError):
            Manifest.unpack(PACKED[:length])


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of docs/format.md, without its head."""
    section = (Path(__file__).parent.parent / "docs" / "format.md").read_text().split(f"# {heading}\n")[1]
    lines = [line for line in section.split("\n#")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("struct", [Manifest, Cover, Scene, Grid, Band, GridCoding, Resolution])
def test_the_document_lists_the_fields_in_their_order(struct: type[msgspec.Struct]) -> None:
    assert [row[0] for row in rows_under(f"{struct.__name__} fields")] == list(struct.__struct_fields__)


def test_the_document_states_the_limits() -> None:
    rows = rows_under("Limits")
    assert len(rows) > 15
    for name, value, _ in rows:
        assert int(value) == getattr(limits, name), name


def unpack_or_refuse(packed: bytes) -> None:
    try:
        manifest = Manifest.unpack(packed)
    except StreamError:
        return
    assert Manifest.unpack(manifest.pack()) == manifest  # what is accepted is as good as what we make


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_mutated_bytes_give_a_manifest_or_a_stream_error(data: st.DataObject) -> None:
    mutated = bytearray(msgspec.msgpack.encode(raw_of(RESAMPLED)))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(mutated)))
        mutated[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    unpack_or_refuse(VERSION_BYTE + zstandard.compress(bytes(mutated)))
    unpack_or_refuse(VERSION_BYTE + bytes(mutated))


odd_values: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63, -(2**63), 2**64 - 1, 40_001, 513, 10**9])
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=33)
    | st.lists(st.integers(0, 9), max_size=3)
    | st.builds(lambda: {"k": "v"})
    | st.builds(lambda: [[] for _ in range(600)])
)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_value_anywhere_gives_a_manifest_or_a_stream_error(data: st.DataObject) -> None:
    """Structure-aware: walk into the lists and replace, drop or repeat what is there."""
    raw = raw_of(data.draw(st.sampled_from([MANIFEST, RESAMPLED])))
    for _ in range(data.draw(st.integers(1, 3))):
        here: Any = raw
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(here[key], list | dict) and data.draw(st.integers(0, 3)):
                here = here[key]
                continue
            action = data.draw(st.sampled_from(["replace", "drop", "repeat"]))
            if action == "replace":
                here[key] = data.draw(odd_values)
            elif action == "drop":
                del here[key]
            elif isinstance(here, list):
                here.insert(key, here[key])
            break
    unpack_or_refuse(packed_raw(raw))


def hostile_manifests() -> list[bytes]:
    """Manifests that lie about sizes, as a peer could send them."""
    huge = raw_of()
    huge[0][1][0][0] = huge[0][1][0][1] = 2**31
    wide = raw_of()
    wide[0][1][0][0], wide[0][1][0][1] = 40_000, 40_000
    bands = raw_of()
    bands[0][1][0][3] = [[]] * 500_000
    grids = raw_of()
    grids[0][1] = [grids[0][1][0]] * 5_000
    count = raw_of()
    count[5] = 10**9
    pages = raw_of()
    pages[8] = [[1, 1]] * 170_000
    tiny_tiles = raw_of()
    tiny_tiles[0][1][0][0] = tiny_tiles[0][1][0][1] = 40_000
    tiny_tiles[0][1][0][3] = [["a", None]]
    tiny_tiles[3][0] = ["planes", 32, 1, 1, 64, "none", 1]
    tags = raw_of()
    tags[0][3] = {str(number): "" for number in range(60_000)}
    claim = b"\x28\xb5\x2f\xfd\xe0" + (2**44).to_bytes(8, "little") + b"\x01\x00\x00"
    bomb = zstandard.compress(bytes(2**28))[: limits.MANIFEST_BYTES_MAX - 1]
    lists = [huge, wide, bands, grids, count, pages, tiny_tiles, tags]
    return [packed_raw(raw) for raw in lists] + [VERSION_BYTE + claim, VERSION_BYTE + bomb]


def test_hostile_manifests_are_refused_fast() -> None:
    for packed in hostile_manifests():
        assert len(packed) <= limits.MANIFEST_BYTES_MAX
        start = time.perf_counter()
        with pytest.raises(StreamError):
            Manifest.unpack(packed)
        assert time.perf_counter() - start < 0.25  # the promise is 50 ms; the rest is for a busy machine


IN_LITTLE_MEMORY = """
import resource, sys
from downlink.cover import Cover
from downlink.errors import StreamError
from downlink.manifest import Manifest
lines = [bytes.fromhex(line) for line in sys.stdin.read().split()]
Manifest.unpack(lines.pop())
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 32 * 2**20,) * 2)
for packed in lines:
    try:
        Manifest.unpack(packed)
    except StreamError as error:
        print(error.code)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
def test_hostile_manifests_are_refused_in_32_MiB() -> None:
    hostile = hostile_manifests()
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY],
        input="\n".join(packed.hex() for packed in [*hostile, PACKED]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert len(done.stdout.split()) == len(hostile)
    assert set(done.stdout.split()) == {"too_large", "malformed"}
