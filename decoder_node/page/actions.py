"""What an operator may ask of the nodes through the page: the requests of `decoder-node ask`, into the same ledger.

Refused, with the errors of `decoder_node.asks`, and `ActionError` for what a form cannot mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import rasterio.warp

from decoder_node.asks import Asks, Entry
from decoder_node.cli_ask import opened
from decoder_node.ledger import Ledger
from decoder_node.raster import crs_of
from downlink.bundle import JSON, find, released_names, split
from downlink.errors import DownlinkError
from downlink.region import region_chunks
from downlink.request import ALL_LAYERS, Cancel, Install, Refine, Rollback, SetPriority
from downlink.scene import Grid
from downlink.tile import Window

PRIORITY_MAX: Final = 1000


class ActionError(DownlinkError):
    """This cannot be asked for like this."""

    code = "action"


def bundles(folders: Sequence[Path]) -> dict[str, str | Path]:
    """Bundles that may be installed on a node, by name: the released ones, and those in the operator's folders."""
    found: dict[str, str | Path] = {name: name for name in released_names()}
    for folder in folders:
        for path in sorted(folder.glob("*/bundle.json")):
            found[path.parent.name] = path.parent
    return found


def window_of(grid: Grid, box: tuple[float, float, float, float]) -> Window:
    """The pixels of a grid within a box of longitudes and latitudes, as far as it has any."""
    crs, _ = crs_of(grid.crs)
    if crs is None or grid.transform is None:
        raise ActionError("the scene has no place on Earth; choose its pixels instead")
    west, south, east, north = box
    if west >= east or south >= north:
        raise ActionError("drag a box: it is empty")
    left, bottom, right, top = rasterio.warp.transform_bounds("EPSG:4326", crs, west, south, east, north)
    inverse = ~rasterio.Affine(*grid.transform)
    corners = [inverse @ (x, y) for x in (left, right) for y in (bottom, top)]
    first_col, last_col = min(x for x, _ in corners), max(x for x, _ in corners)
    first_row, last_row = min(y for _, y in corners), max(y for _, y in corners)
    return clipped(grid, first_col, first_row, last_col - first_col, last_row - first_row)


def clipped(grid: Grid, col: float, row: float, width: float, height: float) -> Window:
    """What of these pixels lies within the grid."""
    first_col, first_row = max(0, int(col)), max(0, int(row))
    last_col, last_row = min(grid.width, int(-(-(col + width) // 1))), min(grid.height, int(-(-(row + height) // 1)))
    if last_col <= first_col or last_row <= first_row:
        raise ActionError("the box lies beside the scene")
    return Window(first_row, first_col, last_row - first_row, last_col - first_col)


def refine(archive: Path, scene_id: str, form: Mapping[str, str]) -> Entry:
    """All of a scene, or so many `layers`, or a region: `box` (west,south,east,north) or `pixels`
    (col,row,width,height)."""
    layers = _whole(form.get("layers", ""), 1, 64, "layers") if form.get("layers") else None
    with _opened(archive) as (asks, ledger):
        manifest = ledger.manifest(scene_id)
        grid = manifest.scene.grids[0]
        if form.get("box"):
            window = window_of(grid, _four(form["box"], "box"))
        elif form.get("pixels"):
            window = clipped(grid, *_four(form["pixels"], "pixels"))
        else:
            return asks.add(Refine(scene_id, min(layers or ALL_LAYERS, ALL_LAYERS)))
        return asks.add(Refine(scene_id, 0, region_chunks(manifest, window, 0, layers)))


def priority(archive: Path, scene_id: str, form: Mapping[str, str]) -> Entry:
    """Another priority for a scene."""
    wanted = _whole(form.get("priority", ""), -PRIORITY_MAX, PRIORITY_MAX, "priority")
    with _opened(archive) as (asks, _):
        return asks.add(SetPriority(scene_id, wanted))


def cancel(archive: Path, scene_id: str, form: Mapping[str, str]) -> Entry:
    """Send nothing more of a scene."""
    with _opened(archive) as (asks, _):
        return asks.add(Cancel(scene_id))


def install(archive: Path, folders: Sequence[Path], form: Mapping[str, str]) -> Entry:
    """A bundle on a node; unsigned: nodes that demand a signature are served by `decoder-node ask install`."""
    known = bundles(folders)
    if form.get("bundle") not in known:
        raise ActionError(f"there is no bundle {form.get('bundle', '')[:80]!r}; there are {', '.join(known) or 'none'}")
    found = find(known[form["bundle"]])
    halves = split(found.folder, "encoder")
    names = [JSON, *sorted(halves.keys() - {JSON})]
    request = Install(found.id.hex(), tuple((name, len(halves[name])) for name in names), b"")
    with _opened(archive) as (asks, _):
        return asks.add(request, form.get("node", ""), [halves[name] for name in names])


def rollback(archive: Path, form: Mapping[str, str]) -> Entry:
    """The bundle of before on a node."""
    with _opened(archive) as (asks, _):
        return asks.add(Rollback(), form.get("node", ""))


_opened: Callable[[Path], AbstractContextManager[tuple[Asks, Ledger]]] = opened


def _whole(text: str, least: int, most: int, what: str) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise ActionError(f"{what}: {text[:40]!r} is no whole number") from error
    if not least <= number <= most:
        raise ActionError(f"{what}: {number} is not {least} to {most}")
    return number


def _four(text: str, what: str) -> tuple[float, float, float, float]:
    try:
        one, two, three, four = (float(word) for word in text.split(","))
    except ValueError as error:
        raise ActionError(f"{what}: {text[:80]!r} are not four numbers") from error
    return one, two, three, four
