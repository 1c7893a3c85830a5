"""A decoded grid as a Cloud-Optimised GeoTIFF: `write_cog`.

Pixels arrive as strips and never lie in memory all at once: they go to a tiled temporary GeoTIFF, which GDAL's COG
driver then rewrites with overviews. Both lie in a hidden folder beside the target; the finished file is fsynced and
renamed, so whoever opens the target sees all of it or none. Folders that a killed run left are removed by the next one.

Kept exactly: pixels, nodata, CRS, transform (every bit of its floats), band names, wavelengths (to 1e-6 nm), tags;
scale and offset where the scene's tags state them. A tag whose name is taken gets `source_` before its name, and "="
and ":" in names become "_": GDAL would split there. Three 8-bit bands that may be red, green and blue are marked so.
Overviews are averages that leave nodata out; pixels at full size are not touched.
Not kept, because no scene carries them: ground control points, RPCs, colour tables.

Strings come from the peer: the CRS is only ever parsed as an EPSG code or WKT; one that PROJ refuses is kept as a tag.
So is one that GeoTIFF keys cannot hold (GDAL would put it into a second file beside), with a warning.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

# GDAL would take 5 % of the machine's memory for its blocks, in each worker. Read once, when GDAL first needs it.
os.environ.setdefault("GDAL_CACHEMAX", "256")

import rasterio
import rasterio.shutil
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from rasterio.windows import Window

from decoder_node.durable import sync_folder
from decoder_node.log import log
from downlink.scene import Grid, Scene, Transform

Pixels = npt.NDArray[Any]

_STRIP_BLOCK = 256  # strips are tile rows of 256: each block of the temporary file is then written once
_COG_BLOCK_BYTES = 8 << 20  # GDAL 3.10 writes COGs pixel-interleaved: a block holds all bands and must fit memory


def output_paths(out: Path, scene: Scene) -> list[Path]:
    """Where each grid goes: `OUT.tif` for a scene of one grid, else `OUT_10m.tif`, `OUT_20m.tif`, ...

    Grids whose pixel size in metres is unknown, or the same for two of them, are told apart as `OUT_g0.tif`, ...
    """
    if len(scene.grids) == 1:
        return [out]
    sizes = [_pixel_size_m(grid) for grid in scene.grids]
    known = None not in sizes and len(set(sizes)) == len(sizes)
    names = [f"{size:g}m" if known else f"g{number}" for number, size in enumerate(sizes)]
    return [out.with_name(f"{out.stem}_{name}{out.suffix}") for name in names]


def write_cog(path: Path, scene: Scene, grid_index: int, rows: Iterable[Pixels], tags: Mapping[str, str]) -> None:
    """Write one grid. `rows`: strips (bands, rows, width) from top to bottom, together exactly the grid's height.

    `tags` are written beside the scene's own, which are renamed where both have one.
    """
    grid = scene.grids[grid_index]
    with _working_folder(path) as folder:
        strips, cog = folder / "strips.tif", folder / "cog.tif"
        crs, crs_tags = crs_of(grid.crs)
        if crs is not None and not _fits_keys(crs):
            crs_tags["crs_wkt"] = crs.to_wkt()
            log.warning("GeoTIFF cannot hold the CRS; it is kept whole in the tag crs_wkt", extra={"file": str(path)})
        ours = crs_tags | dict(tags)
        if scene.acquired is not None and scene.acquired not in scene.tags.values():
            ours["ACQUISITIONDATETIME"] = scene.acquired  # GDAL's name for it
        _write_strips(strips, grid, crs, rows, _point_free(_all_tags(scene.tags, ours), grid))
        side = _cog_block(grid)
        with _quiet():
            rasterio.shutil.copy(
                strips,
                cog,
                driver="COG",
                COMPRESS="ZSTD",
                LEVEL=3,  # quicker than the driver's own level, for somewhat larger files
                PREDICTOR="YES",
                BLOCKSIZE=side,
                OVERVIEWS="AUTO" if _halves_well(grid, side) else "NONE",
                OVERVIEW_RESAMPLING="AVERAGE",
                BIGTIFF="IF_SAFER",
            )
        with cog.open("rb") as file:
            os.fsync(file.fileno())
        cog.replace(path)
    sync_folder(path.parent)


def crs_of(text: str | None) -> tuple[CRS | None, dict[str, str]]:
    """(the CRS of a scene, tags to add): one that PROJ does not take becomes a tag; the pixels are written anyway."""
    if text is None:
        return None, {}
    try:
        code = re.fullmatch(r"EPSG:(\d{1,9})", text)
        return (CRS.from_epsg(int(code[1])) if code else CRS.from_wkt(text)), {}
    except rasterio.errors.CRSError:
        return None, {"crs_not_understood": text}


def _fits_keys(crs: CRS) -> bool:
    """Whether a GeoTIFF alone, without GDAL's .aux.xml beside it, gives this CRS back."""
    shape: dict[str, Any] = {"driver": "GTiff", "count": 1, "height": 1, "width": 1, "dtype": "uint8"}
    with _quiet(), rasterio.Env(GDAL_PAM_ENABLED=False), MemoryFile() as memory:
        with memory.open(crs=crs, transform=rasterio.Affine(2, 0, 0, 0, -2, 0), **shape):
            pass
        with memory.open() as dataset:
            return bool(dataset.crs == crs)


def _all_tags(source: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Both, under names that GDAL takes and tells apart. Ours keep theirs."""
    tags = dict(ours)
    taken = {key.lower() for key in ours}  # GDAL does not tell case
    for key, value in source.items():
        # a tag of the peer must not become an argument of update_tags; GDAL splits NAME=VALUE at the first "=" or ":"
        name = re.sub("^(bidx|ns|self|)$|[=:]", r"\1_", key)
        while name.lower() in taken:
            name = f"source_{name}"
        tags[name] = value
        taken.add(name.lower())
    return tags


def _write_strips(path: Path, grid: Grid, crs: CRS | None, rows: Iterable[Pixels], tags: dict[str, str]) -> None:
    bands, height, width = grid.shape
    colours = _is_rgb(grid)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": bands,
        "height": height,
        "width": width,
        "dtype": grid.dtype,
        "nodata": grid.nodata,
        "crs": crs,
        "tiled": True,
        "blockxsize": _STRIP_BLOCK,
        "blockysize": _STRIP_BLOCK,
        "interleave": "band",
        "compress": "ZSTD",
        "zstd_level": 1,
        "bigtiff": "IF_SAFER",
        # without these, four 8-bit bands would become red, green, blue and transparency
        "photometric": "RGB" if colours else "MINISBLACK",
        "alpha": "NO",
    }
    if grid.transform is not None:
        profile["transform"] = rasterio.Affine(*grid.transform)
    with _quiet(), rasterio.open(path, "w", **profile) as dataset:
        dataset.update_tags(**tags)
        for index, band in enumerate(grid.bands, 1):
            if band.name:
                dataset.set_band_description(index, band.name)
            if band.wavelength_nm is not None:
                micrometres = round(band.wavelength_nm / 1000, 9)  # the division must not invent further digits
                dataset.update_tags(index, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=repr(micrometres))
        if not colours:
            dataset.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (bands - 1)
        for name in ("scales", "offsets"):
            values = band_numbers(tags.get(name, ""), bands)
            if values:
                setattr(dataset, name, values)
        row = 0
        for strip in rows:
            if strip.shape[0] != bands or strip.shape[2] != width or str(strip.dtype) != grid.dtype:
                raise ValueError(f"strip {strip.shape} {strip.dtype} of a grid {grid.shape} {grid.dtype}")
            if row + strip.shape[1] > height:
                raise ValueError(f"strips of {row + strip.shape[1]} rows for a grid of {height}")
            dataset.write(strip, window=Window(0, row, width, strip.shape[1]))
            row += strip.shape[1]
        if row != height:
            raise ValueError(f"strips of {row} rows for a grid of {height}")


def _is_rgb(grid: Grid) -> bool:
    """Whether a viewer may show the bands as red, green and blue: by wavelength, else by name, else they may."""
    if len(grid.bands) != 3 or grid.dtype != "uint8":
        return False
    red, green, blue = (band.wavelength_nm for band in grid.bands)
    if red is not None and green is not None and blue is not None:
        return 720 > red > 580 > green > 500 > blue > 400
    names = [(band.name or "").lower() for band in grid.bands]
    return names in (["red", "green", "blue"], ["r", "g", "b"]) or not any(names)


def band_numbers(text: str, bands: int) -> tuple[float, ...] | None:
    """The scales or offsets that a source wrote: one for all bands, or one for each. None if it is neither."""
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        return None
    if not all(map(math.isfinite, values)):
        return None
    return values * bands if len(values) == 1 else values if len(values) == bands else None


def _point_free(tags: dict[str, str], grid: Grid) -> dict[str, str]:
    """Tags that leave the transform exact.

    For AREA_OR_POINT=Point GDAL moves the origin by half a pixel when writing and back when reading. Where floats do
    not survive that, the file says Area, which places its pixels the same, and the source's word is kept beside it.
    """
    if tags.get("AREA_OR_POINT") != "Point" or grid.transform is None or _survives_half_pixel(grid.transform):
        return tags
    return {key: value for key, value in tags.items() if key != "AREA_OR_POINT"} | {"source_AREA_OR_POINT": "Point"}


def _survives_half_pixel(transform: Transform) -> bool:
    a, b, c, d, e, f = transform
    x, y = c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5
    return x - a * 0.5 - b * 0.5 == c and y - d * 0.5 - e * 0.5 == f


def _cog_block(grid: Grid) -> int:
    """The side of a COG's blocks: 512 px, less for many bands."""
    pixel = grid.raw_bytes // (grid.height * grid.width)
    side = 512
    while side > 128 and side * side * pixel > _COG_BLOCK_BYTES:
        side //= 2
    return side


def _halves_well(grid: Grid, block: int) -> bool:
    """False for a sliver that would be less than a pixel wide before its length fits a block."""
    return min(grid.height, grid.width) * block >= max(grid.height, grid.width)


def _pixel_size_m(grid: Grid) -> float | None:
    crs, _ = crs_of(grid.crs)
    if crs is None or grid.transform is None or not crs.is_projected or crs.linear_units not in ("metre", "meter"):
        return None
    return abs(grid.transform[0]) or None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """rasterio warns of rasters without georeference; a scene may be one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


@contextlib.contextmanager
def _working_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path`, locked as long as it is in use and gone afterwards.

    The kernel drops the lock of a killed process: a folder of ours that can be locked is a leftover.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    for leftover in path.parent.glob(f"{_escaped(prefix)}*.part"):
        with contextlib.suppress(OSError), (leftover / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
    try:
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _escaped(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)
