import io
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downlink.chunk import ChunkKey, GridCoding, Kind
from downlink.errors import Corrupt, Malformed, StreamError, TooLarge, Unsupported
from downlink.manifest import Manifest, scene_id
from downlink.scene import Band, Grid, Scene
from downlink.stream import StreamReader, write_stream
from tests.scenes import fake_stream

SCENE = Scene("two grids", (Grid(70, 40, "uint16", (Band("B02"), Band("B03")), 0), Grid(9, 9, "uint8", (Band(),))))
CODINGS = (
    GridCoding(tile=32, planes=2, planes_per_chunk=1, groups=2, mask="shared", step=4.0),
    GridCoding(planes=1, planes_per_chunk=1, groups=1, mask="none", step=1.0),
)


@cache
def parts() -> tuple[bytes, tuple[bytes, ...]]:
    """(packed manifest, all chunks): a small stream of made-up payloads, some of them empty."""
    manifest, chunks = fake_stream(SCENE, CODINGS)
    return manifest.pack(), tuple(chunks)


@cache
def stream() -> bytes:
    file = io.BytesIO()
    assert write_stream(file, *parts()) == file.tell()
    return file.getvalue()


def read_all(file: bytes) -> tuple[Manifest, tuple[bytes, ...]]:
    reader = StreamReader(io.BytesIO(file))
    reader.verify()
    return reader.manifest, tuple(reader.chunks())


def test_what_was_written_is_read() -> None:
    packed, chunks = parts()
    reader = StreamReader(io.BytesIO(stream()))
    assert reader.manifest == Manifest.unpack(packed)
    assert reader.manifest_bytes == packed
    assert reader.scene_id == scene_id(packed)
    assert tuple(reader.chunks()) == chunks
    assert len(reader) == len(chunks) == len(reader.layout())
    assert b"" in chunks  # so that empty chunks are tested
    reader.verify()


def test_the_file_is_header_manifest_chunks() -> None:
    packed, chunks = parts()
    assert stream() == b"LDL\x01" + stream()[4:12] + packed + b"".join(chunks)
    assert stream()[4:8] == len(packed).to_bytes(4, "little")


def test_chunks_are_read_in_any_order() -> None:
    reader = StreamReader(io.BytesIO(stream()))
    index = reader.layout().index(ChunkKey(Kind.LATENT, 0, 5, 1, 1))
    for number in (index, 0, len(reader) - 1, index):
        assert reader.chunk(number) == parts()[1][number]
    for number in (-1, len(reader)):
        with pytest.raises(IndexError, match="a stream that has"):
            reader.chunk(number)


def test_every_flipped_byte_is_refused() -> None:
    good = stream()
    for place in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            bad = bytearray(good)
            bad[place] ^= flip
            with pytest.raises(StreamError):
                read_all(bytes(bad))


def test_every_truncation_is_refused_when_the_file_is_opened() -> None:
    for length in range(len(stream())):
        with pytest.raises(StreamError):
            StreamReader(io.BytesIO(stream()[:length]))


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=9))
def test_every_addition_is_refused_when_the_file_is_opened(more: bytes) -> None:
    with pytest.raises(Corrupt, match="cut or added to"):
        StreamReader(io.BytesIO(stream() + more))


def test_every_missing_and_every_doubled_byte_is_refused() -> None:
    good = stream()
    for place in range(len(good)):
        for bad in (good[:place] + good[place + 1 :], good[:place] + good[place : place + 1] + good[place:]):
            with pytest.raises(StreamError):
                read_all(bad)


def test_a_flip_in_one_chunk_leaves_the_others_readable() -> None:
    good, last = stream(), len(parts()[1]) - 1
    bad = StreamReader(io.BytesIO(good[:-1] + bytes([good[-1] ^ 1])))
    assert bad.chunk(last - 1) == parts()[1][last - 1]
    with pytest.raises(Corrupt, match=f"chunk {last}: crc32c"):
        bad.chunk(last)
    with pytest.raises(Corrupt, match=f"chunk {last}: crc32c"):
        bad.verify()


def test_a_wrong_hash_over_all_is_found_by_verify() -> None:
    packed, chunks = parts()
    lying = msgspec.structs.replace(Manifest.unpack(packed), payload_sha256=bytes(32)).pack()
    with pytest.raises(Corrupt, match=f"{'00' * 32} stated in the manifest"):
        write_stream(io.BytesIO(), lying, chunks)
    file = io.BytesIO()
    with pytest.raises(Corrupt):
        write_stream(file, lying, chunks)
    with pytest.raises(Corrupt, match="sha256"):
        StreamReader(file).verify()


@pytest.mark.parametrize(
    ("file", "error", "match"),
    [
        (b"", Malformed, "begins with nothing, not with 4c 44 4c 01"),
        (b"II*\x00 a GeoTIFF, say", Malformed, "begins with 49 49 2a 00"),
        (b"LDL\x01\x05", Corrupt, "file of 5 bytes ends within its header"),
        (b"LDL\x02" + bytes(8), Unsupported, "version 2, this program knows version 1"),
        (b"LDL\x01" + b"\xff" * 8, TooLarge, "4294967295 is above the limit of 65536"),
        (b"LDL\x01" + b"\x05\x00\x00\x00" + bytes(7), Corrupt, "3 bytes, 5 stated in the header"),
        (b"LDL\x01" + b"\x05\x00\x00\x00" + bytes(9), Corrupt, "0x00000000 stated in the header"),
    ],
)
def test_errors_say_what_is_wrong_with_the_file(file: bytes, error: type[StreamError], match: str) -> None:
    with pytest.raises(error, match=match):
        StreamReader(io.BytesIO(file))


def test_no_file_is_finished_that_a_reader_would_refuse() -> None:
    packed, chunks = parts()
    with pytest.raises(Malformed, match=f"{len(chunks) - 1} chunks given, the manifest states {len(chunks)}"):
        write_stream(io.BytesIO(), packed, chunks[:-1])
    with pytest.raises(Malformed, match=f"more chunks given than the {len(chunks)}"):
        write_stream(io.BytesIO(), packed, [*chunks, b""])
    with pytest.raises(Corrupt, match="chunk 1"):
        write_stream(io.BytesIO(), packed, [chunks[0], chunks[2], chunks[1], *chunks[3:]])
    with pytest.raises(Malformed, match="0 pages given"):
        write_stream(io.BytesIO(), packed, [])
    with pytest.raises(StreamError):
        write_stream(io.BytesIO(), packed[:-1], chunks)


def test_a_file_cut_while_it_is_open_is_noticed() -> None:
    file = io.BytesIO(stream())
    reader = StreamReader(file)
    file.truncate(len(stream()) - 1)
    with pytest.raises(Corrupt, match="cut while it was open"):
        reader.chunk(len(reader) - 1)


def test_a_patch_costs_few_bytes_beyond_its_payload() -> None:
    manifest, chunks = fake_stream()
    size = write_stream(io.BytesIO(), manifest.pack(), chunks)
    assert size - sum(map(len, chunks[1:])) < 450
