"""The model bundles that the ground has installed on this edge, and which of them is active.

    OUTBOX/models/state.json             {"active": id, "previous": id, "by": the request that made it so}
    OUTBOX/models/<bundle id>/           a bundle, whole, every file checked
    OUTBOX/models/incoming/<ask id>      a bundle on its way: its files, one after the other

A bundle becomes active when all of it is here, every file has the hash that its bundle.json states and that has the
hash which was asked for, the signature is good (where one is demanded), and it has passed its own test
(`encoder_node.trial`, in a process of its own). One rename then makes it active: a crash at any moment leaves either
the old or the new one. The one of before is kept for `rollback`; all others go. Without any, the operator's model is
used.

What came of a bundle survives a restart, but for the last part, which may not have been synced. Everything here belongs
to one thread. OSError passes through; the state is the old or the new one then.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from downlink.bundle import JSON, Bundle
from downlink.errors import BundleError
from downlink.frame import PART_BYTES_MAX, Answer, BundlePart, EdgeFrame, Progress, Verdict
from downlink.request import Install
from encoder_node.durable import make_folder, sync_folder, whole_file
from encoder_node.room import RESERVE_BYTES, free_bytes
from encoder_node.signature import Key

FOLDER: Final = "models"
_STATE: Final = "state.json"
_ID: Final = re.compile(r"[0-9a-f]{64}")
NEEDED: Final = ("encoder.onnx", "selftest.json", "tables.bin")


class Models:
    """The bundles beside an outbox. `fixed`: why none is taken from the ground; empty if they are. With a `key`, only
    bundles that it has signed are."""

    def __init__(self, outbox: Path, key: Key | None = None, fixed: str = "") -> None:
        self.folder = outbox / FOLDER
        self._key = key
        self._fixed = fixed
        self._coming: tuple[str, Install, int] | None = None  # the request, what it wants, bytes that are here
        self._testing: tuple[str, str] | None = None  # the request and the bundle that waits for its test

    @property
    def signed_only(self) -> bool:
        """Are only bundles taken that a certain key has signed?"""
        return self._key is not None

    def fix(self, reason: str) -> None:
        """Take none from the ground."""
        self._fixed = self._fixed or reason

    @property
    def active(self) -> Path | None:
        """The folder of the bundle to encode with; None: the operator's own, also where the disk has lost the other."""
        found = self._state().get("active")
        return self.folder / found if found and (self.folder / found / JSON).is_file() else None

    @property
    def previous(self) -> str | None:
        """The id of the bundle that `rollback` brings back; "" stands for the operator's own, None for nothing."""
        return self._state().get("previous")

    def begin(self, ask_id: str, install: Install) -> EdgeFrame:
        """The ground asks to install a bundle: how much of it is here, or the answer."""
        bundle_id = install.bundle_id
        if self._state().get("by") == ask_id:
            return Answer(ask_id, Verdict.DONE, f"bundle {bundle_id[:12]} is active")
        if self._fixed:
            return Answer(ask_id, Verdict.REFUSED, self._fixed)
        if self._key is not None and not self._key.signed(install.signed, install.signature):
            why = "its signature is not of this node's key" if install.signature else "it is not signed"
            return Answer(ask_id, Verdict.REFUSED, f"bundle {bundle_id[:12]}: {why}; this node takes signed ones only")
        if self._coming is None or self._coming[0] != ask_id:
            self._coming, self._testing = (ask_id, install, self._here(ask_id)), None
            free = free_bytes(self.folder.parent)
            if free < 2 * install.size + RESERVE_BYTES:
                needed = 2 * install.size + RESERVE_BYTES
                self._coming = None
                return Answer(ask_id, Verdict.REFUSED, f"the disk has {free} bytes left, the bundle needs {needed}")
            if self._whole(bundle_id):  # of before: it is tested anew
                self._coming = (ask_id, install, install.size)
                self._testing = (ask_id, bundle_id)
        return self._arrived()

    def part(self, part: BundlePart) -> EdgeFrame | None:
        """A piece of it has come. Synced when this returns."""
        if self._coming is None or self._coming[0] != part.ask_id:
            return None
        ask_id, install, here = self._coming
        if part.offset > here or part.offset + len(part.content) > install.size:
            return None  # one before it was lost: the ground will begin again
        if part.offset < here:
            return Progress(ask_id, here)
        path = self._incoming / ask_id
        new = not path.exists()
        with path.open("r+b" if not new else "xb") as file:
            os.pwrite(file.fileno(), part.content, here)
            os.ftruncate(file.fileno(), here + len(part.content))
            os.fdatasync(file.fileno())
        if new:
            sync_folder(self._incoming)
        self._coming = (ask_id, install, here + len(part.content))
        return self._arrived()

    def give_up(self) -> None:
        """What is on its way is not wanted any more."""
        self._coming = self._testing = None

    def to_test(self) -> Path | None:
        """The bundle that waits for its test, which the caller makes; `tested` takes the outcome."""
        if self._testing is None:
            return None
        _, bundle_id = self._testing
        return self.folder / bundle_id

    def tested(self, reason: str) -> Answer | None:
        """The bundle has passed its test, or this was wrong with it. None if it is not asked for any more."""
        if self._testing is None:
            return None
        (ask_id, bundle_id), self._testing, self._coming = self._testing, None, None
        state = self._state()
        if reason:
            if bundle_id not in (state.get("active"), state.get("previous")):
                shutil.rmtree(self.folder / bundle_id, ignore_errors=True)
            return Answer(ask_id, Verdict.REFUSED, f"bundle {bundle_id[:12]} fails on this node: {reason}")
        if state.get("active") == bundle_id:
            self._write({**state, "by": ask_id})
        else:
            self._write({"active": bundle_id, "previous": state.get("active", ""), "by": ask_id})
        self._clean()
        return Answer(ask_id, Verdict.DONE, f"bundle {bundle_id[:12]} is active")

    def rollback(self, ask_id: str) -> Answer:
        """The bundle of before is active again, and the present one is the one of before."""
        state = self._state()
        if state.get("by") != ask_id:
            if self._fixed:
                return Answer(ask_id, Verdict.REFUSED, self._fixed)
            if "previous" not in state:
                return Answer(ask_id, Verdict.REFUSED, "no bundle was active before the present one")
            state = {"active": state["previous"], "previous": state["active"], "by": ask_id}
            self._write(state)
        now = f"bundle {state['active'][:12]}" if state["active"] else "the operator's own bundle"
        return Answer(ask_id, Verdict.DONE, f"{now} is active again")

    @property
    def _incoming(self) -> Path:
        return self.folder / "incoming"

    def _here(self, ask_id: str) -> int:
        """Bytes of a bundle that have come and are synced; all others on their way are given up."""
        make_folder(self._incoming)
        for path in self._incoming.iterdir():
            if path.name != ask_id:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        path = self._incoming / ask_id
        return max(0, path.stat().st_size - PART_BYTES_MAX) if path.exists() else 0

    def _whole(self, bundle_id: str) -> bool:
        """Is this bundle here, and as it was?"""
        folder = self.folder / bundle_id
        try:
            bundle = Bundle.read(folder)
            bundle.verify()
            return bundle.id.hex() == bundle_id and all(bundle.has(name) for name in NEEDED)
        except BundleError:
            return False

    def _arrived(self) -> EdgeFrame:
        """What to say when so much is here."""
        assert self._coming is not None
        ask_id, install, here = self._coming
        if here == install.size and self._testing is None:
            try:
                self._unpack(ask_id, install)
            except BundleError as error:
                self._coming = None
                (self._incoming / ask_id).unlink(missing_ok=True)
                return Answer(ask_id, Verdict.REFUSED, str(error).replace(str(self.folder), "")[:900])
            self._testing = (ask_id, install.bundle_id)
        return Progress(ask_id, here)

    def _unpack(self, ask_id: str, install: Install) -> None:
        """Put the files of a bundle that is here into a folder of its own, checked and synced."""
        folder, bundle = self._incoming / f"{ask_id}.new", self.folder / install.bundle_id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with (self._incoming / ask_id).open("rb") as file:
            for name, size in install.files:
                content = file.read(size)
                if name == JSON and hashlib.sha256(content).hexdigest() != install.bundle_id:
                    found = hashlib.sha256(content).hexdigest()
                    raise BundleError(
                        f"its {JSON} has the SHA-256 {found}, {install.bundle_id} was asked for; ask again"
                    )
                with (folder / name).open("wb") as out:
                    out.write(content)
                    out.flush()
                    os.fsync(out.fileno())
        sync_folder(folder)
        made = Bundle.read(folder)
        names = {name for name, _ in install.files} - {JSON}
        if extra := names - set(made.files):
            raise BundleError(f"{', '.join(sorted(extra))} came with it, which its {JSON} does not state")
        if lacking := set(NEEDED) - names:
            raise BundleError(f"it lacks {', '.join(sorted(lacking))}, without which nothing can be encoded")
        made.verify()
        shutil.rmtree(bundle, ignore_errors=True)
        folder.rename(bundle)
        sync_folder(self.folder)
        (self._incoming / ask_id).unlink()

    def _clean(self) -> None:
        """Bundles that are neither active nor the one of before go."""
        state = self._state()
        for path in self.folder.iterdir():
            if _ID.fullmatch(path.name) and path.name not in (state.get("active"), state.get("previous")):
                shutil.rmtree(path, ignore_errors=True)

    def _state(self) -> Mapping[str, str]:
        try:
            found = json.loads((self.folder / _STATE).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:  # the disk has changed it: the operator's model is always there
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, state: Mapping[str, str]) -> None:
        with whole_file(self.folder / _STATE) as file:
            file.write(json.dumps(dict(state)).encode())
