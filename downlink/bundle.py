"""A model bundle: the folder that both ends load, so that what one encodes the other decodes.

    bundle.json     {"format": 1, "name", "version", "kind", "files": {name: sha256}, "parameters": {...}}
    encoder.onnx    left out of the decoder half (`split`)
    decoder.onnx    left out of the encoder half
    ...             prior_*.onnx, tables.bin, selftest.json, card.md: in both

The id of a bundle is the SHA-256 of the bytes of bundle.json, which states the hash of every file: one id, one
behaviour. Both halves keep the same bundle.json, so both have the id of the whole. A stream names the id, never a path.

Refused (`BundleError`): file names that are anything but plain names, other formats or kinds, a file whose bytes do not
have the stated hash (checked on every read, so that a file swapped meanwhile is noticed), and a file that is not there.
Models are handed out as bytes that `downlink.graph` has looked through: nothing in them reaches for another file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from downlink import limits
from downlink.errors import BundleError
from downlink.graph import check_graph
from downlink.manifest import BUNDLE_NAME

FORMAT: Final = 1
KINDS: Final = ("planes", "enhance", "patches")
"""The codec's; networks that make more of a decoded scene (downlink.enhance); autoencoders of the laboratory."""

JSON: Final = "bundle.json"
FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NOT_IN_HALF: Final = {"encoder": "decoder.onnx", "decoder": "encoder.onnx"}


class _Stated(Struct, frozen=True):
    """bundle.json, as it is written."""

    format: int
    name: str
    version: str
    kind: str
    files: dict[str, str]
    parameters: dict[str, Any]


class Bundle:
    """A bundle that has been found and whose bundle.json makes sense. Holds no file's bytes."""

    def __init__(self, folder: Traversable, stated_bytes: bytes) -> None:
        stated = _parse(stated_bytes, folder)
        self.folder: Final = folder
        self.id: Final = hashlib.sha256(stated_bytes).digest()
        self.name: Final = stated.name
        self.version: Final = stated.version
        self.kind: Final = stated.kind
        self.parameters: Final = stated.parameters
        self.files: Final = stated.files  # file name -> sha256, hex; of the whole bundle, whichever half this is

    @classmethod
    def read(cls, folder: Traversable | Path) -> Bundle:
        """The bundle in `folder`. Its files are checked when they are read (`file`), all at once by `verify`."""
        return cls(folder, _json_bytes(folder))

    def has(self, name: str) -> bool:
        """Whether the bundle states file `name` and this folder holds it."""
        return name in self.files and self.folder.joinpath(name).is_file()

    def file(self, name: str) -> bytes:
        """The bytes of file `name`, which have the stated hash."""
        if name not in self.files:
            raise BundleError(f"bundle {self.name} has no file {name!r}; it states {', '.join(sorted(self.files))}")
        if not self.has(name):
            half = next((half for half, missing in _NOT_IN_HALF.items() if missing == name), None)
            why = f"this is the {half} half, use the whole bundle" if half else "copy the bundle again"
            raise BundleError(f"bundle {self.name} at {self.folder} lacks {name}: {why}")
        content = self.folder.joinpath(name).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != self.files[name]:
            raise BundleError(
                f"bundle {self.name} at {self.folder}: {name} has sha256 {found}, "
                f"{self.files[name]} stated in {JSON}; copy the bundle again"
            )
        if name.endswith(".onnx"):
            check_graph(content, f"bundle {self.name}: {name}")
        return content

    def verify(self) -> None:
        """Read and check every file that is here."""
        for name in self.files:
            if self.has(name):
                self.file(name)

    def __repr__(self) -> str:
        return f"Bundle({self.name} {self.version}, id {self.id.hex()[:12]})"


def split(folder: Traversable | Path, half: Literal["encoder", "decoder"]) -> dict[str, bytes]:
    """The files of one half, by name, bundle.json among them: what is shipped to that end. Every file is verified."""
    if half not in _NOT_IN_HALF:
        raise BundleError(f"a bundle has no {half!r} half; choose {' or '.join(_NOT_IN_HALF)}")
    bundle = Bundle.read(folder)
    kept = [name for name in bundle.files if name != _NOT_IN_HALF[half]]
    return {JSON: _json_bytes(folder)} | {name: bundle.file(name) for name in kept}


def released(name: str) -> Traversable:
    """The folder of the released bundle `name`: in the installed package, else in the checkout beside it."""
    if BUNDLE_NAME.fullmatch(name):
        for shelf in _shelves():
            if shelf.joinpath(name).joinpath(JSON).is_file():
                return shelf.joinpath(name)
    raise BundleError(f"no released bundle is called {name!r}; there are: {', '.join(released_names()) or 'none'}")


def released_names() -> list[str]:
    """The names of all released bundles that are installed."""
    return sorted({folder.name for shelf in _shelves() for folder in _bundles_in(shelf)})


def find(name_or_path: str | Path, extra_dirs: Iterable[Path] = ()) -> Bundle:
    """The bundle that a user means: by its folder's name in `extra_dirs`, then among the released ones, else by a path.

    For what a user typed, never for a name out of a stream: a stream's bundle is found by `find_id`.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, str) and BUNDLE_NAME.fullmatch(text):
        for folder in _candidates(extra_dirs):
            if folder.name == text:
                return Bundle.read(folder)
    if (Path(text) / JSON).is_file():
        return Bundle.read(Path(text))
    names = ", ".join(released_names()) or "none"
    raise BundleError(f"no bundle {text!r}: neither a folder with a {JSON} nor one of the released ones ({names})")


def find_id(wanted: bytes, extra_dirs: Iterable[Path] = (), needs: str | None = None) -> Bundle:
    """The bundle whose id is `wanted`: `extra_dirs` (bundles, or folders of bundles) first, then the released ones.

    Halves have the id of the whole: one that lacks the file `needs` is taken only where nothing better is found.
    """
    seen: dict[str, str] = {}
    lacking: Bundle | None = None
    for folder in _candidates(extra_dirs):
        try:
            stated_bytes = _json_bytes(folder)
        except BundleError:
            continue  # a damaged neighbour is not what was asked for
        found = hashlib.sha256(stated_bytes).digest()
        if found == wanted:
            bundle = Bundle(folder, stated_bytes)
            if needs is None or bundle.has(needs):
                return bundle
            lacking = lacking or bundle
        seen[folder.name] = found.hex()
    if lacking is not None:
        return lacking  # its `file` says what is missing
    here = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(seen.items())) or "none"
    raise BundleError(f"the stream needs the bundle with id {wanted.hex()}; here are: {here}. Install that bundle")


def bundles_in(folders: Iterable[Path], kind: str) -> list[Bundle]:
    """All bundles of a kind in `folders` (bundles, or folders of bundles), by name; damaged ones are left out."""
    found = []
    for folder in folders:
        for one in [folder] if (folder / JSON).is_file() else _bundles_in(folder):
            try:
                found.append(Bundle.read(one))
            except BundleError:
                continue
    return sorted((one for one in found if one.kind == kind), key=lambda one: one.name)


def _shelves() -> Iterator[Traversable]:
    """Where released bundles lie: package data of a wheel; the repository's models/ in a checkout."""
    package = resources.files("downlink")
    yield package.joinpath("models")
    if isinstance(package, Path):
        yield package.parent / "models"


def _bundles_in(shelf: Traversable) -> list[Traversable]:
    if not shelf.is_dir():
        return []
    return sorted((f for f in shelf.iterdir() if f.joinpath(JSON).is_file()), key=lambda folder: folder.name)


def _candidates(extra_dirs: Iterable[Path]) -> Iterator[Traversable]:
    for folder in extra_dirs:
        if (folder / JSON).is_file():
            yield folder
        yield from _bundles_in(folder)
    for shelf in _shelves():
        yield from _bundles_in(shelf)


def _json_bytes(folder: Traversable | Path) -> bytes:
    try:
        stated_bytes = folder.joinpath(JSON).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: its {JSON} cannot be read ({error.strerror})") from error
    if len(stated_bytes) > limits.BUNDLE_JSON_BYTES_MAX:
        raise BundleError(f"{folder}: {JSON} has {len(stated_bytes)} bytes, above {limits.BUNDLE_JSON_BYTES_MAX}")
    return stated_bytes


def _parse(stated_bytes: bytes, folder: Traversable) -> _Stated:
    where = f"{folder}: {JSON}"
    try:
        stated = msgspec.json.decode(stated_bytes, type=_Stated)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"{where}: {error}; export the bundle again") from error
    if stated.format != FORMAT:
        raise BundleError(f"{where}: format {stated.format}, this program knows {FORMAT}; update this program")
    if stated.kind not in KINDS:
        raise BundleError(f"{where}: kind {stated.kind!r} is none of {', '.join(KINDS)}; update this program")
    if not BUNDLE_NAME.fullmatch(stated.name):
        raise BundleError(f"{where}: name {stated.name!r} does not match {BUNDLE_NAME.pattern}")
    for name, digest in stated.files.items():
        if not FILE_NAME.fullmatch(name) or name == JSON:
            raise BundleError(f"{where}: file name {name!r} must be a plain name matching {FILE_NAME.pattern}")
        if not _SHA256.fullmatch(digest):
            raise BundleError(f"{where}: the sha256 of {name} is {digest[:80]!r}, not 64 lower-case hex digits")
    return stated
