"""A decoded scene as an xarray Dataset, read when it is looked at: `open_scene`; and the same as Zarr: `write_zarr`.

A variable per band, named as the scene names it, of (y, x) in the dtype that was sent; where a scene has several grids,
each has dimensions of its own (`y_20m`, `x_20m`). Pixels are as they were decoded: `scale` and `offset` are attributes,
like `nodata` and `wavelength_nm`, and nothing is applied. Coordinates are the centres of pixels in the CRS of the
attribute `crs` (WKT); there are none where a scene is rotated or has no place.

Takes what the archive holds: a scene's folder, its STAC item, one GeoTIFF, or a .zarr; also as the URL of an object
store (`s3://…`), by way of fsspec and GDAL. Needs xarray, and zarr and dask for .zarr: `latent-downlink[cube]`.
Refused, with `CubeError`: what is none of these.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import rasterio
import xarray as xr
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.windows import Window
from xarray.backends import BackendArray
from xarray.core import indexing

from decoder_node.durable import sync_folder
from downlink.errors import DownlinkError

CHUNK_PX: Final = 512
_URL: Final = re.compile(r"[a-z][a-z0-9+]*://")


class CubeError(DownlinkError):
    """This is no scene."""

    code = "cube"


class _Pixels(BackendArray):
    """One band of a GeoTIFF; opened for each read, so that it may travel to other threads and processes."""

    def __init__(self, path: str, band: int, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
        self.path, self.band, self.shape, self.dtype = path, band, shape, dtype

    def __getitem__(self, key: Any) -> Any:
        how = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, how, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        picked = [
            slice(part % length, part % length + 1, 1)
            if isinstance(part, int | np.integer)
            else slice(*part.indices(length))
            for part, length in zip(key, self.shape, strict=True)
        ]
        ordered = [(part.start, part.stop) if part.step > 0 else (part.stop + 1, part.start + 1) for part in picked]
        (top, bottom), (left, right) = ordered
        if bottom <= top or right <= left:
            found = np.empty((max(0, bottom - top), max(0, right - left)), self.dtype)
        else:
            with _quiet(), rasterio.open(self.path) as dataset:
                found = dataset.read(self.band, window=Window(left, top, right - left, bottom - top))
        steps = tuple(slice(None, None, part.step) for part in picked)
        found = found[steps]
        return found[tuple(0 if isinstance(part, int | np.integer) else slice(None) for part in key)]


def open_scene(where: str | os.PathLike[str]) -> xr.Dataset:
    """The scene at `where`: a folder of the archive's `scenes/`, an item, a GeoTIFF, a .zarr, or the URL of one.

    >>> scene = open_scene("archive/scenes/3fa94c…")                         # doctest: +SKIP
    >>> scene["B08"].isel(x=slice(0, 512), y=slice(0, 512)).mean().item()    # doctest: +SKIP
    2871.4
    """
    path = os.fspath(where).rstrip("/")
    if path.endswith(".zarr"):
        opened: xr.Dataset = xr.open_zarr(path, consolidated=False)
        return opened
    if path.endswith((".tif", ".tiff")):
        return _dataset([(path, {})], {})
    item_path = path if path.endswith(".json") else f"{path}/{path.rpartition('/')[2]}.json"
    item = _item(item_path)
    base = item_path.rpartition("/")[0]
    tifs = [
        (f"{base}/{asset['href']}" if not _URL.match(asset["href"]) else asset["href"], asset)
        for asset in item["assets"].values()
        if "data" in asset.get("roles", ()) and asset["href"].endswith(".tif")
    ]
    facts = {"scene_id": item["id"], "title": item["properties"].get("title", "")}
    for name in ("acquired", "partial", "missing", "bundle", "estimated_psnr_db", "max_error"):
        value = item["properties"].get(f"downlink:{name}")
        if value is not None:
            facts[name] = int(value) if isinstance(value, bool) else value
    return _dataset(tifs, facts)


def _item(path: str) -> dict[str, Any]:
    try:
        if _URL.match(path):
            import fsspec

            with fsspec.open(path, "rb") as file:
                content = json.loads(file.read())
        else:
            content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        advice = "name a folder of the archive's scenes/, a STAC item, a GeoTIFF or a .zarr"
        raise CubeError(f"{path} cannot be read as a STAC item ({error}); {advice}") from error
    if not isinstance(content, dict) or content.get("type") != "Feature" or "assets" not in content:
        raise CubeError(f"{path} is no STAC item")
    return content


def _dataset(tifs: Sequence[tuple[str, Mapping[str, Any]]], facts: Mapping[str, Any]) -> xr.Dataset:
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    attributes = dict(facts)
    for number, (path, asset) in enumerate(tifs):
        name = re.search(r"_([\w]+)\.tif$", path)
        suffix = "" if len(tifs) == 1 else f"_{name[1] if name else number}"
        dims = (f"y{suffix}", f"x{suffix}")
        try:
            with _quiet(), rasterio.open(path) as dataset:
                shape, transform = (dataset.height, dataset.width), dataset.transform
                if not transform.is_identity and transform.b == transform.d == 0:
                    coordinates[dims[0]] = transform.f + transform.e * (np.arange(shape[0]) + 0.5)
                    coordinates[dims[1]] = transform.c + transform.a * (np.arange(shape[1]) + 0.5)
                if dataset.crs is not None:
                    attributes["crs"] = dataset.crs.to_wkt()
                for band in range(1, dataset.count + 1):
                    pixels = _Pixels(path, band, shape, np.dtype(dataset.dtypes[band - 1]))
                    stated = (asset.get("bands") or [{}] * dataset.count)[band - 1]
                    kept: dict[str, Any] = {"grid_mapping_transform": list(transform)[:6]}
                    if dataset.nodata is not None:
                        kept["nodata"] = pixels.dtype.type(dataset.nodata).item()
                    if dataset.scales[band - 1] != 1 or dataset.offsets[band - 1] != 0:
                        kept |= {"scale": dataset.scales[band - 1], "offset": dataset.offsets[band - 1]}
                    if "eo:center_wavelength" in stated:
                        kept["wavelength_nm"] = round(1000 * stated["eo:center_wavelength"], 6)
                    called = dataset.descriptions[band - 1] or f"band_{band}"
                    while called in variables or called in dims:
                        called += suffix or "_"
                    variables[called] = (dims, indexing.LazilyIndexedArray(pixels), kept)
        except RasterioIOError as error:
            raise CubeError(f"{path} cannot be read: {error}") from error
    return xr.Dataset(variables, coordinates, attributes)


def write_zarr(path: Path, item: Path) -> Path:
    """The scene of a STAC item as a Zarr store (version 3) at `path`, in chunks of 512 px: whole or not at all, and in
    the place of what was there."""
    scene = open_scene(item)
    chunked = scene.chunk(dict.fromkeys(scene.dims, CHUNK_PX))
    making, before = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    for leftover in (making, before):
        shutil.rmtree(leftover, ignore_errors=True)
    chunked.to_zarr(making, mode="w", consolidated=False)
    if path.exists():
        path.rename(before)
    making.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(before, ignore_errors=True)
    return path


class _quiet(warnings.catch_warnings):
    """rasterio warns of rasters without georeference; a scene may be one."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return entered
