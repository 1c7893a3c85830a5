"""Scenes that GDAL reads, through rasterio: one file, one grid. Read by windows; GDAL's block cache is kept small.

Carried: pixels, CRS ("EPSG:n" where that is exactly it, else WKT), transform, nodata, band names and wavelengths, tags,
scale and offset of the bands (as tags `scales`, `offsets`: stated, never applied), the time of acquisition.
Not carried, and said in `notes`: ground control points, RPCs, validity masks beside the file, colour tables, further
images of the file, nodata values that differ between bands.

Drivers come from a list: this is a reader of images, and GDAL also reads formats that fetch over the network.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

# GDAL would take 5 % of the machine's memory for its blocks. Read once, when GDAL first needs it; the user's own wins.
os.environ.setdefault("GDAL_CACHEMAX", "128")

import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what GDAL and PROJ say is raised as this, which is not public
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform
from rasterio.windows import Window as RasterWindow

from downlink.errors import DownlinkError, SceneError
from downlink.scene import DTYPES, Band, Grid, Scene, Transform, printable, validate
from downlink.tile import Window
from encoder_node.durable import shown
from encoder_node.source import Pixels, check_window
from encoder_node.source_facts import acquired, advice, carry_tags, check_dtypes, nodata_value

DRIVERS: Final = ("GTiff", "JP2OpenJPEG", "ENVI", "EHdr", "HFA")

# How many samples are looked at to say what to do with a type that is not taken.
_LOOK_SAMPLES_MAX: Final = 1 << 26


class RasterSource:
    """A scene whose grids lie in one or more open datasets: `parts[g]` holds the bands of grid g, in order.

    A grid is either one dataset with all its bands, or several datasets of one band each.
    """

    def __init__(self, scene: Scene, parts: Sequence[Sequence[Any]], notes: Sequence[str]) -> None:
        self.scene = scene
        self.notes = tuple(notes)
        self._parts = parts

    def read(self, grid: int, window: Window) -> Pixels:
        geometry, datasets = self.scene.grids[grid], self._parts[grid]
        check_window(window, geometry.height, geometry.width)
        there = RasterWindow(window.col, window.row, window.width, window.height)
        if len(datasets) == 1:
            return _read(datasets[0], there)
        return np.concatenate([_read(dataset, there) for dataset in datasets])

    def close(self) -> None:
        for datasets in self._parts:
            for dataset in datasets:
                dataset.close()


def _read(dataset: Any, window: RasterWindow) -> Pixels:
    try:
        pixels: Pixels = dataset.read(window=window)
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(f"{dataset.name}: its pixels cannot be read ({error}); is the file complete?") from error
    return pixels


def open_dataset(path: str | Path) -> Any:
    """Open one file with an allowed driver."""
    try:
        with warnings.catch_warnings(), rasterio.Env():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            # not rasterio.open(), which takes one driver only; an absolute path cannot be mistaken for a URL
            return DatasetReader(os.path.abspath(path), driver=list(DRIVERS))
    except UnicodeEncodeError as error:
        raise SceneError(f"{shown(Path(path))}: its name is not UTF-8, which GDAL needs; rename it") from error
    except rasterio.errors.RasterioIOError as error:
        raise SceneError(
            f"{path}: cannot be opened as {', '.join(DRIVERS)} ({error}); "
            f"other formats: convert with `gdal_translate IN OUT.tif`"
        ) from error


def open_raster(path: Path) -> RasterSource:
    """Open one raster file."""
    if path.is_dir():
        raise SceneError(f"{path}: a folder without a Sentinel-2 product or band files (*_B02.tif, ...); name a file")
    if path.suffix.lower() == ".hdr":
        raise SceneError(f"{path}: the header of an ENVI image; name the file with the pixels, beside it")
    dataset = open_dataset(path)
    try:
        grid, tags, notes = describe(dataset, path.name)
        envi = {key.replace(" ", "_"): value for key, value in dataset.tags(ns="ENVI").items()}
        stated = dataset.tags() | dataset.tags(ns="IMAGERY")
        if "acquisition_time" in envi:
            stated["acquisition_time"] = envi["acquisition_time"]
        carried, tag_notes = carry_tags(stated | tags)
        scene = Scene(printable(path.stem), (grid,), acquired(stated), carried)
        check(scene, path)
    except BaseException:
        dataset.close()
        raise
    return RasterSource(scene, [[dataset]], [*notes, *tag_notes])


def check(scene: Scene, path: Path) -> None:
    """Refuse, as the user's error, what no stream may hold."""
    try:
        validate(scene)
    except DownlinkError as error:
        raise SceneError(f"{path}: {error}") from error


def describe(dataset: Any, what: str) -> tuple[Grid, dict[str, str], list[str]]:
    """(the grid that a dataset is, tags that its bands need, notes)."""
    if dataset.count == 0:
        images = ", ".join(dataset.subdatasets[:4])
        raise SceneError(f"{what}: has no band of its own; extract one of its images with `gdal_translate`: {images}")
    if set(dataset.dtypes) - set(DTYPES) and len(set(dataset.dtypes)) == 1:
        raise SceneError(f"{what}: {dataset.dtypes[0]} pixels; {advice(dataset.dtypes[0], *look(dataset))}")
    dtype = check_dtypes(dataset.dtypes, what)
    notes = _not_carried(dataset)
    nodata, tags, nodata_notes = _nodata(dataset, dtype)
    for name, values, neutral in (("scales", dataset.scales, 1.0), ("offsets", dataset.offsets, 0.0)):
        if any(value != neutral for value in values):
            distinct = values if len(set(values)) > 1 else values[:1]
            tags[name] = " ".join(repr(float(value)) for value in distinct)
    grid = Grid(
        height=dataset.height,
        width=dataset.width,
        dtype=dtype,  # type: ignore[arg-type]  # one of scene.DTYPES, or check_dtypes had raised
        bands=tuple(_band(dataset, index) for index in dataset.indexes),
        nodata=nodata,
        crs=crs_text(dataset.crs),
        transform=_transform(dataset),
    )
    return grid, tags, notes + nodata_notes


def look(dataset: Any) -> tuple[float | None, float | None, bool, bool]:
    """(lowest, highest, are all whole numbers, are there holes), strip by strip, up to a bound on work.

    Holes are pixels that are not finite or equal their band's nodata value. The range is that of the others, unless
    everything, nodata included, is a whole number: then nodata has to fit as well.
    """
    if np.dtype(dataset.dtypes[0]).kind not in "iuf":
        return None, None, False, False
    low, high, whole, holes, seen = math.inf, -math.inf, True, False, 0
    every_low, every_high = math.inf, -math.inf
    rows = max(1, (1 << 22) // max(1, dataset.width * dataset.count))
    for row in range(0, dataset.height, rows):
        strip = _read(dataset, RasterWindow(0, row, dataset.width, min(rows, dataset.height - row)))
        finite = np.isfinite(strip)
        known = finite.copy()
        for pixels, valid, nodata in zip(strip, known, dataset.nodatavals, strict=True):
            if nodata is not None:
                valid &= pixels != nodata
        seen += strip.size
        holes = holes or not known.all()
        whole = whole and bool(finite.all()) and bool(np.all(strip == np.trunc(strip)))
        if known.any():
            low, high = min(low, float(strip[known].min())), max(high, float(strip[known].max()))
        if whole:
            every_low, every_high = min(every_low, float(strip.min())), max(every_high, float(strip.max()))
        if seen > _LOOK_SAMPLES_MAX:
            whole = False  # not known of the rest
            break
    if low > high:
        return None, None, False, holes
    return (every_low, every_high, True, holes) if whole else (low, high, False, holes)


def crs_text(crs: CRS | None) -> str | None:
    """ "EPSG:n" if that gives the very same definition, else WKT; None if there is no CRS."""
    if not crs:
        return None
    wkt = str(crs.to_wkt())
    code = crs.to_epsg()
    if code is not None and CRS.from_epsg(code).to_wkt() == wkt:
        return f"EPSG:{code}"
    return wkt


def _transform(dataset: Any) -> Transform | None:
    transform = dataset.transform
    if transform.is_identity:  # GDAL's way of saying that there is none
        return None
    return (transform.a, transform.b, transform.c, transform.d, transform.e, transform.f)


def _band(dataset: Any, index: int) -> Band:
    name = printable(dataset.descriptions[index - 1] or "")
    tags = dataset.tags(index) | dataset.tags(index, ns="IMAGERY")
    # what ENVI headers state first: GDAL's own field is rounded to a nanometre
    unit = {"n": 1.0, "m": 1000.0, "u": 1000.0, "µ": 1000.0}.get(tags.get("wavelength_units", "n")[:1].lower())
    for key, nm in (("wavelength", unit), ("CENTRAL_WAVELENGTH_UM", 1000.0)):
        try:
            wavelength = float(tags[key]) * (nm or 0.0)
        except (KeyError, ValueError):
            continue
        if 0 < wavelength < 1e9:
            return Band(name, round(wavelength, 6))  # the product of two floats must not invent a further digit
    return Band(name)


def _nodata(dataset: Any, dtype: str) -> tuple[int | None, dict[str, str], list[str]]:
    stated = list(dict.fromkeys(str(value) for value in dataset.nodatavals))
    if len(stated) > 1:
        text = " ".join(str(value) for value in dataset.nodatavals)
        note = f"nodata differs between bands ({', '.join(stated[:4])}): kept as a tag only"
        return None, {"nodata": text[:200]}, [note]
    return nodata_value(dataset.nodatavals[0], dtype)


def _not_carried(dataset: Any) -> list[str]:
    notes = []
    if dataset.gcps[0]:
        points = len(dataset.gcps[0])
        notes.append(f"its {points} ground control points are not carried: georeference with `gdalwarp` first")
    if dataset.rpcs is not None:
        notes.append("rational polynomial coefficients (RPC) are not carried")
    if any(MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags for flags in dataset.mask_flag_enums):
        notes.append("its validity mask is not carried: write it as a nodata value (`gdalwarp -dstnodata`) to keep it")
    if ColorInterp.palette in dataset.colorinterp:
        notes.append("it has a colour table, which is not carried: classes do not survive lossy coding")
    for index, meaning in zip(dataset.indexes, dataset.colorinterp, strict=True):
        if meaning == ColorInterp.alpha:
            notes.append(
                f"band {index} is an alpha band and is coded like any other, with loss: turn it into a nodata value "
                "first (`gdalwarp -dstnodata`) if it must stay exact"
            )
    if dataset.subdatasets:
        notes.append(f"{len(dataset.subdatasets)} further images in the file are not read")
    return notes


def placed(points: NDArray[np.float64], crs: str) -> NDArray[np.float64]:
    """Points (n, 2) of longitude and latitude in a coordinate system: (n, 2) of x and y. Raises SceneError where that
    knows no such place."""
    try:
        x, y = transform("EPSG:4326", crs, points[:, 0], points[:, 1])
    except (CPLE_BaseError, CRSError, RasterioError) as error:
        raise SceneError(f"longitude and latitude cannot be placed on {crs}: {error}") from error
    return np.stack([x, y], axis=1)
