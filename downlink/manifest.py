"""The manifest: all that must be known before the first chunk is accepted. Its hash is the scene's id.

Packed, it is one version byte and a zstd frame (dictionary: `downlink.words`) of positional msgpack, some 150 bytes for
a small patch. The id is the SHA-256 of those packed bytes, so the same bytes are the same scene, whoever sends them and
however often. Keep the bytes: packing the same facts again may give other bytes (another zstd), and then another id.

`Manifest.unpack` believes nothing: it bounds what zstd may produce, takes only the fields it knows, checks every value
against `downlink.limits`, and refuses a manifest whose chunk count is not the one that its geometry gives.
It raises nothing but `StreamError`s.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
import zstandard
from msgspec import Meta, Struct

from downlink import limits
from downlink import scene as scenes
from downlink.checksum import crc32c
from downlink.chunk import ChunkList, GridCoding, Layout, check_chunk
from downlink.cover import Cover
from downlink.errors import Malformed, Unsupported
from downlink.lattice import Lattice, Resolution, coded_scene, lattices
from downlink.scene import Scene
from downlink.words import WORDS

__all__ = ["BUNDLE_NAME", "NO_BUNDLE", "NO_BUNDLE_NAME", "VERSION", "GridCoding", "Manifest", "scene_id"]

VERSION: Final = 2
NO_BUNDLE: Final = bytes(32)
"""The id in place of a bundle's when all grids are exact and none is needed."""
NO_BUNDLE_NAME: Final = "none"
BUNDLE_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{limits.BUNDLE_NAME_CHARS_MAX - 1}}}")

_DICTIONARY: Final = zstandard.ZstdCompressionDict(WORDS, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
_LEVEL: Final = 19  # once per scene, on some hundred bytes: the best level costs a millisecond


class Manifest(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, kw_only=True):
    """What a stream is. Positional on the wire: never reorder the fields."""

    scene: Scene
    bundle: bytes  # id of the model bundle: SHA-256 of its bundle.json
    bundle_name: str  # for messages; the id decides
    codings: Annotated[tuple[GridCoding, ...], Meta(max_length=limits.LATTICES_MAX)]  # one per lattice
    settings: Annotated[dict[str, str | float], Meta(max_length=limits.SETTINGS_MAX)]  # how it was asked for
    chunk_count: int  # with the pages
    payload_bytes: int  # of all chunks, with the pages
    payload_sha256: bytes  # over all chunks in index order, pages first
    pages: Annotated[tuple[tuple[int, int], ...], Meta(max_length=limits.CHUNKS_MAX // limits.PAGE_CHUNKS)]
    """(length, crc32c) of each page of the chunk list."""
    resolutions: Annotated[tuple[Resolution, ...], Meta(max_length=limits.GRIDS_MAX)] = ()
    """Which bands repeat pixels, which grids lie on each other: one per grid, or none where nothing of it is so."""
    reference: bytes = b""
    """Id of the scene that this one is coded against (`downlink.reference`); empty: alone."""
    cover: Cover | None = None
    """What the encoder has seen in each tile, if it was asked to say."""

    @classmethod
    def of(
        cls,
        *,
        scene: Scene,
        bundle: bytes,
        bundle_name: str,
        codings: Sequence[GridCoding],
        settings: dict[str, str | float],
        listed: ChunkList,
        chunks: Iterable[bytes],
        resolutions: Sequence[Resolution] = (),
        reference: bytes = b"",
        cover: Cover | None = None,
    ) -> Manifest:
        """The manifest of a finished stream: `chunks` are all but the pages, in index order, read once and hashed."""
        pages = listed.pages()
        digest = hashlib.sha256()
        for page in pages:
            digest.update(page)
        count = len(pages)
        for chunk in chunks:
            listed.check(count, chunk)
            digest.update(chunk)
            count += 1
        manifest = cls(
            scene=scene,
            bundle=bundle,
            bundle_name=bundle_name,
            codings=tuple(codings),
            settings=settings,
            chunk_count=count,
            payload_bytes=sum(map(len, pages)) + listed.payload_bytes,
            payload_sha256=digest.digest(),
            pages=tuple((len(page), crc32c(page)) for page in pages),
            resolutions=tuple(resolutions),
            reference=reference,
            cover=cover,
        )
        manifest.validate()
        return manifest

    @property
    def exact(self) -> bool:
        """Whether all grids are exact, so that decoding needs no bundle."""
        return all(coding.method == "exact" for coding in self.codings)

    def layout(self) -> Layout:
        """The numbering of this stream's chunks."""
        return Layout(coded_scene(self.scene, self.resolutions), self.codings)

    def lattices(self) -> tuple[Lattice, ...]:
        """The lattices that the codings are of."""
        return lattices(self.scene, self.resolutions)

    def chunk_list(self, pages: Sequence[bytes]) -> ChunkList:
        """The chunk list that `pages` (chunks 0 to len(self.pages) - 1) state, checked against this manifest."""
        if len(pages) != len(self.pages):
            raise Malformed(f"{len(pages)} pages given, the manifest states {len(self.pages)}")
        for number, (page, (length, crc)) in enumerate(zip(pages, self.pages, strict=True)):
            check_chunk(number, page, length, crc)
        listed = ChunkList.from_pages(pages, self.chunk_count - len(self.pages))
        total = sum(map(len, pages)) + listed.payload_bytes
        if total != self.payload_bytes:
            raise Malformed(f"the chunks listed have {total} bytes, the manifest states {self.payload_bytes}")
        return listed

    def pack(self) -> bytes:
        """The manifest as bytes. Raises what `validate` raises."""
        self.validate()
        fields = msgspec.to_builtins(self, builtin_types=(bytes,))
        while not fields[-1]:  # resolutions, reference, cover: what most scenes do not have is not written
            fields.pop()
        raw = msgspec.msgpack.encode(_thin(fields))
        limits.at_most(len(raw), limits.MANIFEST_RAW_BYTES_MAX, "manifest: bytes before zstd", "drop tags of the scene")
        packed = bytes([VERSION]) + zstandard.ZstdCompressor(level=_LEVEL, dict_data=_DICTIONARY).compress(raw)
        limits.at_most(len(packed), limits.MANIFEST_BYTES_MAX, "manifest: bytes", "drop tags of the scene")
        return packed

    @classmethod
    def unpack(cls, packed: bytes) -> Manifest:
        """The manifest that `packed` is; raises a `StreamError` for anything that `pack` would not make."""
        limits.at_most(len(packed), limits.MANIFEST_BYTES_MAX, "manifest: bytes", "the writer must drop tags")
        if not packed:
            raise Malformed("manifest: 0 bytes; at least its version byte must be there")
        if packed[0] != VERSION:
            raise Unsupported(f"manifest: version {packed[0]}, this program knows {VERSION}; update this program")
        raw = limits.expand(packed[1:], limits.MANIFEST_RAW_BYTES_MAX, "manifest", WORDS)
        try:
            manifest = msgspec.msgpack.decode(raw, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: strings that are not UTF-8
            raise Malformed(f"manifest: {error}; the writer must follow docs/format.md") from error
        manifest.validate()
        return manifest

    def validate(self) -> None:
        """Raise a `StreamError` unless every value is within its bounds and agrees with the others."""
        scenes.validate(self.scene)
        for name, digest in (("bundle", self.bundle), ("payload_sha256", self.payload_sha256)):
            if len(digest) != 32:
                raise Malformed(f"manifest: {name} has {len(digest)} bytes; a SHA-256 has 32")
        if not BUNDLE_NAME.fullmatch(self.bundle_name):
            name = self.bundle_name[: limits.BUNDLE_NAME_CHARS_MAX]
            raise Malformed(f"manifest: bundle name {name!r} does not match {BUNDLE_NAME.pattern}")
        if len(self.reference) not in (0, 32):
            raise Malformed(f"manifest: reference has {len(self.reference)} bytes; a scene's id has 32")
        if self.reference and any(coding.method == "exact" for coding in self.codings):
            raise Malformed("manifest: states a reference beside a grid of method 'exact', which has none")
        self._validate_settings()
        layout = self.layout()
        if self.bundle == NO_BUNDLE and not self.exact:
            raise Malformed("manifest: names no bundle, but a grid is coded by method 'planes', which needs one")
        if self.resolutions and any(coding.method == "exact" for coding in self.codings):
            raise Malformed(
                "manifest: states resolutions beside a grid of method 'exact', which is coded as it is stored"
            )
        if self.cover is not None:
            if not 0 <= self.cover.lattice < len(self.codings):
                raise Malformed(f"manifest: the cover is of lattice {self.cover.lattice}, of {len(self.codings)}")
            self.cover.validate(len(layout.tiles(self.cover.lattice)))
        if self.chunk_count != len(layout):
            raise Malformed(f"manifest: states {self.chunk_count} chunks, its geometry gives {len(layout)}")
        if len(self.pages) != layout.pages:
            raise Malformed(f"manifest: states {len(self.pages)} pages, {layout.pages} list {len(layout)} chunks")
        for number, (length, crc) in enumerate(self.pages):
            if not 0 < length <= limits.CHUNK_BYTES_MAX or not 0 <= crc < 2**32:
                raise Malformed(f"manifest: page {number} of {length} bytes, crc32c {crc:#x}, cannot be")
        least, most = sum(length for length, _ in self.pages), len(layout) * limits.CHUNK_BYTES_MAX
        if not least <= self.payload_bytes <= most:
            raise Malformed(f"manifest: states {self.payload_bytes} payload bytes, {least} to {most} are possible")

    def _validate_settings(self) -> None:
        limits.at_most(len(self.settings), limits.SETTINGS_MAX, "manifest: settings", "drop some")
        for key, value in self.settings.items():
            scenes.check_text(key, "key of a setting")
            if isinstance(value, str):
                scenes.check_text(value, f"setting {key!r}")
            elif not math.isfinite(value):
                raise Malformed(f"setting {key!r}: {value} is not a finite number; leave it out")


def scene_id(packed: bytes) -> str:
    """The id of the scene that has this packed manifest: 64 hex digits."""
    return hashlib.sha256(packed).hexdigest()


def _thin(value: object) -> object:
    """Whole floats as integers: 9 bytes become 1 to 5, and msgspec reads them back as the same floats."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 and str(value) != "-0.0":
        return int(value)
    if isinstance(value, dict):
        return {key: _thin(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_thin(item) for item in value]
    return value
