"""Each lossless baseline against a tool that is not imagecodecs: its bytes are what that tool makes or reads, so rate
and error are what the codec's own people would see. JPEG 2000 in its three forms is in test_codecs.py."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from downlink.quality import Quality
from evaluation.codecs import BOUNDED, CodecSpec
from evaluation.codecs.base import GridCodec, Image, Pixels
from evaluation.codecs.bounded import dequantise, quantise
from tests import scenes

PIXELS = scenes.pixels(8, 3, 90, 100, nodata=None)
HEADS = {"aec": "<BHHIIB", "pcodec": "<BHHII"}


def open_codec(name: str) -> GridCodec:
    codec = CodecSpec(name, classical=name).open()
    assert isinstance(codec, GridCodec)
    return codec


def encoded(name: str, bound: int, pixels: Pixels = PIXELS) -> bytes:
    payload = open_codec(name).encode(Image(scenes.scene(pixels, None), (pixels,), 10_000.0), float(bound))
    return payload[6:]


def codestreams(name: str, block: bytes) -> list[bytes]:
    """Those of the bands; nothing may come after them."""
    at, found = struct.calcsize(HEADS[name]), []
    while at < len(block):
        (length,) = struct.unpack_from("<I", block, at)
        found.append(block[at + 4 : at + 4 + length])
        at += 4 + length
    assert at == len(block)
    return found


@pytest.mark.skipif(shutil.which("aec") is None, reason="needs libaec's own tool (Debian: libaec-tools)")
@pytest.mark.parametrize("bound", [0, 12])
def test_aec_makes_the_bytes_of_libaecs_own_tool(bound: int, tmp_path: Path) -> None:
    block, numbers = encoded("aec", bound), quantise(PIXELS, bound)
    bits = block[struct.calcsize(HEADS["aec"]) - 1]
    assert bits == int(numbers.max()).bit_length()
    wide = "<u2" if bits > 8 else "u1"
    for band, codestream in zip(numbers, codestreams("aec", block), strict=True):
        (tmp_path / "raw").write_bytes(np.ascontiguousarray(band).astype(wide).tobytes())
        options = ["-n", str(bits), "-j", "16", "-r", "128"]
        subprocess.run(["aec", *options, "raw", "coded"], cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "coded").read_bytes() == codestream
        subprocess.run(["aec", "-d", *options, "coded", "back"], cwd=tmp_path, check=True, capture_output=True)
        back = np.frombuffer((tmp_path / "back").read_bytes(), wide)[: band.size]
        assert np.array_equal(back, band.ravel())


def unrice(codestream: bytes, bits: int, count: int, block: int = 16, interval: int = 128) -> list[int]:
    """CCSDS 121.0-B-3 as its text has it, for unsigned samples of more than 4 bits behind the unit-delay predictor."""
    digits = "".join(f"{byte:08b}" for byte in codestream)
    identifier, at = (3 if bits <= 8 else 4), 0
    top = (1 << bits) - 1
    samples: list[int] = []

    def take(width: int) -> int:
        nonlocal at
        at += width
        return int(digits[at - width : at], 2) if width else 0

    def unary() -> int:
        nonlocal at
        end = digits.index("1", at)
        ones, at = end - at, end + 1
        return ones

    while len(samples) < count:
        first = len(samples) // block % interval == 0
        option = take(identifier)
        second = option == 0 and take(1)
        start = [take(bits)] if first else []
        wanted = block - len(start)
        blocks = 1
        if option == 0 and not second:  # a run of blocks without differences
            run = unary() + 1
            at_block = len(samples) // block % interval
            rest = min(64 - at_block % 64, interval - at_block)
            blocks = rest if run == 5 else run - (run > 5)
            mapped = [0] * (wanted + block * (blocks - 1))
        elif option == 0:  # pairs of samples by one number of the second extension
            mapped = []
            while len(mapped) < block:
                number = unary()
                beta = int(((8 * number + 1) ** 0.5 - 1) / 2)
                other = number - beta * (beta + 1) // 2
                mapped += [beta - other, other]
            mapped = mapped[1:] if first else mapped  # a 0 stands where the reference sample is
        elif option == (1 << identifier) - 1:
            mapped = [take(bits) for _ in range(wanted)]
        else:
            high = [unary() for _ in range(wanted)]
            mapped = [value << option - 1 | take(option - 1) for value in high]
        samples += start
        for value in mapped:
            before = samples[-1]
            reach = min(before, top - before)
            if value > 2 * reach:
                away = value - reach
                samples.append(before + away if before < top - before else before - away)
            else:
                samples.append(before + value // 2 if value % 2 == 0 else before - (value + 1) // 2)
    return samples[:count]


@pytest.mark.parametrize("bound", [0, 3, 40])
def test_aec_is_what_the_standard_says(bound: int) -> None:
    """Read by a decoder made from the text of the standard, slowly."""
    pixels = PIXELS[:2, :30, :40].copy()
    pixels[:, 10:20] = pixels[:, 10:11, :1]  # blocks that need no bits at all
    block = encoded("aec", bound, pixels)
    bits = block[struct.calcsize(HEADS["aec"]) - 1]
    found = [unrice(codestream, bits, 1200) for codestream in codestreams("aec", block)]
    assert np.array_equal(np.array(found).reshape(pixels.shape), quantise(pixels, bound))


@pytest.mark.parametrize("bound", [0, 12])
def test_pcodec_is_what_pcos_own_package_reads_and_makes(bound: int) -> None:
    standalone = pytest.importorskip("pcodec").standalone
    numbers = quantise(PIXELS, bound)
    for band, codestream in zip(numbers, codestreams("pcodec", encoded("pcodec", bound)), strict=True):
        assert np.array_equal(standalone.simple_decompress(codestream), band.ravel())
        from pcodec import ChunkConfig

        own = standalone.simple_compress(np.ascontiguousarray(band).ravel(), ChunkConfig(compression_level=8))
        assert len(codestream) == pytest.approx(len(own), rel=0.01)


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize(
    ("name", "bound", "options"),
    [
        ("zstd", 0, {"COMPRESS": "ZSTD", "PREDICTOR": "2", "ZSTD_LEVEL": "9"}),
        ("lerc", 0, {"COMPRESS": "LERC_ZSTD", "MAX_Z_ERROR": "0", "ZSTD_LEVEL": "9"}),
        ("lerc", 12, {"COMPRESS": "LERC_ZSTD", "MAX_Z_ERROR": "12", "ZSTD_LEVEL": "9"}),
    ],
)
def test_archives_codecs_take_the_bits_that_gdal_takes(
    name: str, bound: int, options: dict[str, str], tmp_path: Path
) -> None:
    """A GeoTIFF of one strip per band: its bytes but for the directory, and its errors."""
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "gdal.tif"
    pixels = scenes.pixels(8, 3, 200, 220, nodata=None)
    bands, height, width = pixels.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", BLOCKYSIZE=height, INTERLEAVE="BAND", **shape, **options) as file:
        file.write(pixels)
    with rasterio.open(path) as file:
        by_gdal = file.read()
    block = encoded(name, bound, pixels)
    directory = 700
    assert len(block) == pytest.approx(path.stat().st_size - directory, rel=0.03)
    ours = open_codec(name).decode_grid(block)
    errors = [np.abs(one.astype(int) - pixels).max() for one in (ours, by_gdal)]
    assert max(errors) <= bound
    assert errors[0] == errors[1]


@pytest.mark.parametrize("name", BOUNDED)
def test_bits_and_errors_are_those_of_the_bytes(name: str) -> None:
    """The error of a rounded baseline is uniform over its bound, which is the most that a bound allows to save."""
    quality = {}
    for bound in (0, 12):
        decoded = open_codec(name).decode_grid(encoded(name, bound))
        found = Quality([3], 10_000.0)
        found.add(0, PIXELS, decoded)
        quality[bound] = found
        if name not in ("jpegls", "lerc"):  # which round by themselves
            assert np.array_equal(decoded, dequantise(quantise(PIXELS, bound), bound, PIXELS.dtype))
    assert quality[0].max_error == 0
    assert quality[12].max_error == 12
    assert quality[12].mse == pytest.approx((25**2 - 1) / 12, rel=0.15)
    assert len(encoded(name, 12)) < 0.7 * len(encoded(name, 0))
