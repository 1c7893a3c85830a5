"""Each limit of the stream: what is at the limit passes, one more is refused. Those of the link are tested there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard

from downlink import limits
from downlink.chunk import ChunkList, GridCoding, Layout
from downlink.errors import Malformed, StreamError, TooLarge
from downlink.manifest import VERSION, Manifest
from downlink.scene import Band, Grid, Scene, validate
from tests.scenes import PATCH, PATCH_CODING, fake_stream

OF_THE_LINK = {  # and the test that tries it
    "MESSAGE_BYTES_MAX": "test_receiver.py",
    "UNACKED_BYTES_MAX": "test_wire.py",
    "STREAMS_PER_NODE_MAX": "test_admission.py",
    "NODES_MAX": "test_admission.py",
    "HELLOS_PER_MINUTE_MAX": "test_admission.py",
    "CALLS_PER_CONNECTION_MAX": "test_admission.py",
    "PROBES_MAX": "test_admission.py",
    "PROBE_S": "test_admission.py",
    "HANDSHAKE_S": "test_admission.py",
    "IDLE_STREAM_S": "test_admission.py",
    "SILENT_STREAM_S": "test_admission.py",
    "KEEPALIVE_S": "test_admission.py",
    "REQUEST_BYTES_MAX": "test_request.py",
    "BUNDLE_BYTES_MAX": "test_request.py",
    "BUNDLE_FILES_MAX": "test_request.py",
}
UNITS = {"KIB", "MIB", "GIB", "PAGE_CHUNKS", "TILE_PX_MULTIPLE"}  # not bounds
ELSEWHERE = {  # and the test that tries it
    "BUNDLE_JSON_BYTES_MAX": "test_bundle.py",
    "SIDE_VALUES_MAX": "test_plane.py",
    "LATTICES_MAX": "test_manifest.py",
    "REFERENCES_MAX": "test_reference.py",
}
GRID = Grid(10, 10, "uint8", (Band(),))


def check_grid(**changes: Any) -> None:
    validate(Scene("s", (msgspec.structs.replace(GRID, **changes),)))


def check_scene(**changes: Any) -> None:
    validate(msgspec.structs.replace(PATCH, **changes))


def check_coding(**changes: Any) -> None:
    Layout(PATCH, [msgspec.structs.replace(PATCH_CODING, **changes)])


def check_manifest(**changes: Any) -> None:
    msgspec.structs.replace(fake_stream()[0], **changes).pack()


def check_chunks(count: int) -> None:
    """A layout of exactly `count` chunks: a large grid in 8 layers, and a small one that makes up the rest."""
    pages = -(-count // (limits.PAGE_CHUNKS + 1))
    latents = count - pages - 2
    groups = 8
    tiles, rest = divmod(latents, groups)
    coding = GridCoding(tile=32, planes=1, planes_per_chunk=1, groups=groups, mask="none", step=1.0)
    rows = 128
    cols, more = divmod(tiles, rows)
    rest += more * groups
    grids = [Grid(32 * rows, 32 * cols, "uint8", (Band(),)), Grid(32, 32 * rest, "uint8", (Band(),))]
    layout = Layout(Scene("s", tuple(grids)), [coding, msgspec.structs.replace(coding, groups=1)])
    assert len(layout) == count


def check_raw_bytes(count: int) -> None:
    """16 GiB = 2^15 x 2^15 x 16 bands of uint8; one pixel more in another grid."""
    grids = [Grid(2**15, 2**15, "uint8", (Band(),) * 16)]
    extra = count - 2**34
    validate(Scene("s", (*grids, *[Grid(1, 1, "uint8", (Band(),))] * extra)))


def check_manifest_bytes(count: int) -> None:
    Manifest.unpack(bytes([VERSION]) + bytes(count - 1))


def check_manifest_raw_bytes(count: int) -> None:
    Manifest.unpack(bytes([VERSION]) + zstandard.compress(bytes(count)))


CHECKS: dict[str, Callable[[int], object]] = {
    "MANIFEST_BYTES_MAX": check_manifest_bytes,
    "MANIFEST_RAW_BYTES_MAX": check_manifest_raw_bytes,
    "TEXT_BYTES_MAX": lambda n: check_scene(name="x" * n),
    "CRS_BYTES_MAX": lambda n: check_grid(crs="x" * n),
    "TAGS_MAX": lambda n: check_scene(tags={str(number): "" for number in range(n)}),
    "TAGS_BYTES_MAX": lambda n: check_scene(tags=tags_of_bytes(n)),
    "SETTINGS_MAX": lambda n: check_manifest(settings={str(number): 1.0 for number in range(n)}),
    "BUNDLE_NAME_CHARS_MAX": lambda n: check_manifest(bundle_name="x" * n),
    "SIDE_PX_MAX": lambda n: (check_grid(height=n), check_grid(width=n)),
    "BANDS_MAX": lambda n: check_scene(grids=(GRID, msgspec.structs.replace(GRID, bands=(Band(),) * (n - 1)))),
    "GRIDS_MAX": lambda n: check_scene(grids=(GRID,) * n),
    "SCENE_RAW_BYTES_MAX": check_raw_bytes,
    "ROW_SAMPLES_MAX": lambda n: check_grid(width=n // 32 + n % 32, bands=(Band(),) * 32),
    "CHUNK_BYTES_MAX": lambda n: ChunkList(np.array([n], np.uint32), np.zeros(1, np.uint32)),
    "CHUNKS_MAX": check_chunks,
    "TILE_PX_MAX": lambda n: check_coding(tile=n),
    "GROUPS_MAX": lambda n: check_coding(groups=n),
    "MAX_ERROR_MAX": lambda n: check_coding(
        method="exact", planes=len(PATCH.grids[0].bands), groups=3, step=1.0, max_error=n
    ),
    "ZSTD_RAW_BYTES_MAX": lambda n: limits.expand(zstandard.compress(bytes(n)), n, "test"),
}


def tags_of_bytes(count: int) -> dict[str, str]:
    """Tags with keys and values of `count` bytes together."""
    tags = {f"{number:02d}": "x" * 254 for number in range(count // 256)}
    return tags | (
        {"last": "x" * (count % 256 - 4)} if count % 256 > 3 else {"y" * (count % 256): ""} if count % 256 else {}
    )


def test_every_limit_is_tested() -> None:
    names = {name for name in vars(limits) if name.isupper()}
    assert names - OF_THE_LINK.keys() - UNITS - ELSEWHERE.keys() == set(CHECKS) | {"STEP_MIN", "STEP_MAX"}


@pytest.mark.parametrize(("name", "file"), (OF_THE_LINK | ELSEWHERE).items())
def test_every_other_limit_is_tried_where_it_is_said_to_be(name: str, file: str) -> None:
    assert name in (Path(__file__).parent / file).read_text()


@pytest.mark.parametrize("name", CHECKS)
def test_at_the_limit_passes_and_one_above_is_refused(name: str) -> None:
    bound = getattr(limits, name)
    at_limit_is_noise = name in ("MANIFEST_BYTES_MAX", "MANIFEST_RAW_BYTES_MAX")  # then refused for what it holds
    if at_limit_is_noise:
        with pytest.raises(Malformed):
            CHECKS[name](bound)
    else:
        CHECKS[name](bound)
    with pytest.raises(StreamError) as refusal:
        CHECKS[name](bound + 1)
    assert isinstance(refusal.value, TooLarge) or name in ("BUNDLE_NAME_CHARS_MAX", "TILE_PX_MAX", "GROUPS_MAX")


def test_steps_are_bounded_on_both_sides() -> None:
    for step in (limits.STEP_MIN, limits.STEP_MAX):
        check_coding(step=step)
    for step in (limits.STEP_MIN / 2, limits.STEP_MAX * 2):
        with pytest.raises(Malformed, match="is not within"):
            check_coding(step=step)


def test_the_limits_fit_each_other() -> None:
    assert limits.CHUNK_BYTES_MAX + limits.MANIFEST_BYTES_MAX < limits.MESSAGE_BYTES_MAX
    assert limits.PAGE_CHUNKS * 7 <= limits.CHUNK_BYTES_MAX
    assert 16 * limits.TILE_PX_MAX**2 // 8 < 0.8 * limits.CHUNK_BYTES_MAX
    assert limits.MANIFEST_RAW_BYTES_MAX <= limits.ZSTD_RAW_BYTES_MAX


def frame_claiming(size: int) -> bytes:
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"


def frame_with_dictionary() -> bytes:
    dictionary = zstandard.train_dictionary(
        1024, [b"%d satellites over %d towns" % (n, n * n) for n in range(200)], dict_id=7
    )
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(b"3 satellites")


@pytest.mark.parametrize(
    ("frame", "error", "match"),
    [
        (b"", Malformed, "not a zstd frame"),
        (b"nothing like it", Malformed, "not a zstd frame"),
        (zstandard.compress(b"x" * 100)[:-2], Malformed, "states 100 bytes and holds 0"),
        (zstandard.compress(b"x" * 100) + b"?", Malformed, "1 bytes after its zstd frame"),
        (zstandard.compress(b"x" * 100) * 2, Malformed, "bytes after its zstd frame"),
        (zstandard.compress(b"x" * 100) + b"\x50\x2a\x4d\x18" + bytes(4), Malformed, "8 bytes after"),  # to be skipped
        (zstandard.compress(b"") + b"?", Malformed, "not a zstd frame|1 bytes after"),
        (frame_with_dictionary(), Malformed, "asks for dictionary 7"),
        (zstandard.compress(bytes(101)), TooLarge, "101 is above the limit of 100"),
        (zstandard.compress(bytes(2**24)), TooLarge, "above the limit"),
        (frame_claiming(2**40), TooLarge, "above the limit"),
        (frame_claiming(2**64 - 2), TooLarge, "above the limit"),
        (frame_claiming(100), Malformed, "states 100 bytes and holds 0|not a zstd frame"),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"x"), Malformed, "does not state its size"),
    ],
)
def test_expand_refuses_what_is_not_one_frame_within_the_bound(
    frame: bytes, error: type[StreamError], match: str
) -> None:
    with pytest.raises(error, match=match):
        limits.expand(frame, 100, "test")


@pytest.mark.parametrize("level", [1, 3, 12, 19])
@pytest.mark.parametrize("size", [0, 1, 100, 1023, 1025, 70_000])
def test_expand_reads_what_any_level_wrote(level: int, size: int) -> None:
    raw = np.random.default_rng(0).integers(0, 4, size, np.uint8).tobytes()
    assert limits.expand(zstandard.ZstdCompressor(level=level).compress(raw), size, "test") == raw
