"""Scenes that need no GDAL: `.npy`, and raw band-sequential pixels with a JSON side-car. Both are memory-mapped.

Side-car of `scene.bsq`: `scene.bsq.json` (or `scene.json`), e.g.

    {"bands": ["B02", {"name": "B03", "wavelength_nm": 560}], "height": 768, "width": 1536, "dtype": "uint16",
     "byte_order": "little", "offset": 0, "nodata": 0, "crs": "EPSG:32633",
     "transform": [10, 0, 330000, 0, -10, 5822040], "acquired": "2017-02-16T10:21:01Z", "tags": {"baseline": "02.04"}}

Needed: `bands` (a number or a list), `height`, `width`, `dtype`; unknown keys are refused. Beside an `.npy` the same
file is optional and all of it may be left out; what it repeats (sizes, dtype) must agree. Pickles are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from tokenize import TokenError
from typing import IO, Literal
from zipfile import BadZipFile

import msgspec
import numpy as np

from downlink.errors import DownlinkError, SceneError
from downlink.scene import Band, Grid, Scene, Transform, printable, validate
from downlink.tile import Window
from encoder_node.source import Pixels, check_window, native
from encoder_node.source_facts import carry_tags, check_dtypes, nodata_value

_SIDE_CAR_BYTES_MAX = 1 << 20  # far above any: 512 bands with long names take some 50 KiB


class _Band(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    wavelength_nm: float | None = None


class SideCar(msgspec.Struct, forbid_unknown_fields=True):
    """What a JSON side-car may say; None where it says nothing."""

    bands: int | list[str | _Band] | None = None
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    byte_order: Literal["little", "big"] = "little"
    offset: int = 0
    nodata: float | None = None
    crs: str | None = None
    transform: Transform | None = None
    acquired: str | None = None
    name: str | None = None
    tags: dict[str, str] = {}


LINE_BYTES = 16 << 10
"""Lines that are mostly wanted, or no longer than this, are read in one go and cut: a system call each costs more."""


class ArraySource:
    """A scene of one grid whose pixels lie in an array, usually a memory map.

    Windows of a map are read from its file: pages of a map that have been touched, and those around them,
    would count as this process's memory, gigabytes of them.
    """

    def __init__(self, scene: Scene, pixels: Pixels, notes: tuple[str, ...] = ()) -> None:
        self.scene = scene
        self.notes = notes
        self._pixels = pixels
        self._file: IO[bytes] | None = None
        self._offset = 0
        if isinstance(pixels, np.memmap) and pixels.flags.c_contiguous and pixels.filename is not None:
            self._file, self._offset = open(pixels.filename, "rb"), int(pixels.offset)  # noqa: SIM115 (closed by close)

    def read(self, grid: int, window: Window) -> Pixels:
        if grid != 0:
            raise IndexError(f"grid {grid} of a scene of 1")
        bands, height, width = self._pixels.shape
        check_window(window, height, width)
        if self._file is None:
            rows, cols = window.slices
            return native(self._pixels[:, rows, cols])
        out = np.empty((bands, window.height, window.width), self._pixels.dtype)
        whole = width <= max(2 * window.width, LINE_BYTES // out.itemsize)
        lines = np.empty((window.height if window.width < width else 0, width), out.dtype) if whole else None
        for band, plane in enumerate(out):
            first = (band * height + window.row) * width
            if lines is None:
                for number, line in enumerate(plane):
                    self._fill(line, first + number * width + window.col)
            else:
                self._fill(lines if len(lines) else plane, first)
                if len(lines):
                    plane[...] = lines[:, window.slices[1]]
        return native(out)

    def _fill(self, pixels: Pixels, first: int) -> None:
        """Pixels from number `first` of the file on."""
        assert self._file is not None
        at = self._offset + first * pixels.itemsize
        if os.preadv(self._file.fileno(), [pixels.data], at) != pixels.nbytes:
            raise SceneError(f"{self._file.name}: ends while it is being read; is it still being written?")

    def close(self) -> None:
        self._pixels = np.empty((0, 0, 0), self._pixels.dtype)
        if self._file is not None:
            self._file.close()
            self._file = None


def side_car_of(path: Path) -> Path | None:
    """The JSON file that describes the raw pixels in `path`, if there is one."""
    if path.suffix.lower() not in (".bsq", ".raw", ".bin", ".dat", ".img"):
        return None
    candidates = [path.with_name(path.name + ".json")]
    if not path.with_suffix(".hdr").is_file():  # ENVI says what the pixels are; a .json beside it is something else
        candidates.append(path.with_suffix(".json"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def open_npy(path: Path) -> ArraySource:
    """Open a 2-D or 3-D `.npy`."""
    try:
        pixels: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError, TokenError, BadZipFile) as error:
        raise SceneError(f"{path}: cannot be read as .npy ({error}); write it with numpy.save") from error
    if not isinstance(pixels, np.ndarray):
        raise SceneError(f"{path}: holds several arrays; save the scene alone with numpy.save")
    if pixels.ndim == 2:
        pixels = pixels[np.newaxis]
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise SceneError(f"{path}: an array of shape {pixels.shape}; a scene is (bands, height, width), none of them 0")
    dtype = _npy_dtype(pixels, path)
    side = path.with_name(path.name + ".json")
    described = _read_side_car(side) if side.is_file() else SideCar()
    names = described.bands if isinstance(described.bands, list) else []
    bands = len(names) if names else described.bands or pixels.shape[0]
    stated = (bands, described.height or pixels.shape[1], described.width or pixels.shape[2])
    if stated != pixels.shape or (described.dtype or dtype) != dtype:
        raise SceneError(
            f"{side}: states {stated} {described.dtype or dtype}, {path.name} holds {pixels.shape} {dtype}; correct one"
        )
    if described.offset:
        raise SceneError(f"{side}: states an offset of {described.offset} bytes, an .npy has none; leave it out")
    return _source(path, described, pixels, dtype)


def open_raw(path: Path, side_car: Path) -> ArraySource:
    """Open raw band-sequential pixels as `side_car` describes them."""
    described = _read_side_car(side_car)
    missing = [key for key in ("bands", "height", "width", "dtype") if not getattr(described, key)]
    if missing or described.height is None or described.width is None or described.dtype is None:
        raise SceneError(f"{side_car}: lacks {', '.join(missing)}; raw pixels have no header of their own")
    dtype = check_dtypes([described.dtype], str(path))
    bands = len(described.bands) if isinstance(described.bands, list) else int(described.bands or 0)
    shape = (bands, described.height, described.width)
    if min(shape) < 1 or described.offset < 0:
        raise SceneError(f"{side_car}: states shape {shape} at offset {described.offset}; both must be positive")
    stored = np.dtype(dtype).newbyteorder("<" if described.byte_order == "little" else ">")
    needed = described.offset + shape[0] * shape[1] * shape[2] * stored.itemsize
    size = path.stat().st_size
    if size != needed:
        raise SceneError(
            f"{path}: has {size} bytes, {side_car.name} describes {needed} "
            f"({shape} {dtype} from byte {described.offset}); correct the side-car"
        )
    return _source(path, described, np.memmap(path, stored, mode="r", offset=described.offset, shape=shape), dtype)


def _npy_dtype(pixels: Pixels, path: Path) -> str:
    name = pixels.dtype.newbyteorder("=").name
    try:
        return check_dtypes([name], str(path))
    except SceneError as error:
        how = "`numpy.save(path, array.astype(numpy.uint16))` once its values are whole numbers from 0 to 65535"
        raise SceneError(f"{path}: {name} pixels; uint8, uint16 and int16 are taken: {how}") from error


def _read_side_car(path: Path) -> SideCar:
    try:
        size = path.stat().st_size
        if size > _SIDE_CAR_BYTES_MAX:
            raise SceneError(f"{path}: {size} bytes, a side-car has at most {_SIDE_CAR_BYTES_MAX}")
        return msgspec.json.decode(path.read_bytes(), type=SideCar)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise SceneError(f"{path}: no usable side-car ({error}); see `pydoc encoder_node.source_array`") from error


def _source(path: Path, described: SideCar, pixels: Pixels, dtype: str) -> ArraySource:
    tags, notes = carry_tags(described.tags)
    nodata, nodata_tags, nodata_notes = nodata_value(described.nodata, dtype)
    listed = described.bands if isinstance(described.bands, list) else [""] * pixels.shape[0]
    bands = tuple(
        Band(printable(band)) if isinstance(band, str) else Band(printable(band.name), band.wavelength_nm)
        for band in listed
    )
    grid = Grid(
        height=pixels.shape[1],
        width=pixels.shape[2],
        dtype=dtype,  # type: ignore[arg-type]  # one of scene.DTYPES, or check_dtypes had raised
        bands=bands,
        nodata=nodata,
        crs=described.crs,
        transform=described.transform,
    )
    name = printable(described.name if described.name is not None else path.stem)
    scene = Scene(name, (grid,), described.acquired, tags | nodata_tags)
    try:
        validate(scene)
    except DownlinkError as error:
        raise SceneError(f"{path}: {error}") from error
    return ArraySource(scene, pixels, (*notes, *nodata_notes))
