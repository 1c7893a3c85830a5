"""Seeded synthetic scenes, small and quick, and streams of made-up payloads for tests that need no model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from downlink.chunk import ChunkList, GridCoding, Layout
from downlink.lattice import Resolution, coded_scene
from downlink.manifest import Manifest
from downlink.scene import Band, Grid, Scene
from downlink.tile import Window
from encoder_node.source import check_window

SENTINEL_2 = {
    "B01": 442.7, "B02": 492.4, "B03": 559.8, "B04": 664.6, "B05": 704.1, "B06": 740.5,
    "B07": 782.8, "B08": 832.8, "B8A": 864.7, "B09": 945.1, "B11": 1613.7, "B12": 2202.4,
}  # fmt: skip
PLACE = (10.0, 0.0, 453620.0, 0.0, -10.0, 5800020.0)
PATCH = Scene(  # what is known about one patch of BigEarthNet
    "S2A_MSIL2A_20170701T093031_33UUP_45_57",
    (Grid(120, 120, "uint16", tuple(Band(*band) for band in SENTINEL_2.items()), 0, "EPSG:32633", PLACE),),
    "2017-07-01T09:30:31Z",
    {"platform": "Sentinel-2A"},
)
PATCH_CODING = GridCoding(planes=12, planes_per_chunk=4, groups=3, mask="shared", step=2.718281828)


def pixels(
    seed: int = 0, bands: int = 12, height: int = 120, width: int = 120, dtype: str = "uint16", nodata: int | None = 0
) -> NDArray[np.generic]:
    """(bands, height, width) like reflectances: a smooth field and sharp parcels under gains per band, and noise.

    One corner of all bands is nodata, unless that is None.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = random.uniform(5, 60, (4, 2)) * random.choice([-1, 1], (4, 2))
    field = sum(np.sin(y / a + x / b + phase) for (a, b), phase in zip(waves, random.uniform(0, 6, 4), strict=True))
    parcels = random.normal(size=(height // 16 + 1, width // 16 + 1)).repeat(16, 0).repeat(16, 1)[:height, :width]
    gain, contrast = random.uniform(0.4, 1.6, (2, bands, 1, 1))
    mixed = gain * (1500 + 300 * field) + contrast * 400 * parcels
    mixed += random.normal(scale=12, size=(bands, height, width))
    limit = np.iinfo(dtype)
    scale = 0.05 if limit.max < 256 else 1.0
    out = np.clip(np.rint(mixed * scale), max(1, limit.min), limit.max).astype(dtype)
    if nodata is not None:
        out[:, y + 2 * x < (height + width) // 3] = nodata
    return out


def scene(array: NDArray[np.generic], nodata: int | None = 0, name: str = "synthetic", grids: int = 1) -> Scene:
    """A scene of `grids` equal grids that `array` fits."""
    bands, height, width = array.shape
    named = tuple(Band(f"B{number:02d}", 440.0 + 120 * number) for number in range(1, bands + 1))
    grid = Grid(height, width, array.dtype.name, named, nodata, "EPSG:32633", PLACE)  # type: ignore[arg-type]
    return Scene(name, (grid,) * grids, "2026-11-20T09:30:31Z", {"made_by": "tests/scenes.py"})


def repeated(band: NDArray[np.generic], factor: int, row: int = 0, col: int = 0) -> NDArray[np.generic]:
    """A band (height, width) in which every block of `factor` x `factor` pixels shows its first pixel; blocks begin at
    `row` and `col` modulo `factor`."""
    rows, cols = (
        ((np.arange(size) - first) // factor * factor + first).clip(0)
        for size, first in zip(band.shape, (row % factor, col % factor), strict=True)
    )
    return band[rows][:, cols]


class GridsSource:
    """A scene in memory, one array (bands, height, width) per grid."""

    notes: tuple[str, ...] = ()

    def __init__(self, arrays: Sequence[NDArray[np.generic]], scene: Scene) -> None:
        self.scene, self.arrays = scene, arrays

    def read(self, grid: int, window: Window) -> NDArray[np.generic]:
        check_window(window, *self.arrays[grid].shape[1:])
        return self.arrays[grid][:, *window.slices].copy()

    def close(self) -> None:
        self.arrays = ()


def grids_source(*arrays: NDArray[np.generic], nodata: int | None = None, placed: bool = True) -> GridsSource:
    """A source of one grid per array; with `placed`, their transforms say that they lie on each other."""
    finest = arrays[0].shape[1]
    grids = []
    for array in arrays:
        bands, height, width = array.shape
        unit = finest // height
        place = (10.0 * unit, 0.0, 453620.0, 0.0, -10.0 * unit, 5800020.0) if placed else None
        grids.append(
            Grid(height, width, array.dtype.name, tuple(Band(f"B{i}") for i in range(bands)), nodata, None, place)  # type: ignore[arg-type]
        )
    return GridsSource(arrays, Scene("grids", tuple(grids)))


def fake_stream(
    scene: Scene = PATCH,
    codings: Sequence[GridCoding] = (PATCH_CODING,),
    seed: int = 0,
    resolutions: Sequence[Resolution] = (),
) -> tuple[Manifest, list[bytes]]:
    """A manifest and all its chunks, pages first: short random payloads, some empty, that no decoder would take."""
    layout = Layout(coded_scene(scene, resolutions), codings)
    random = np.random.default_rng(seed)
    payloads = [random.bytes(max(0, int(random.integers(-6, 30)))) for _ in range(len(layout) - layout.pages)]
    listed = ChunkList.of(payloads)
    manifest = Manifest.of(
        scene=scene,
        bundle=bytes(range(32)),
        bundle_name="planes-1",
        codings=codings,
        settings={"quality": 50.0, "target": "quality"},
        listed=listed,
        chunks=payloads,
        resolutions=resolutions,
    )
    return manifest, [*listed.pages(), *payloads]
