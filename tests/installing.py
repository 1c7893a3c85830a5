"""Model bundles as the ground sends them, piece by piece, to a node's `Models`."""

from __future__ import annotations

import hashlib
import json

from downlink.bundle import JSON, Bundle
from downlink.frame import PART_BYTES_MAX, Answer, BundlePart, Progress
from downlink.request import Install
from encoder_node.models import NEEDED, Models

ASK, AGAIN = "a1" * 16, "b2" * 16


def bundle_files(name: str = "made", weights: bytes = b"weights" * 9000) -> dict[str, bytes]:
    """A bundle that can be installed, and would fail any trial: its models are none. Small, but of several parts."""
    files = dict.fromkeys(NEEDED, b"x") | {"tables.bin": weights, "card.md": b"# made"}
    stated = {
        "format": 1, "name": name, "version": "1", "kind": "planes", "parameters": {},
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
    }  # fmt: skip
    return {JSON: json.dumps(stated).encode(), **files}


def install_of(files: dict[str, bytes], signature: bytes = b"") -> Install:
    listed = tuple((name, len(content)) for name, content in files.items())
    return Install(hashlib.sha256(files[JSON]).hexdigest(), listed, signature)


def send(models: Models, files: dict[str, bytes], ask_id: str = ASK, signature: bytes = b"") -> Answer | None:
    """As the ground does it: all parts from where it has got to. The answer if one comes before the test."""
    content = b"".join(files.values())
    said = models.begin(ask_id, install_of(files, signature))
    while isinstance(said, Progress) and said.offset < len(content):
        piece = content[said.offset : said.offset + PART_BYTES_MAX]
        step = models.part(BundlePart(ask_id, said.offset, piece))
        assert step is not None
        said = step
    return said if isinstance(said, Answer) else None


def installed(models: Models, files: dict[str, bytes], ask_id: str = ASK) -> Answer:
    assert send(models, files, ask_id) is None
    assert models.to_test() is not None
    answer = models.tested("")
    assert answer is not None
    return answer


def name_of(models: Models) -> str | None:
    """Of the active bundle, every file of which is checked."""
    if models.active is None:
        return None
    bundle = Bundle.read(models.active)
    bundle.verify()
    assert bundle.id.hex() == models.active.name
    return bundle.name
