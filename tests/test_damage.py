"""A real stream, spoilt anywhere: a typed error and no output file, never a different image."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="pip install 'latent-downlink[ground]'")

from decoder_node.decoding import decode_stream
from downlink.bundle import find
from downlink.errors import StreamError
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source_array import ArraySource
from encoder_node.target import Target
from tests import scenes


@pytest.fixture(scope="module")
def stream() -> bytes:
    import io

    pixels = scenes.pixels(3, 3, 40, 36)
    with encode_scene(ArraySource(scenes.scene(pixels), pixels), PlaneEncoder(find("universal")), Target()) as encoded:
        file = io.BytesIO()
        encoded.write(file)
    return file.getvalue()


def refused(spoilt: bytes, folder: Path) -> bool:
    source, target = folder / "spoilt.dl", folder / "out.tif"
    source.write_bytes(spoilt)
    try:
        decode_stream(source, target, ())
    except StreamError:
        return not target.exists()
    return False


def test_the_whole_stream_decodes(stream: bytes, tmp_path: Path):
    assert not refused(stream, tmp_path)
    assert (tmp_path / "out.tif").exists()


def test_every_byte_flipped_is_refused(stream: bytes, tmp_path: Path):
    for at in range(len(stream)):
        for bit in (0x01, 0x80, 0xFF):
            spoilt = bytearray(stream)
            spoilt[at] ^= bit
            assert refused(bytes(spoilt), tmp_path), f"byte {at} of {len(stream)} ^ {bit:#04x} went unnoticed"


def test_every_cut_and_every_addition_is_refused(stream: bytes, tmp_path: Path):
    for end in range(len(stream)):
        assert refused(stream[:end], tmp_path), f"the first {end} of {len(stream)} bytes were taken for the whole"
    assert refused(stream + b"\0", tmp_path)
    assert refused(stream + stream, tmp_path)
