"""Products on any file system that fsspec knows: an object store, another machine, a shared folder.

    STORE/catalog.json, STORE/scenes/collection.json    the catalogue, as in an archive's folder
    STORE/scenes/<scene id>/...                          a scene's item and files
    STORE/streams/<scene id>.dl                          its stream

The same layout as an archive's, so that all links hold. The ledger, and what is still on its way, stay in the archive's
folder with the receiver. A scene's item is written after its files, and the collection after the item: whoever follows
links finds everything, also while another receiver or worker is killed.

On a file system of this machine (`file://`, NFS and the like included) every file appears whole and synced, or not at
all, and several receivers may share a store: they take turns with its collection (`catalogue.locked`). An object store
has no lock: there, one receiver writes a store's collection, and workers write items. Refused, with `StoreError`: URLs
whose file system is not installed, or does not answer.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from decoder_node import catalogue
from decoder_node.decoding import Outcome, task
from decoder_node.durable import make_folder, sync_folder, write_whole
from decoder_node.log import log
from decoder_node.reference import lineage
from downlink.errors import DownlinkError
from downlink.manifest import Manifest
from downlink.ranges import Range
from downlink.stream import read_head

LEFT_S: Final = 3600.0


class StoreError(DownlinkError):
    """The store cannot be used."""

    code = "store"


class Store:
    """A folder by URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url}: {error}") from error
        self._here = Path(self.root) if isinstance(self.files, LocalFileSystem) else None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except DownlinkError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise StoreError(f"{self.url} does not answer: {type(error).__name__}: {error}") from error

    def put(self, path: Path, name: str) -> None:
        """A file or folder of ours, at `name`; in the place of what was there."""
        with self._guarded():
            target = f"{self.root}/{name}"
            if self._here is not None:
                _put_whole(path, Path(target))
                return
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            if path.is_dir() and self.files.exists(target):
                self.files.rm(target, recursive=True)
            self.files.put(str(path), target, recursive=path.is_dir())

    def get(self, name: str, path: Path) -> None:
        """The file at `name`, to a file of ours."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._guarded():
            self.files.get(f"{self.root}/{name}", str(path))

    def read(self, name: str) -> bytes | None:
        """What is at `name`; None: nothing."""
        with self._guarded():
            try:
                content: bytes = self.files.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """Make `content` what is at `name`."""
        with self._guarded():
            target = f"{self.root}/{name}"
            if self._here is not None:
                write_whole(Path(target), content)
                return
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(target, content)

    def has(self, name: str) -> bool:
        with self._guarded():
            return bool(self.files.exists(f"{self.root}/{name}"))

    def admit(self, item: dict[str, Any]) -> None:
        """Name an item, that is here already, in the collection."""
        if self._here is not None:
            with self._guarded():
                catalogue.admit(self._here, item)
            return
        collection = self.read("scenes/collection.json")
        catalog, changed = catalogue.add_item_to(None if collection is None else json.loads(collection), item)
        self.write("scenes/collection.json", catalogue.text_of(changed))
        if not self.has("catalog.json"):
            self.write("catalog.json", catalogue.text_of(catalog))


def _put_whole(path: Path, target: Path) -> None:
    """A copy of a file or folder at `target`: a file there is replaced in one step, a folder nearly so. What a killed
    process has left of an earlier copy goes, once nobody can still be writing it."""
    make_folder(target.parent)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - LEFT_S:
                shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        copy = temporary / target.name
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        for file in (file for file in (copy, *copy.rglob("*")) if file.is_file()):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if target.is_dir():
            target.rename(temporary / "before")
        copy.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(target.parent)


def _fetch_references(store: Store, archive: Path, scene_id: str) -> None:
    """The streams of the references behind a scene whose own stream, or part of one, lies in `archive`."""
    streams = archive / "streams"
    here = [streams / f"{scene_id}.dl", archive / "inbox" / f"{scene_id}.part"]
    with next(path for path in here if path.exists()).open("rb") as file:
        manifest = Manifest.unpack(read_head(file))

    def find(wanted: str) -> Path | None:
        name = f"streams/{wanted}.dl"
        if not store.has(name):
            return None
        store.get(name, archive / name)
        return archive / name

    list(lineage(manifest, find))


def store_task(
    url: str,
    content: bytes | None,
    scene_id: str,
    model_folders: Sequence[str],
    received_at: float,
    there: Sequence[tuple[int, int]] | None,
    products: Sequence[str],
) -> Outcome:
    """`decoding.task` where only the store is shared: fetches the stream (or takes the part that is given), decodes it
    in a folder that goes again, and puts the products into the store, the item last. Idempotent like it."""
    store = Store(url)
    try:
        with tempfile.TemporaryDirectory(prefix="decode-") as folder:
            archive = Path(folder)
            ranges = None if there is None else [Range(*item) for item in there]
            if content is None:
                store.get(f"streams/{scene_id}.dl", archive / "streams" / f"{scene_id}.dl")
            else:
                (archive / "inbox").mkdir()
                (archive / "inbox" / f"{scene_id}.part").write_bytes(content)
            _fetch_references(store, archive, scene_id)
            outcome = task(archive, scene_id, [Path(one) for one in model_folders], received_at, ranges, products)
            if outcome.result is None:
                return outcome
            made = archive / "scenes" / scene_id
            item = made / f"{scene_id}.json"
            for path in sorted(made.iterdir(), key=lambda path: path == item):
                if not path.name.startswith("."):
                    store.put(path, f"scenes/{scene_id}/{path.name}")
            result = dict(outcome.result)
            result["assets"] = [f"{store.url}/{name}" for name in result["assets"]]
            for key in {"item", "quicklook", "bits", "cover"} & result.keys():
                result[key] = f"{store.url}/{result[key]}"
            if "products" in result:
                result["products"] = {f"{store.url}/{name}": note for name, note in result["products"].items()}
            return replace(outcome, result=result)
    except StoreError as error:
        log.warning("store", extra={"scene": scene_id, "reason": str(error)})
        return Outcome(lost=str(error))
