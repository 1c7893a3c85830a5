"""Streams for tests of the link: real manifests and chunk lists over made-up payloads, of any size."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from downlink.action import Outgoing
from downlink.chunk import ChunkList, GridCoding, Layout
from downlink.frame import SceneState, State
from downlink.manifest import Manifest, scene_id
from downlink.scene import Band, Grid, Scene
from downlink.stream import write_stream


@dataclass(frozen=True)
class Stream:
    """A finished stream in memory."""

    packed: bytes
    chunks: tuple[bytes, ...]
    file: bytes

    @property
    def id(self) -> str:
        return scene_id(self.packed)

    @property
    def durable(self) -> SceneState:
        """What the ground says when it has all of it."""
        return SceneState(self.id, State.DURABLE, payload_sha256=Manifest.unpack(self.packed).payload_sha256)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(chunk) for chunk in self.chunks], np.uint32)

    @property
    def sent(self) -> set[int]:
        """Indexes of the chunks that travel."""
        return {index for index, chunk in enumerate(self.chunks) if chunk}

    def outgoing(self, priority: int = 0, order: int = 0) -> Outgoing:
        return Outgoing(self.id, self.packed, self.lengths, priority, order)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.file)
        return path


@cache
def stream(seed: int = 0, side: int = 96, chunk_bytes: int = 30, name: str = "made up") -> Stream:
    """A scene of `side` x `side` px in tiles of 32 with 2 layers; chunks up to `chunk_bytes` long, some empty."""
    random = np.random.default_rng(seed)
    scene = Scene(f"{name} {seed}", (Grid(side, side, "uint16", (Band("B02"),), 0),))
    codings = (GridCoding(tile=32, planes=1, planes_per_chunk=1, groups=2, mask="shared", step=4.0),)
    layout = Layout(scene, codings)
    payloads = [
        random.bytes(max(0, int(random.integers(-chunk_bytes // 4, chunk_bytes + 1))))
        for _ in range(len(layout) - layout.pages)
    ]
    listed = ChunkList.of(payloads)
    manifest = Manifest.of(
        scene=scene,
        bundle=bytes(range(32)),
        bundle_name="nobody-has-it",
        codings=codings,
        settings={"quality": 50.0},
        listed=listed,
        chunks=payloads,
    )
    packed, chunks, file = manifest.pack(), (*listed.pages(), *payloads), io.BytesIO()
    write_stream(file, packed, chunks)
    return Stream(packed, chunks, file.getvalue())
