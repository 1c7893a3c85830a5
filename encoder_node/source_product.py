"""Sentinel-2 products (`.SAFE` folders, zipped or not) and folders of one file per band.

Bands of one pixel size are one grid, so 10, 20 and 60 m bands travel at their own size and nothing is resampled. Where
a product holds a band at several sizes (Level-2A does), its native one is taken. Of a product only the spectral bands
are read; scene classification, AOT, water vapour, TCI and previews are not.

From the product's metadata: acquisition, baseline, spacecraft, quantification and **radiometric offsets, which are
carried as tags and not applied**, wavelengths, and the nodata value that the product states. A folder of band files is
any folder with `*_B01.jp2`, `*_B8A.tif`, `*_B10_60m.jp2`, `*_B5.TIF`, ... of one scene (Sentinel-2, Landsat,
BigEarthNet). Refused: products of several granules (name one of them), the same band twice at one size.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import msgspec

from downlink.errors import SceneError
from downlink.scene import Band, Grid, Scene, printable
from encoder_node.source_facts import acquired, carry_tags, iso_time, nodata_value
from encoder_node.source_raster import RasterSource, check, describe, open_dataset

_BAND_FILE: Final = re.compile(r"(?P<stem>.*)_(?P<band>B\d{1,2}A?)(?:_(?P<res>\d{2})m)?\.(?:jp2|tiff?)", re.IGNORECASE)
_TIME: Final = re.compile(r"(?:^|_)(\d{4})(\d\d)(\d\d)T(\d{5,6})(?=_|$)")
_LANDSAT_DATE: Final = re.compile(r"L[A-Z]0\d_[A-Z0-9]{4}_\d{6}_(\d{4})(\d\d)(\d\d)_")
_SENTINEL2: Final = re.compile(r"(?:^|_)(?:S2[A-D]_MSI|T\d\d[A-Z]{3}_\d{8}T)")
_METADATA: Final = re.compile(r"(MTD_MSIL(1C|2A)|S2[A-D]_OPER_MTD_SAFL(1C|2A)\w*)\.xml")
_XML_BYTES_MAX: Final = 16 << 20  # a product's own XML is some 50 KiB

# Nominal centre wavelengths in nm (Sentinel-2A) and native pixel sizes in m, for band files without product metadata.
_SENTINEL2_BANDS: Final = {
    "B01": (442.7, 60), "B02": (492.4, 10), "B03": (559.8, 10), "B04": (664.6, 10), "B05": (704.1, 20),
    "B06": (740.5, 20), "B07": (782.8, 20), "B08": (832.8, 10), "B8A": (864.7, 20), "B09": (945.1, 60),
    "B10": (1373.5, 60), "B11": (1613.7, 20), "B12": (2202.4, 20),
}  # fmt: skip


class _File(NamedTuple):
    """One band's file: where GDAL finds it, and what its name says."""

    path: str
    stem: str
    band: str
    res: int | None


class _Product(NamedTuple):
    """What the product's metadata says."""

    tags: dict[str, str]
    nodata: float | None
    wavelengths: dict[str, float]


def is_product(path: Path) -> bool:
    """True for a folder, or a zip, that holds band files."""
    if path.is_dir():
        return any(_BAND_FILE.fullmatch(name.name) for name in _files(path))
    return path.suffix.lower() == ".zip" and zipfile.is_zipfile(path)


def open_product(path: Path) -> RasterSource:
    """Open a product or a folder of band files."""
    names = [str(name) for name in _files(path)]
    files = _choose(path, names)
    product = _metadata(path, names)
    sentinel2 = bool(product.wavelengths) or bool(_SENTINEL2.search(files[0].stem))
    datasets: list[Any] = []
    try:
        notes: list[str] = []
        tags = dict(product.tags)
        grids: dict[object, tuple[Grid, list[Band], list[Any]]] = {}
        for file in files:
            dataset = open_dataset(file.path)
            datasets.append(dataset)
            if dataset.count != 1:
                raise SceneError(f"{file.path}: has {dataset.count} bands, a band file has 1; open it on its own")
            grid, band_tags, band_notes = describe(dataset, PurePosixPath(file.path).name)
            if product.nodata is not None and grid.nodata is None:
                nodata, nodata_tags, _ = nodata_value(product.nodata, grid.dtype)
                grid, band_tags = msgspec.structs.replace(grid, nodata=nodata), band_tags | nodata_tags
            tags |= {f"{key}_{file.band}": value for key, value in band_tags.items()}
            notes += [f"{file.band}: {note}" for note in band_notes]
            nominal = _SENTINEL2_BANDS.get(file.band, (None, 0))[0] if sentinel2 else None
            wavelength = product.wavelengths.get(file.band, nominal) or grid.bands[0].wavelength_nm
            key = (grid.height, grid.width, grid.dtype, grid.nodata, grid.crs, grid.transform)
            _, bands, parts = grids.setdefault(key, (grid, [], []))
            bands.append(Band(file.band, wavelength))
            parts.append(dataset)
        ordered = sorted(grids.values(), key=lambda entry: _pixel_size(entry[0]))
        carried, tag_notes = carry_tags(tags)
        scene = Scene(
            name=_name(path, files),
            grids=tuple(msgspec.structs.replace(grid, bands=tuple(bands)) for grid, bands, _ in ordered),
            acquired=acquired(tags) or _name_time(files[0].stem, sentinel2),
            tags=carried,
        )
        check(scene, path)
    except BaseException:
        for dataset in datasets:
            dataset.close()
        raise
    return RasterSource(scene, [parts for _, _, parts in ordered], [*notes, *tag_notes])


def _files(path: Path) -> Iterable[PurePosixPath]:
    """The files of a folder or a zip, relative to it, sorted. Folders below are searched in a product only."""
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            return sorted(PurePosixPath(name) for name in archive.namelist() if not name.endswith("/"))
    deep = any(_METADATA.fullmatch(name.name) for name in path.iterdir()) or (path / "IMG_DATA").is_dir()
    found = path.rglob("*") if deep else path.iterdir()
    return sorted(PurePosixPath(name.relative_to(path).as_posix()) for name in found if name.is_file())


def _choose(path: Path, names: list[str]) -> list[_File]:
    """One file per band, the native size where there are several, in the order of the bands."""
    prefix = f"/vsizip/{{{path.resolve().as_posix()}}}" if path.is_file() else path.as_posix()
    chosen: dict[str, _File] = {}
    for name in names:
        inner = PurePosixPath(name)
        match = _BAND_FILE.fullmatch(inner.name)
        if not match or "QI_DATA" in inner.parts:
            continue
        band = match["band"].upper()
        file = _File(f"{prefix}/{name}", match["stem"], band, int(match["res"]) if match["res"] else None)
        other = chosen.setdefault(band, file)
        if other.stem.removesuffix("_") != file.stem.removesuffix("_"):
            raise SceneError(
                f"{path}: holds band {band} of two scenes, {other.stem} and {file.stem}; name a folder with one of them"
            )
        if other is not file and other.res == file.res:
            raise SceneError(f"{path}: holds band {band} twice, {other.path} and {file.path}; keep one")
        if other is not file:
            chosen[band] = min(other, file, key=lambda one: _strangeness(band, one.res))
    if not chosen:
        raise SceneError(f"{path}: holds no band files (*_B02.jp2, *_B8A.tif, ...)")
    # B8A lies between B08 and B09, in the spectrum as in every product
    return sorted(chosen.values(), key=lambda file: (int(file.band[1:].rstrip("A")), file.band))


def _strangeness(band: str, res: int | None) -> tuple[bool, int]:
    native = _SENTINEL2_BANDS.get(band, (0.0, 0))[1]
    return res != native, res or 0


def _metadata(path: Path, names: list[str]) -> _Product:
    """What the product's XML says; nothing if there is none."""
    found = next((name for name in names if _METADATA.fullmatch(PurePosixPath(name).name)), None)
    if found is None:
        return _Product({}, None, {})
    try:
        if path.is_file():
            with zipfile.ZipFile(path) as archive, archive.open(found) as stream:
                text = stream.read(_XML_BYTES_MAX + 1)
        else:
            with (path / found).open("rb") as stream:
                text = stream.read(_XML_BYTES_MAX + 1)
        if len(text) > _XML_BYTES_MAX:
            raise SceneError(f"{path}: {found} has more than {_XML_BYTES_MAX} bytes; that is no product metadata")
        root = ET.fromstring(text)
    except (ET.ParseError, OSError, zipfile.BadZipFile) as error:
        raise SceneError(f"{path}: {found} cannot be read ({error}); is the product complete?") from error
    tags: dict[str, str] = {}
    for key in (
        "PRODUCT_START_TIME", "PRODUCT_URI", "PROCESSING_LEVEL", "PROCESSING_BASELINE", "SPACECRAFT_NAME",
        "SENSING_ORBIT_NUMBER", "QUANTIFICATION_VALUE", "BOA_QUANTIFICATION_VALUE",
    ):  # fmt: skip
        text_of = root.findtext(f".//{key}")
        if text_of and text_of.strip():
            tags[key] = text_of.strip()
    for key in ("RADIO_ADD_OFFSET", "BOA_ADD_OFFSET"):
        values = [(element.text or "").strip() for element in root.iter(key)]
        if values:  # one number if it is the same for all bands, else one per band in the order of the product's bands
            tags[key] = values[0] if len(set(values)) == 1 else " ".join(values)
    nodata = None
    for special in root.iter("Special_Values"):
        if (special.findtext("SPECIAL_VALUE_TEXT") or "").strip() == "NODATA":
            nodata = _number(special.findtext("SPECIAL_VALUE_INDEX"))
    wavelengths = {}
    for information in root.iter("Spectral_Information"):
        band = information.get("physicalBand", "").upper()
        band = f"B0{band[1]}" if len(band) == 2 else band
        central = information.find("Wavelength/CENTRAL")
        value = _number(central.text) if central is not None else None
        if value and central is not None and central.get("unit", "nm") == "nm":
            wavelengths[band] = value
    return _Product(tags, nodata, wavelengths)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _pixel_size(grid: Grid) -> float:
    return abs(grid.transform[0]) if grid.transform else -float(grid.width)


def _name(path: Path, files: list[_File]) -> str:
    for suffix in (".SAFE.zip", ".zip", ".SAFE"):
        if path.name.lower().endswith(suffix.lower()):
            return printable(path.name[: -len(suffix)])
    return printable(files[0].stem or path.name)


def _name_time(stem: str, sentinel2: bool) -> str | None:
    """The sensing time in a Sentinel-2 name, which is UTC, or the date in a Landsat one.

    >>> _name_time("S2B_MSIL2A_20170924T93020_69_24", True), _name_time("LC08_L1TP_224077_20200518_20200820", False)
    ('2017-09-24T09:30:20Z', '2020-05-18')
    """
    landsat = _LANDSAT_DATE.match(stem)
    if landsat:
        return iso_time("-".join(landsat.groups()))
    match = _TIME.search(stem)
    if not match or not sentinel2:
        return None
    clock = match[4].zfill(6)
    return iso_time(f"{match[1]}-{match[2]}-{match[3]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}Z")
