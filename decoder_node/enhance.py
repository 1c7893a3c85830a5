"""More of a decoded scene: a network (a bundle of kind "enhance") over GeoTIFFs that decoding has written.

    restore        pixels that are nodata in some bands and not in all are made from what is around them, and
                   OUT_restored.tif says which (uint8, a band for each: 1 = made); all others stay as they were,
                   and so do lost ones that have no valid pixel of their band within `REACH`
    superresolve   bands of 20 m at 10 m, the bands of 10 m as guide
    perceptual     detail invented to look real: labelled, so that nobody measures on it

Every product carries the tags PRODUCT, PRODUCT_NOTE and PRODUCT_BUNDLE. It is done in windows with a halo, so memory
does not follow the scene. What is nodata stays nodata, except where it is restored.

Refused (`EnhanceError`): files that lack a band that the bundle needs, or whose grids do not lie on each other; an
output that is one of the inputs; float rasters.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import onnxruntime
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from decoder_node.log import log
from decoder_node.nodata import restore_nodata
from decoder_node.raster import write_cog
from downlink.bundle import Bundle, bundles_in
from downlink.enhance import GRAPH, KIND, EnhanceSpec, enhance_spec
from downlink.errors import DownlinkError
from downlink.scene import Band, Grid, Scene

Pixels = NDArray[Any]

WINDOW: Final = 512
"""Side of a window's core in pixels; even."""
STRIP: Final = 256
REACH: Final = 8
"""Pixels: how far from what its band has seen a pixel is restored (less where a bundle's halo is)."""
SENTINEL_2: Final = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""Names for files of 12 bands that have none; 13 bands have B10 before B11."""


ENHANCED: Final = ".enhanced"
"""In the names of products in an archive."""


class EnhanceError(DownlinkError):
    """Files that a bundle cannot make more of."""

    code = "enhance"


class Network:
    """An enhance bundle, loaded and checked."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self.spec: EnhanceSpec = enhance_spec(bundle.kind, bundle.parameters)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(bundle.file(GRAPH), options, providers=["CPUExecutionProvider"])

    def run(self, pixels: Pixels, lost: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(inputs, h, w) in DN, and where they are nodata -> (outputs, h, w) in DN; sides even."""
        given = {"pixels": pixels[None].astype(np.float32), "lost": lost[None].astype(np.float32)}
        out: NDArray[np.float32] = self._session.run(None, given)[0][0]
        return out


class _Layer(NamedTuple):
    """Where a band of the bundle is: dataset, its number there, and how many pixels of the finest grid it spans."""

    dataset: Any
    number: int
    factor: int


class _Sources:
    """The files that hold the bands, on the finest of their grids."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str], stack: ExitStack) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            datasets = [stack.enter_context(rasterio.open(path)) for path in paths]
        self.finest = max(datasets, key=lambda one: one.width * one.height)
        self.height, self.width = self.finest.height, self.finest.width
        found: dict[str, _Layer] = {}
        for path, one in zip(paths, datasets, strict=True):
            if not np.issubdtype(one.dtypes[0], np.integer) or one.dtypes[0] != self.finest.dtypes[0]:
                raise EnhanceError(f"{path}: pixels are {one.dtypes[0]}; give GeoTIFFs of one integer type")
            factor = round(self.width / one.width)
            if (one.height * factor, one.width * factor) != (self.height, self.width):
                raise EnhanceError(
                    f"{path}: {one.height} x {one.width} px do not lie on {self.height} x {self.width} px; give the "
                    "files of one scene"
                )
            for number, name in enumerate(band_names(one), start=1):
                found.setdefault(name, _Layer(one, number, factor))
        missing = [name for name in names if name not in found]
        if missing:
            raise EnhanceError(
                f"the bundle needs {', '.join(missing)}, the files have {', '.join(found) or 'no named bands'}; "
                "give all files of the scene, or name its bands"
            )
        self.layers = [found[name] for name in names]

    def read(self, top: int, left: int, height: int, width: int) -> tuple[Pixels, NDArray[np.bool_]]:
        """Pixels (bands, height, width) of the finest grid and where they are nodata; beyond the scene its edge is
        repeated, and nothing is nodata."""
        rows = np.arange(top, top + height).clip(0, self.height - 1)
        cols = np.arange(left, left + width).clip(0, self.width - 1)
        out, lost = [], []
        for layer in self.layers:
            factor = layer.factor
            r, c = rows // factor, cols // factor
            window = Window(c[0], r[0], c[-1] - c[0] + 1, r[-1] - r[0] + 1)
            band = layer.dataset.read(layer.number, window=window)[r - r[0]][:, c - c[0]]
            nodata = layer.dataset.nodata
            out.append(band)
            lost.append(np.zeros(band.shape, bool) if nodata is None else band == nodata)
        return np.stack(out), np.stack(lost)


def band_names(dataset: Any) -> list[str]:
    """Bands as they are called; by position where a file of 12 or 13 bands names none."""
    names = list(dataset.descriptions)
    if any(names):
        return [name or "" for name in names]
    thirteen = (*SENTINEL_2[:10], "B10", *SENTINEL_2[10:])
    return list({12: SENTINEL_2, 13: thirteen}.get(len(names), ()))


def enhance(paths: Sequence[Path], out: Path, bundle: Bundle, threads: int = 1) -> list[Path]:
    """Write OUT (a Cloud-Optimised GeoTIFF, whole or not at all), and beside it what was restored; returns both."""
    for path in paths:
        if out.exists() and out.samefile(path):
            raise EnhanceError(f"{out} is one of the inputs; name another file")
    network = Network(bundle, threads)
    spec = network.spec
    tags = {
        "PRODUCT": spec.task,
        "PRODUCT_NOTE": spec.label,
        "PRODUCT_BUNDLE": f"{bundle.name} {bundle.version} {bundle.id.hex()[:12]}",
    }
    with ExitStack() as stack:
        sources = _Sources(paths, spec.inputs, stack)
        made = stack.enter_context(tempfile.TemporaryFile())
        scene = _scene(sources, spec.outputs, str(sources.finest.dtypes[0]), sources.finest.nodata)
        write_cog(out, scene, 0, _strips(sources, network, made), tags)
        if spec.task != "restore":
            return [out]
        beside = out.with_name(f"{out.stem}_restored{out.suffix}")
        mask = _scene(sources, spec.outputs, "uint8", None)
        write_cog(beside, mask, 0, _kept(made, len(spec.outputs), sources.height, sources.width), tags)
        return [out, beside]


def archive_products(paths: Sequence[Path], stem: Path, model_folders: Sequence[Path], threads: int = 1) -> list[Path]:
    """What every enhance bundle in `model_folders` makes of a decoded scene that has its bands: STEM.NAME.enhanced.tif.

    Nothing that goes wrong here is the scene's fault: it is logged, and the scene is whole without it. A scene from
    which nothing is lost has no restored product.
    """
    out: list[Path] = []
    for bundle in bundles_in(model_folders, KIND):
        target = stem.with_name(f"{stem.name}.{bundle.name}{ENHANCED}.tif")
        try:
            made = enhance(paths, target, bundle, threads)
        except EnhanceError as error:
            log.info("not enhanced", extra={"file": target.name, "reason": str(error)})
            continue
        except Exception as error:
            log.warning("not enhanced", extra={"file": target.name, "reason": f"{type(error).__name__}: {error}"})
            continue
        if len(made) > 1 and not _any(made[1]):
            for path in made:
                path.unlink()
            continue
        out += made
    return out


def _any(path: Path) -> bool:
    """Whether a mask says of any pixel that it was made."""
    with rasterio.open(path) as dataset:
        return any(dataset.read(window=window).any() for _, window in dataset.block_windows(1))


def described(path: Path) -> dict[str, Any]:
    """What the catalogue says of a product: its label is its title."""
    with rasterio.open(path) as dataset:
        tags, bands, kind = dataset.tags(), band_names(dataset), dataset.dtypes[0]
    mask = path.stem.endswith("_restored")
    note = "1: this pixel was made by a network" if mask else tags.get("PRODUCT_NOTE", "")
    return {
        "roles": ["mask", "metadata"] if mask else ["enhanced", tags.get("PRODUCT", "")],
        "title": note,
        "bands": [{"name": name} for name in bands],
        "data_type": kind,
        "downlink:product": tags.get("PRODUCT", ""),
        "downlink:product_bundle": tags.get("PRODUCT_BUNDLE", ""),
    }


def _scene(sources: _Sources, names: Sequence[str], dtype: Any, nodata: float | None) -> Scene:
    """What write_cog is to know: the finest grid, with these bands and the finest file's own tags."""
    one = sources.finest
    crs = None
    if one.crs is not None:
        crs = f"EPSG:{one.crs.to_epsg()}" if one.crs.to_epsg() else one.crs.to_wkt()
    place = None if one.transform.is_identity else tuple(one.transform)[:6]
    grid = Grid(
        one.height, one.width, dtype, tuple(Band(name) for name in names), None if nodata is None else int(nodata), crs,
        place,
    )  # fmt: skip
    tags = {key: value for key, value in one.tags().items() if not key.startswith("PRODUCT")}
    return Scene(Path(one.name).stem, (grid,), tags.get("ACQUISITIONDATETIME"), tags)


def _strips(sources: _Sources, network: Network, made: IO[bytes]) -> Iterator[Pixels]:
    """Enhanced rows, top to bottom; what was made of them goes to `made`."""
    spec = network.spec
    places = [spec.inputs.index(name) for name in spec.outputs]
    halo, limit = spec.halo, np.iinfo(sources.finest.dtypes[0])
    nodata = sources.finest.nodata
    for top in range(0, sources.height, STRIP):
        rows = min(STRIP, sources.height - top)
        strip = np.empty((len(places), rows, sources.width), sources.finest.dtypes[0])
        restored = np.zeros(strip.shape, np.uint8)
        for left in range(0, sources.width, WINDOW):
            cols = min(WINDOW, sources.width - left)
            pixels, lost = sources.read(top - halo, left - halo, STRIP + 2 * halo, WINDOW + 2 * halo)
            found = network.run(pixels, lost)
            core = np.s_[:, halo : halo + rows, halo : halo + cols]
            value = np.rint(found[core]).clip(limit.min, limit.max).astype(strip.dtype)
            was, gone = pixels[places][core], lost[places][core]
            all_gone = np.broadcast_to(lost[core].all(axis=0), gone.shape)
            if spec.task == "restore":
                here = gone & ~all_gone & _near(~lost[places], min(REACH, halo))[core]
                value = np.where(here, value, was)
                restored[:, :, left : left + cols] = here
                gone = gone & ~here
            value = restore_nodata(value, gone, None if nodata is None else int(nodata))
            strip[:, :, left : left + cols] = value
        made.write(restored.tobytes())
        yield strip


def _near(there: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """(bands, height, width): where anything is there within so many rows and columns."""
    for axis in (1, 2):
        around = [(0, 0)] * 3
        around[axis] = (reach + 1, reach)
        count = np.cumsum(np.pad(there, around), axis=axis, dtype=np.int32)
        first, last = (np.arange(there.shape[axis]) + offset for offset in (0, 2 * reach + 1))
        there = count.take(last, axis=axis) > count.take(first, axis=axis)
    return there


def _kept(made: IO[bytes], bands: int, height: int, width: int) -> Iterator[Pixels]:
    made.seek(0)
    for top in range(0, height, STRIP):
        rows = min(STRIP, height - top)
        yield np.frombuffer(made.read(bands * rows * width), np.uint8).reshape(bands, rows, width)
