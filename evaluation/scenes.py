"""Which scenes are measured: files, or a split of a corpus that has a manifest.

A corpus is a folder with a `manifest.json`: a list of objects with at least `file`, and `dtype` and `suggested_split`
where they are known. Rasters of other types than the codec takes are left out and counted; a file that the user names
is never left out but refused with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from downlink.errors import SceneError
from downlink.scene import DTYPES, Scene
from downlink.tile import Window
from encoder_node.source import open_source

MANIFEST = "manifest.json"
# Classical codecs need the scene in memory, several times over.
RAW_BYTES_MAX = 4 << 30


@dataclass(frozen=True)
class Entry:
    """A scene to be measured, under a label that no other has."""

    path: Path
    label: str


class _Listed(msgspec.Struct):
    file: str
    dtype: str | None = None
    suggested_split: str | None = None


def find(paths: Sequence[Path], split: str | None) -> tuple[list[Entry], int]:
    """The scenes that `paths` stand for, and how many rasters of a corpus were left out for their type."""
    found: list[Path] = []
    left_out = 0
    for path in paths:
        if (path / MANIFEST).is_file():
            files, others = _corpus(path, split)
            found += files
            left_out += others
        elif split is not None:
            raise SceneError(f"{path} has no {MANIFEST}, so it has no split {split!r}; leave --split out")
        else:
            found.append(path)
    labels = _labels(found)
    return [Entry(path, label) for path, label in zip(found, labels, strict=True)], left_out


def _corpus(folder: Path, split: str | None) -> tuple[list[Path], int]:
    try:
        listed = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=list[_Listed])
    except msgspec.MsgspecError as error:
        raise SceneError(f'{folder / MANIFEST}: {error}; it must be a list of objects with a "file" each') from error
    chosen = [entry for entry in listed if split is None or entry.suggested_split == split]
    if not chosen:
        splits = sorted({entry.suggested_split for entry in listed if entry.suggested_split})
        raise SceneError(f"{folder / MANIFEST} has no files in split {split!r}; it has: {', '.join(splits) or 'none'}")
    taken = [folder / entry.file for entry in chosen if entry.dtype is None or entry.dtype in DTYPES]
    return taken, len(chosen) - len(taken)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Stems, with as many parents as it takes to tell them apart."""
    labels = [path.stem for path in paths]
    for depth in range(1, 8):
        count = Counter(labels)
        if max(count.values(), default=1) == 1:
            break
        labels = [
            "/".join([*path.parts[:-1][-depth:], path.stem]) if count[label] > 1 else label
            for path, label in zip(paths, labels, strict=True)
        ]
    repeated = Counter(labels)
    return [f"{label} ({number})" if repeated[label] > 1 else label for number, label in enumerate(labels, 1)]


def describe(path: Path) -> Scene:
    """A scene's description; `SceneError` when it cannot be measured."""
    source = open_source(path)
    try:
        scene = source.scene
    finally:
        source.close()
    if scene.raw_bytes > RAW_BYTES_MAX:
        raise SceneError(
            f"{path} has {scene.raw_bytes / 2**30:.1f} GiB of pixels, {RAW_BYTES_MAX / 2**30:.0f} GiB are the most "
            "that evaluate takes (it holds the scene in memory); cut a part out, for example by gdal_translate -srcwin"
        )
    return scene


def read(path: Path) -> tuple[NDArray[Any], ...]:
    """All pixels, one array per grid."""
    source = open_source(path)
    try:
        return tuple(
            np.ascontiguousarray(source.read(number, Window(0, 0, grid.height, grid.width)))
            for number, grid in enumerate(source.scene.grids)
        )
    finally:
        source.close()
