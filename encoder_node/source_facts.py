"""What a source may say about its scene: which pixel types are taken, which tags are carried, how times are written.

Nothing here opens a file. Whatever cannot be carried is named in a note, never dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from downlink import limits
from downlink.errors import SceneError
from downlink.scene import DTYPES, printable

# Tags that hold the time of acquisition, the most specific first. TIFFTAG_DATETIME is often the time of processing
# instead; it comes last, and the tag itself is carried, so that a reader sees where the time is from.
TIME_TAGS: Final = (
    "ACQUISITIONDATETIME",
    "ACQUISITION_DATETIME",
    "ACQUISITION_TIME",
    "ACQUISITION_DATE",
    "SENSING_TIME",
    "DATATAKE_1_DATATAKE_SENSING_START",
    "PRODUCT_START_TIME",
    "acquired",
    "acquisition_time",
    "TIFFTAG_DATETIME",
)

_TIFF_TIME: Final = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)")


def iso_time(text: str) -> str | None:
    """`text` as ISO 8601 if it is a date or a time, else None. Nothing is added: no time zone, no time of day.

    >>> iso_time("2017:02:16 10:21:01"), iso_time("20170216T102101Z"), iso_time("last Tuesday")
    ('2017-02-16T10:21:01', '20170216T102101Z', None)
    """
    text = text.strip()
    tiff = _TIFF_TIME.fullmatch(text)
    if tiff:
        text = f"{tiff[1]}-{tiff[2]}-{tiff[3]}T{tiff[4]}"
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return None
    return text


def acquired(tags: Mapping[str, str]) -> str | None:
    """The time of acquisition as the tags state it, or None."""
    for key in TIME_TAGS:
        time = iso_time(tags[key]) if key in tags else None
        if time:
            return time
    return None


def carry_tags(tags: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(the tags that fit a manifest, notes on those that do not).

    A tag that is too long is left out whole: half a tag would be a wrong one. Control characters become spaces.
    """
    carried: dict[str, str] = {}
    dropped: list[str] = []
    total = 0
    for key, value in tags.items():
        clean_key, clean = printable(key, 10**6), printable(str(value), 10**6)
        size = len(clean_key.encode()) + len(clean.encode())
        too_long = max(len(clean_key.encode()), len(clean.encode())) > limits.TEXT_BYTES_MAX
        full = len(carried) == limits.TAGS_MAX or total + size > limits.TAGS_BYTES_MAX
        if not clean_key or not clean or too_long or full:
            dropped.append(printable(key, 64))
            continue
        carried[clean_key] = clean
        total += size
    if not dropped:
        return carried, []
    names = ", ".join(dropped[:8]) + (f" and {len(dropped) - 8} more" if len(dropped) > 8 else "")
    return carried, [
        f"tags not carried: {names} (empty, longer than {limits.TEXT_BYTES_MAX} bytes, more than {limits.TAGS_MAX}, or "
        f"past {limits.TAGS_BYTES_MAX} bytes together)"
    ]


def nodata_value(stated: float | None, dtype: str) -> tuple[int | None, dict[str, str], list[str]]:
    """(nodata as the dtype can hold it, tags, notes). A value no pixel can have marks nothing: it becomes a tag."""
    if stated is None:
        return None, {}, []
    low, high = {"uint8": (0, 255), "uint16": (0, 65535), "int16": (-32768, 32767)}[dtype]
    if stated == stated and low <= stated <= high and float(stated).is_integer():
        return int(stated), {}, []
    note = f"nodata {stated:g} is no {dtype} value, so no pixel has it: kept as a tag"
    return None, {"nodata": f"{stated:g}"}, [note]


def check_dtypes(dtypes: Iterable[str], what: str) -> str:
    """The one dtype of all bands; refuses several, and those that only a conversion can bring in (not floats)."""
    found = list(dict.fromkeys(dtypes))
    if len(found) > 1:
        raise SceneError(
            f"{what}: its bands are {' and '.join(found)}, a scene's grid has one dtype; bring them to one, "
            f"e.g. `gdal_translate -ot UInt16 IN OUT`"
        )
    if found[0] not in DTYPES:
        raise SceneError(f"{what}: {found[0]} pixels; {advice(found[0])}")
    return found[0]


def advice(
    dtype: str, low: float | None = None, high: float | None = None, whole: bool = False, holes: bool = False
) -> str:
    """What to do with pixels of a dtype that is not taken, given their range and whether all are whole numbers."""
    taken = "uint8, uint16 and int16 are taken."
    if dtype == "bool":
        return f"{taken} A mask is no image: send it as nodata, or as uint8 where it must travel as a band"
    if dtype.startswith("complex"):
        return f"{taken} Send amplitude and phase as bands of their own, scaled to 16 bit"
    if dtype == "int8":
        return f"{taken} Nothing is lost by `gdal_translate -ot Int16 IN OUT`"
    if low is None or high is None:
        return f"{taken} Convert it, e.g. `gdal_translate -ot UInt16 -scale LOW HIGH 0 65535 IN OUT`"
    if whole:
        for name, gdal, bottom, top in (("uint16", "UInt16", 0, 65535), ("int16", "Int16", -32768, 32767)):
            if bottom <= low and high <= top:
                return (
                    f"{taken} All its values are whole numbers from {low:g} to {high:g}, so nothing is lost as {name}: "
                    f"`gdal_translate -ot {gdal} IN OUT`"
                )
    first, nodata = (1, " -a_nodata 0") if holes else (0, "")  # what lies below the range becomes 0
    step = (high - low) / (65535 - first)
    return (
        f"{taken} Its values go from {low:g} to {high:g}: `gdal_translate -ot UInt16 -scale {low:g} {high:g} "
        f"{first} 65535{nodata} IN OUT` brings them in, in steps of {step:.3g}"
    )
