"""What manifests often say, as a zstd dictionary: both ends hold it, so that it need not be sent.

Part of the format (manifest version 2): changing a byte here makes a new version. A manifest that says other things
costs a few bytes more, nothing else.
"""

from __future__ import annotations

import struct
from typing import Final

_TEXTS: Final = (
    "AREA_OR_POINT", "Area", "Point", "TIFFTAG_DATETIME", "TIFFTAG_SOFTWARE", "TIFFTAG_IMAGEDESCRIPTION", "LICENCE",
    "SOURCE", "SENSOR", "LEVEL", "SENSING_TIME", "PRODUCT_TYPE", "PRODUCT_URI", "PROCESSING_BASELINE", "ORBIT",
    "CLOUDY_PIXEL_PERCENTAGE", "METADATATYPE", "scales", "offsets", "Copernicus Sentinel data", "free, full and open",
    "Landsat-5 TM", "Landsat-7 ETM+", "Landsat-8 OLI", "Landsat-9 OLI", "Sentinel-2A", "Sentinel-2B", "Sentinel-2C",
    "S2A_MSIL2A_", "S2B_MSIL1C_", "Sentinel-2", "L2A", "L1C", "EPSG:4326", "EPSG:3857", "EPSG:327", "EPSG:326",
)  # fmt: skip
_BANDS: Final = (
    "red", "green", "blue", "nir", "swir1", "swir2", "SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7",
    "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11", "B12",
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12",
)  # fmt: skip
_WAVELENGTHS_NM: Final = (442.7, 492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 945.1, 1373.5, 1613.7, 2202.4)


def _text(value: str) -> bytes:
    """msgpack's form of a short string."""
    octets = value.encode()
    return bytes([0xA0 | len(octets)]) + octets if len(octets) < 32 else bytes([0xD9, len(octets)]) + octets


def _words() -> bytes:
    out = b"".join(_text(text) for text in _TEXTS)
    out += b"".join(b"\x92" + _text("") + b"\xcb" + struct.pack(">d", nm) for nm in _WAVELENGTHS_NM)
    out += b"".join(b"\x92" + _text(band) + b"\xc0" for band in _BANDS)
    for kind in ("bands", "shared", "none"):  # codings and settings as manifests end with them
        out += _text("uint8") + _text("int16") + _text("uint16")
        out += b"\x97" + _text("planes") + b"\xcd\x01\x00\x0c\x0c\x04" + _text(kind)
        out += b"".join(b"\x81" + _text(target) for target in ("psnr_db", "bits_per_sample", "quality"))
    return out + b"\xc0\xc0\xc0" + _text("universal") + b"\x91\x97" + _text("planes") + b"\xc4\x20"


WORDS: Final = _words()
