"""Products on any file system that fsspec knows: an object store, another machine, a shared folder.

    STORE/catalog.json, STORE/scenes/collection.json    the catalogue, as in an archive's folder
    STORE/scenes/<scene id>/...                          a scene's item and files
    STORE/streams/<scene id>.dl                          its stream

The same layout as an archive's, so that all links hold. The ledger, and what is still on its way, stay in the archive's
folder with the receiver. A scene's item is written after its files, and the collection after the item: whoever follows
links finds everything. One receiver writes a store's collection; workers write items. Refused, with `StoreError`: URLs
whose file system is not installed, or does not answer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import fsspec

from decoder_node.catalogue import add_item_to
from decoder_node.decoding import Outcome, task
from decoder_node.log import log
from downlink.errors import DownlinkError
from downlink.ranges import Range

JSON: Final = "application/json"


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

    @contextmanager
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
        with self._guarded():
            target = f"{self.root}/{name}"
            self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(target, content)

    def has(self, name: str) -> bool:
        with self._guarded():
            return bool(self.files.exists(f"{self.root}/{name}"))

    def admit(self, item: dict[str, Any]) -> None:
        """Name an item, that is here already, in the collection."""
        collection = self.read("scenes/collection.json")
        catalog, changed = add_item_to(None if collection is None else json.loads(collection), item)
        self.write("scenes/collection.json", json.dumps(changed, indent=1, ensure_ascii=False).encode())
        if not self.has("catalog.json"):
            self.write("catalog.json", json.dumps(catalog, indent=1, ensure_ascii=False).encode())


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
            for key in ("item", "quicklook", "bits"):
                result[key] = f"{store.url}/{result[key]}"
            return replace(outcome, result=result)
    except StoreError as error:
        log.warning("store", extra={"scene": scene_id, "reason": str(error)})
        return Outcome(lost=str(error))
