"""Measurements that are kept: an interrupted run goes on where it stopped, and a second run measures what is new.

A measurement is filed under the SHA-256 of all that it depends on: the scene's pixels and description, the codec with
the sources and libraries it is made of (for our own: both nodes, `downlink`, and the bundle's id), its setting, and the
sources that measure. Nothing is ever out of date: what has changed has another name. One JSON file each, written whole
or not at all; a file that cannot be read counts as absent. Times are kept with the rest: they are those of the hour in
which a row was measured, so tables of speed are measured by themselves (`evaluation.speed`).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from downlink import bundle
from downlink.accelerator import native
from downlink.errors import DownlinkError
from downlink.scene import Scene
from evaluation.codecs import CodecSpec

ROOT: Final = Path(__file__).parents[1]
_OURS: Final = ("downlink", "encoder_node", "decoder_node")
_LIBRARIES: Final = ("imagecodecs", "numpy", "onnxruntime", "zstandard")
_MEASURING: Final = ("evaluate.py", "similarity.py", "indices.py", "seams.py")


class Cache:
    """A folder of measurements; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DownlinkError(
                    f"{folder} cannot be written ({error.strerror}); give --cache another place"
                ) from error

    def get(self, key: str) -> Any | None:
        """What was measured under `key`, or None."""
        if self._folder is None:
            return None
        try:
            return msgspec.json.decode(self._path(key).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None

    def put(self, key: str, value: Any) -> None:
        """Keep `value`, which must be JSON."""
        if self._folder is None:
            return
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(value))
        Path(name).replace(path)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.json"


def key_of(*parts: Any) -> str:
    """The name of what depends on `parts`, which must be JSON."""
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def of_scene(scene: Scene, grids: tuple[NDArray[Any], ...]) -> str:
    """The name of a scene: its description but for the name, which no codec looks at, and its pixels."""
    digest = hashlib.sha256(msgspec.json.encode((scene.grids, scene.tags, scene.acquired)))
    for grid in grids:
        digest.update(np.ascontiguousarray(grid).data)
    return digest.hexdigest()


def of_codec(spec: CodecSpec) -> list[Any]:
    """What a codec's figures depend on besides scene and setting."""
    libraries = {name: _version(name) for name in _LIBRARIES}
    parts: list[Any] = [spec.classical, spec.threads, libraries, sources("evaluation/codecs")]
    if spec.classical is None:
        found = None if spec.model is None else bundle.find(spec.model)
        parts += [None if found is None else found.id.hex(), native(), *(sources(name) for name in _OURS)]
    return parts


def of_measuring() -> str:
    """The sources of all that is measured on decoded pixels."""
    return sources(*(f"evaluation/{name}" for name in _MEASURING), "downlink/quality.py")


@cache
def sources(*names: str) -> str:
    """SHA-256 of files, or of all source files in folders, below the installation's root."""
    digest = hashlib.sha256()
    for name in names:
        place = ROOT / name
        files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.suffix in (".py", ".c", ".h"))
        for file in files:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
