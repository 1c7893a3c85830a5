import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from downlink import limits
from downlink.errors import Malformed, StreamError, TooLarge
from downlink.mask import BLOCK_BANDS, block_bands, blocks, decode_mask, encode_mask

masks = arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, max_side=20))


def frame(raw: bytes) -> bytes:
    return b"\x02" + zstandard.compress(raw)


@settings(deadline=None)
@given(masks)
def test_masks_are_exact(mask: NDArray[np.bool_]) -> None:
    back = decode_mask(encode_mask(mask), mask.shape)  # type: ignore[arg-type]
    assert back.dtype == np.bool_
    assert back.shape == mask.shape
    assert (back == mask).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 256, 256), (16, 256, 256), (3, 7, 9)])
def test_uniform_masks_take_no_byte_or_one(shape: tuple[int, int, int]) -> None:
    assert encode_mask(np.zeros(shape, bool)) == b""
    assert encode_mask(np.ones(shape, bool)) == b"\x01"
    assert not decode_mask(b"", shape).any()
    assert decode_mask(b"\x01", shape).all()


def test_a_swath_edge_takes_few_bytes() -> None:
    y, x = np.mgrid[0:256, 0:256]
    assert len(encode_mask((x + y // 3 > 200)[None])) < 220


def test_the_worst_block_still_is_one_chunk() -> None:
    noise = np.random.default_rng(0).random((BLOCK_BANDS, limits.TILE_PX_MAX, limits.TILE_PX_MAX)) < 0.5
    payload = encode_mask(noise)
    assert len(payload) <= limits.CHUNK_BYTES_MAX
    assert (decode_mask(payload, noise.shape) == noise).all()  # type: ignore[arg-type]


def test_the_first_pixel_is_the_highest_bit_and_rows_are_differences() -> None:
    # as docs/format.md says, by hand: rows 100..., 110..., 010... -> 80, 80^c0, c0^40
    mask = np.array([[[1, 0, 0], [1, 1, 0], [0, 1, 0]]], bool)
    assert (decode_mask(frame(bytes([0x80, 0x40, 0x80])), (1, 3, 3)) == mask).all()


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b"\x00", "0x00"),
        (b"\x01\x00", "0x01"),
        (b"\x03", "0x03"),
        (b"\x02", "zstd"),
        (frame(bytes(2)), "2 bytes where"),
        (frame(b"\x00\x00\x01"), "beyond the last"),
        (frame(bytes(3))[:-1], "zstd|states 3"),
        (frame(bytes(3)) + b"x", "1 bytes after"),
        (frame(bytes(3)) + zstandard.compress(b"x"), "bytes after"),
    ],
)
def test_refuses_what_encode_mask_never_makes(payload: bytes, match: str) -> None:
    with pytest.raises(Malformed, match=match):
        decode_mask(payload, (1, 3, 5))


def test_refuses_bombs_before_they_go_off() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(2**26))
    with pytest.raises(TooLarge, match="above the limit of 8192"):
        decode_mask(b"\x02" + bomb, (1, 256, 256))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_give_a_mask_or_a_stream_error(noise: bytes, framed: bool) -> None:
    try:
        mask = decode_mask(frame(noise) if framed else noise, (2, 5, 11))
    except StreamError:
        return
    assert mask.shape == (2, 5, 11)


def test_blocks_partition_the_bands() -> None:
    for bands in (1, 15, 16, 17, 32, 33, 512):
        parts = [block_bands("bands", bands, block) for block in range(blocks("bands", bands))]
        assert [band for part in parts for band in part] == list(range(bands))
        assert blocks("none", bands) == 0
        assert blocks("shared", bands) == 1
        assert block_bands("shared", bands, 0) == range(1)
    with pytest.raises(IndexError, match="2 blocks"):
        block_bands("bands", 17, 2)
    with pytest.raises(IndexError, match="0 blocks"):
        block_bands("none", 17, 0)
