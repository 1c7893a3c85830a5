"""Every classical codec against a decoder that is not ours, and against the bounds that it promises.

GDAL's JPEG 2000 driver is OpenJPEG as well, but another build behind another interface: it reads the codestreams as
files and knows nothing of imagecodecs. That the bytes counted are all that it needs is the point.
"""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard

from downlink.quality import Quality
from downlink.scene import Scene
from evaluation.codecs import BOUNDED, CLASSICAL, CodecSpec, sweep
from evaluation.codecs.base import GridCodec, Image, Pixels, mse_of
from evaluation.codecs.j2k import encode_components, size_of
from evaluation.codecs.nodata import fill, pack_mask, unpack_mask
from tests import scenes

PEAK = 10_000.0

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def image(pixels: Pixels, nodata: int | None = None, peak: float = PEAK) -> Image:
    return Image(scenes.scene(pixels, nodata), (pixels,), peak)


def open_codec(name: str) -> GridCodec:
    codec = CodecSpec(name, classical=name).open()
    assert isinstance(codec, GridCodec)
    assert codec.name == name
    return codec


def quality(of: Image, decoded: list[Pixels]) -> Quality:
    found = Quality.of_scene(of.scene, of.peak)
    for number, (one, other) in enumerate(zip(of.grids, decoded, strict=True)):
        found.add(number, one, other)
    return found


def by_gdal(codestream: bytes, folder: Path) -> Pixels:
    rasterio = pytest.importorskip("rasterio")
    path = folder / "codestream.j2k"
    path.write_bytes(codestream)
    with rasterio.open(path) as file:
        assert file.driver == "JP2OpenJPEG"
        pixels: Pixels = file.read()
    return pixels


def only_codestream(payload: bytes) -> bytes:
    """The codestream of a one-grid scene without nodata; nothing else may be in there but the 6 bytes before it."""
    grids, has_nodata, length = struct.unpack_from("<BBI", payload)
    assert (grids, has_nodata) == (1, 0)
    assert len(payload) == 6 + length
    return payload[6:]


def coding_style(codestream: bytes) -> tuple[int, int]:
    """(multiple component transform, wavelet) of the COD marker segment; wavelet 0 is the irreversible 9/7."""
    at = codestream.index(b"\xff\x52")
    return codestream[at + 8], codestream[at + 13]


@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize(
    ("dtype", "shape", "nodata"),
    [
        ("uint16", (1, 70, 50), None),
        ("uint16", (3, 41, 57), 0),
        ("uint8", (3, 64, 64), None),
        ("uint8", (4, 33, 20), 255),
        ("int16", (7, 50, 44), -999),
        ("uint16", (218, 12, 9), None),
        ("uint16", (3, 9, 1), None),
        ("uint16", (12, 1, 7), None),
        ("uint16", (1, 1, 1), None),
    ],
)
def test_any_scene_comes_back_from_the_bytes_alone(
    name: str, dtype: str, shape: tuple[int, int, int], nodata: int | None
) -> None:
    bands, height, width = shape
    pixels = scenes.pixels(3, bands, height, width, dtype, nodata=None).copy()
    if dtype == "int16":
        pixels -= 1500
    if nodata is not None:
        pixels[pixels == nodata] += 1
        pixels[:, : height // 3, : width // 2] = nodata
        pixels[0, -2:, -2:] = nodata  # one band alone
    peak = 255.0 if dtype == "uint8" else PEAK
    of, codec = image(pixels, nodata, peak), open_codec(name)
    finest = sweep(name, peak)[-1]
    [decoded] = open_codec(name).decode(codec.encode(of, finest))
    assert decoded.dtype == pixels.dtype
    assert decoded.shape == pixels.shape
    found = quality(of, [decoded])
    assert found.nodata_wrong == 0
    if min(height, width) > 8:
        assert found.psnr_db > 40


@pytest.mark.parametrize("name", CLASSICAL)
def test_sweep_goes_from_few_bits_to_many_and_spans_the_summarys_levels(name: str) -> None:
    # parcels and noise of 12 DN: no more than 58 dB can be told from noise
    of, codec = image(scenes.pixels(1, 6, 192, 192, nodata=None)), open_codec(name)
    sizes, psnrs = [], []
    for setting in sweep(name, PEAK):
        payload = codec.encode(of, setting)
        sizes.append(len(payload))
        psnrs.append(quality(of, codec.decode(payload)).psnr_db)
    # JPEG XL chooses its tools by the setting, so a finer one may take a little less
    assert all(coarser < 1.15 * finer for coarser, finer in itertools.pairwise(sizes))
    assert psnrs[0] < 40
    assert psnrs[-1] > 50


@pytest.mark.parametrize("name", CLASSICAL)
def test_grids_are_coded_apart_and_their_bytes_add_up(name: str) -> None:
    fine, coarse = scenes.pixels(1, 4, 60, 60, nodata=None), scenes.pixels(2, 6, 30, 30, nodata=None)
    codec = open_codec(name)
    setting = sweep(name, PEAK)[-2]
    both = Image(Scene("two", scenes.scene(fine, None).grids + scenes.scene(coarse, None).grids), (fine, coarse), PEAK)
    payload = codec.encode(both, setting)
    alone = [codec.encode(image(grid), setting) for grid in both.grids]
    assert len(payload) == sum(map(len, alone)) - 1  # one byte states the number of grids
    for decoded, single in zip(codec.decode(payload), alone, strict=True):
        np.testing.assert_array_equal(decoded, codec.decode(single)[0])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint8"])
def test_j2k_is_what_gdal_reads_from_exactly_the_bytes_counted(dtype: str, tmp_path: Path) -> None:
    pixels = scenes.pixels(5, 12, 130, 110, dtype, nodata=None).copy()
    if dtype == "int16":
        pixels -= 1000
    of, codec = image(pixels, peak=255.0 if dtype == "uint8" else PEAK), open_codec("j2k")
    payload = codec.encode(of, 45.0)
    codestream = only_codestream(payload)
    assert size_of(codestream) == (130, 110, 12)
    decoded = by_gdal(codestream, tmp_path)
    np.testing.assert_array_equal(decoded, codec.decode(payload)[0])
    assert quality(of, [decoded]).mse == pytest.approx(((pixels.astype(float) - decoded) ** 2).mean())


def test_j2k_level_is_converted_to_the_scenes_peak() -> None:
    """imagecodecs' own is against 2^bits - 1: for 65535 that is 16.3 dB off."""
    of, codec = image(scenes.pixels(1, 5, 256, 256, nodata=None)), open_codec("j2k")
    for asked in (40.0, 45.0, 50.0):
        assert quality(of, codec.decode(codec.encode(of, asked))).psnr_db == pytest.approx(asked, abs=0.8)


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 12])
def test_j2k_is_irreversible_without_a_colour_transform(bands: int) -> None:
    codestream = encode_components(scenes.pixels(1, bands, 64, 64, nodata=None), mse_of(45, PEAK))
    assert coding_style(codestream) == (0, 0)
    assert b"OpenJPEG" not in codestream


def test_j2k_spends_bits_where_they_lower_the_squared_error_most() -> None:
    """Equal weight for equal squared error: bands that have more to say than the target all end near it."""
    pixels = scenes.pixels(2, 8, 256, 256, nodata=None)
    of, codec = image(pixels), open_codec("j2k")
    errors = np.array(quality(of, codec.decode(codec.encode(of, 46.0))).mse_per_band)
    assert errors.max() < 2.0 * errors.min()
    separate = [open_codec("j2k").encode(image(band[None]), 46.0) for band in pixels]
    assert len(codec.encode(of, 46.0)) < sum(map(len, separate))


def test_klt_is_what_an_independent_decoder_makes_of_the_bytes(tmp_path: Path) -> None:
    pixels = scenes.pixels(6, 12, 150, 140, nodata=None)
    of, codec = image(pixels), open_codec("j2k-klt")
    payload = codec.encode(of, 46.0)
    block = only_codestream(payload)
    bands, dtype, bits, count, scale, offset, height, width = struct.unpack_from("<HBBHfiHH", block)
    assert (bands, dtype, height, width) == (12, 1, 150, 140)
    assert 1 <= count <= 12
    means = np.frombuffer(block, "<u2", 12, 18).astype(float)
    packed = -(-12 * count * bits // 8)
    at = 18 + 24
    number = int.from_bytes(block[at : at + packed], "big") >> (8 * packed - 12 * count * bits)
    digits = [number >> bits * place & (1 << bits) - 1 for place in range(12 * count - 1, -1, -1)]
    signed = [digit - (digit >> bits - 1 << bits) for digit in digits]
    basis = np.array(signed, float).reshape(12, count) / (2 ** (bits - 1) - 1)
    planes = by_gdal(block[at + packed :], tmp_path).reshape(count, -1)
    rebuilt = means[:, None] + basis @ ((planes.astype(float) + offset) / scale)
    expected = np.clip(np.rint(rebuilt), 0, 65535).reshape(pixels.shape)
    np.testing.assert_array_equal(codec.decode(payload)[0], expected)
    # nothing but the container, the side information and the codestream is counted, and nothing less
    assert len(payload) == 6 + 18 + 24 + packed + len(block[at + packed :])


def test_klt_beats_plain_j2k_where_bands_resemble_each_other() -> None:
    of = image(scenes.pixels(7, 12, 256, 256, nodata=None))
    plain, klt = open_codec("j2k"), open_codec("j2k-klt")
    one, other = plain.encode(of, 45.0), klt.encode(of, 45.0)
    assert quality(of, klt.decode(other)).psnr_db > quality(of, plain.decode(one)).psnr_db - 0.7
    assert len(other) < 0.7 * len(one)


def test_klt_of_a_scene_without_contrast_is_its_means() -> None:
    flat = np.broadcast_to(np.array([5, 900, 65535], np.uint16)[:, None, None], (3, 40, 40)).copy()
    codec = open_codec("j2k-klt")
    payload = codec.encode(image(flat), 45.0)
    assert len(payload) < 40
    np.testing.assert_array_equal(codec.decode(payload)[0], flat)


def test_htj2k_is_what_gdal_reads(tmp_path: Path) -> None:
    of, codec = image(scenes.pixels(5, 5, 96, 80, nodata=None)), open_codec("htj2k")
    payload = codec.encode(of, 60.0)
    codestream = only_codestream(payload)
    assert coding_style(codestream) == (0, 0)
    decoded = by_gdal(codestream, tmp_path)
    # two libraries, two orders of float arithmetic
    assert np.abs(decoded.astype(int) - codec.decode(payload)[0]).max() <= 1


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_bounds_are_kept_to_the_ends_of_the_range(name: str, dtype: str) -> None:
    limit, shape = np.iinfo(dtype), (2, 30, 40)
    noise = np.random.default_rng(0).integers(limit.min, limit.max, shape, dtype, endpoint=True)
    extremes = np.where(np.indices(shape).sum(axis=0) % 2, limit.max, limit.min).astype(dtype)
    codec = open_codec(name)
    for pixels in (noise, extremes, scenes.pixels(8, *shape, dtype, nodata=None)):
        for bound in (0, 1, 12, 100, 255, 300, 65535):
            decoded = codec.decode(codec.encode(image(pixels), float(bound)))
            assert decoded[0].dtype == pixels.dtype
            assert np.abs(decoded[0].astype(int) - pixels).max() <= bound


def test_bounded_codecs_are_what_they_say() -> None:
    of = image(scenes.pixels(8, 6, 100, 90, nodata=None))
    blob = zstandard.ZstdDecompressor().decompressobj().decompress(only_codestream(open_codec("lerc").encode(of, 12.0)))
    assert blob.startswith(b"Lerc2")
    # the scan header of a codestream of one component has the bound as NEAR
    block = only_codestream(open_codec("jpegls").encode(of, 12.0))
    scan = block.index(b"\xff\xda")
    assert block[9:11] == b"\xff\xd8"
    assert block[scan + 7] == 12
    for bands in (1, 6):
        some = image(of.grids[0][:bands])
        assert only_codestream(open_codec("jpegxl-lossless").encode(some, 12.0))[3:5] == b"\xff\x0a"


def test_jpegxl_counts_a_codestream_per_band() -> None:
    of, codec = image(scenes.pixels(8, 3, 64, 64, nodata=None)), open_codec("jpegxl")
    block = only_codestream(codec.encode(of, 1.0))
    at, lengths = 3, []
    for _ in range(3):
        (length,) = struct.unpack_from("<I", block, at)
        assert block[at + 4 : at + 6] == b"\xff\x0a"  # a bare JPEG XL codestream, no boxes
        lengths.append(length)
        at += 4 + length
    assert at == len(block)
    assert min(lengths) > 100


def test_masks_and_filling() -> None:
    pixels = scenes.pixels(4, 3, 90, 77)
    hole = pixels == 0
    assert hole.any()
    packed = pack_mask(hole)
    np.testing.assert_array_equal(unpack_mask(packed, hole.shape), hole)
    hole[1, 40:50, 3:9] = True  # no longer shared
    np.testing.assert_array_equal(unpack_mask(pack_mask(hole), hole.shape), hole)
    assert len(packed) < 400

    filled = fill(pixels[0], hole[0])
    np.testing.assert_array_equal(filled[~hole[0]], pixels[0][~hole[0]])
    known = pixels[0][~hole[0]]
    assert known.min() <= filled[hole[0]].min()
    assert filled[hole[0]].max() <= known.max()
    assert not fill(pixels[0], np.ones_like(hole[0])).any()


def test_nodata_costs_little() -> None:
    """Filled holes and a mask take fewer bits than the pixels that were there."""
    whole = scenes.pixels(9, 6, 256, 256, nodata=None)
    holed = whole.copy()
    holed[:, 60:200, 30:180] = 0
    for name in ("j2k", "j2k-klt"):
        codec = open_codec(name)
        assert len(codec.encode(image(holed, 0), 46.0)) < 0.8 * len(codec.encode(image(whole, 0), 46.0))
