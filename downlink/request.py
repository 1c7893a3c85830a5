"""What the ground may ask of an edge, as values, and packed as it travels and as the ledger keeps it.

The messages are those of proto/downlink/v1/link.proto (`Request`), where each field's meaning is written. `unpack`
refuses, with `LinkError`, what the schema's comments forbid: ids that are not 32 bytes, numbers out of their bounds,
ranges that are empty, unordered or touching, file names that are not plain, bundles over their bound, signatures that
cannot be; and kinds of requests that this program does not know. What needs knowledge of a scene or of a bundle is the
edge's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from downlink import limits
from downlink.bundle import FILE_NAME, JSON
from downlink.errors import LinkError
from downlink.framing import ranges_in, ranges_out
from downlink.ranges import Range
from downlink.wire import link_pb2 as pb

ALL_LAYERS: Final = limits.GROUPS_MAX  # no scene has more
PRIORITY_MAX: Final = 1000
SIGNATURE_BYTES: Final = 64
SIGNED_PREFIX: Final = b"latent-downlink bundle v1\n"
TARGETS: Final[Mapping[str, tuple[float, float]]] = {
    "quality": (0.0, 120.0),
    "bits_per_sample": (0.001, 16.0),
    "psnr_db": (10.0, 90.0),
    "stream_bytes": (512, limits.SCENE_RAW_BYTES_MAX),
    "max_error": (0, limits.MAX_ERROR_MAX),
}
_WHOLE: Final = ("stream_bytes", "max_error")
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Refine:
    """Send more of a scene: at least so many `layers` (0: no more than before), and before its other chunks `first`."""

    scene_id: str
    layers: int = ALL_LAYERS
    first: tuple[Range, ...] = ()


@dataclass(frozen=True, slots=True)
class SetPriority:
    scene_id: str
    priority: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Send nothing more of a scene, and forget it."""

    scene_id: str


@dataclass(frozen=True, slots=True)
class SetTarget:
    """Encode scenes, that are not encoded yet, like this; `target` is one of `TARGETS`, empty for what the edge's
    operator wants. Send so many layers of them; 0: all."""

    target: str = ""
    value: float = 0.0
    layers: int = 0


@dataclass(frozen=True, slots=True)
class Install:
    """Encode with this bundle from now on: (name, bytes) of its files in the order in which they follow each other."""

    bundle_id: str
    files: tuple[tuple[str, int], ...]
    signature: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def signed(self) -> bytes:
        """What the signature is made of."""
        return SIGNED_PREFIX + bytes.fromhex(self.bundle_id)


@dataclass(frozen=True, slots=True)
class Rollback:
    """Encode with the bundle of before again."""


Request = Refine | SetPriority | Cancel | SetTarget | Install | Rollback


def pack(request: Request) -> bytes:
    """As it travels."""
    match request:
        case Refine(scene_id, layers, first):
            refine = pb.Refine(scene_id=bytes.fromhex(scene_id), layers=layers, first=ranges_out(first))
            message = pb.Request(refine=refine)
        case SetPriority(scene_id, priority):
            message = pb.Request(set_priority=pb.SetPriority(scene_id=bytes.fromhex(scene_id), priority=priority))
        case Cancel(scene_id):
            message = pb.Request(cancel=pb.Cancel(scene_id=bytes.fromhex(scene_id)))
        case SetTarget(target, value, layers):
            message = pb.Request(set_target=pb.SetTarget(layers=layers))
            if target:
                setattr(message.set_target, target, int(value) if target in _WHOLE else value)
        case Install(bundle_id, files, signature):
            listed = [pb.BundleFile(name=name, bytes=size) for name, size in files]
            install = pb.Install(bundle_id=bytes.fromhex(bundle_id), files=listed, signature=signature)
            message = pb.Request(install=install)
        case Rollback():
            message = pb.Request(rollback=pb.Rollback())
    packed: bytes = message.SerializeToString(deterministic=True)
    if len(packed) > limits.REQUEST_BYTES_MAX:
        raise LinkError(f"the request has {len(packed)} bytes, at most {limits.REQUEST_BYTES_MAX} travel; ask for less")
    return packed


def unpack(packed: bytes) -> Request:
    """What is asked for. Raises `LinkError`."""
    try:
        message = pb.Request.FromString(packed)
    except DecodeError as error:
        raise LinkError("the request is no message of this schema; update the older of the two nodes") from error
    match message.WhichOneof("what"):
        case "refine":
            layers = min(message.refine.layers, ALL_LAYERS)
            return Refine(_id(message.refine.scene_id), layers, ranges_in(message.refine.first, "Refine.first"))
        case "set_priority":
            priority = message.set_priority.priority
            if abs(priority) > PRIORITY_MAX:
                raise LinkError(f"a priority of {priority}; choose one of -{PRIORITY_MAX} to {PRIORITY_MAX}")
            return SetPriority(_id(message.set_priority.scene_id), priority)
        case "cancel":
            return Cancel(_id(message.cancel.scene_id))
        case "set_target":
            return _target(message.set_target)
        case "install":
            return _install(message.install)
        case "rollback":
            return Rollback()
        case _:
            raise LinkError("a kind of request that this node does not know; update it")


def scene_of(request: Request) -> str | None:
    """The scene that a request is about."""
    return request.scene_id if isinstance(request, Refine | SetPriority | Cancel) else None


def _target(message: pb.SetTarget) -> SetTarget:
    name = message.WhichOneof("target") or ""
    value = float(getattr(message, name)) if name else 0.0
    if name:
        low, high = TARGETS[name]
        if not low <= value <= high:  # NaN fails as well
            raise LinkError(f"a {name} of {value:g} is asked for; choose one of {low:g} to {high:g}")
    if message.layers > limits.GROUPS_MAX:
        raise LinkError(f"{message.layers} layers are asked for, no scene has more than {limits.GROUPS_MAX}")
    return SetTarget(name, value, message.layers)


def _install(message: pb.Install) -> Install:
    files = tuple((file.name, file.bytes) for file in message.files)
    names = [name for name, _ in files]
    if not 2 <= len(files) <= limits.BUNDLE_FILES_MAX or len(set(names)) < len(names) or names[0] != JSON:
        raise LinkError(
            f"a bundle of {len(files)} files: 2 to {limits.BUNDLE_FILES_MAX} of different names, {JSON} first, are one"
        )
    for name in names:
        if not FILE_NAME.fullmatch(name):
            raise LinkError(f"a bundle's file is called {name[:80]!r}, not a plain name matching {FILE_NAME.pattern}")
    total = sum(size for _, size in files)
    if total > limits.BUNDLE_BYTES_MAX or files[0][1] > limits.BUNDLE_JSON_BYTES_MAX or not all(s for _, s in files):
        raise LinkError(
            f"a bundle of {total} bytes, {limits.BUNDLE_BYTES_MAX} at most may come; none of its files empty"
        )
    if len(message.signature) not in (0, SIGNATURE_BYTES):
        raise LinkError(f"a signature of {len(message.signature)} bytes; one of Ed25519 has {SIGNATURE_BYTES}")
    return Install(_id(message.bundle_id), files, message.signature)


def _id(raw: bytes) -> str:
    if not _ID.fullmatch(raw.hex()):
        raise LinkError(f"a request about an id of {len(raw)} bytes; a SHA-256 has 32")
    return raw.hex()
