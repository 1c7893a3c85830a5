"""Every bound, each with its reason. Input above one is refused with `TooLarge` before anything is allocated for it.

All sizes that the program allocates follow from a manifest that has passed these bounds; no count inside a payload is
ever believed. `tests/test_limits.py` tries each one at the limit and one above.
"""

from __future__ import annotations

from typing import Final

import zstandard

from downlink.errors import Malformed, TooLarge

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# The manifest. The ground holds it in memory before it has decided to trust the sender.
MANIFEST_BYTES_MAX: Final = 64 * KIB  # packed: 512 named bands, 16 WKTs and 64 pages fit several times over
MANIFEST_RAW_BYTES_MAX: Final = 512 * KIB  # unpacked msgpack: what zstd may make of those 64 KiB
TEXT_BYTES_MAX: Final = 256  # one string for people (a name, a tag), in UTF-8
CRS_BYTES_MAX: Final = 8 * KIB  # WKT of a compound or bound CRS runs to some KiB
TAGS_MAX: Final = 256  # free tags of a scene
TAGS_BYTES_MAX: Final = 16 * KIB  # all keys and values of them together, in UTF-8
SETTINGS_MAX: Final = 32  # how the stream was asked for: a few numbers
BUNDLE_NAME_CHARS_MAX: Final = 64

# The scene. Together they bound what one accepted manifest can cost the ground.
SIDE_PX_MAX: Final = 40_000  # one Sentinel-2 strip of two granules, or a large drone mosaic
BANDS_MAX: Final = 512  # over all grids; the largest imaging spectrometers have some 430
GRIDS_MAX: Final = 16  # resolutions of one product; Sentinel-2 has 3
LATTICES_MAX: Final = 2 * GRIDS_MAX  # bands of a grid that repeat pixels in threes or sixes have one of their own
SCENE_RAW_BYTES_MAX: Final = 16 * GIB  # pixels of all grids in their own dtype
# width x bands of a grid: a strip of one tile row is the unit of memory (512 MiB at 16 bit)
ROW_SAMPLES_MAX: Final = 2**20

# The stream.
CHUNK_BYTES_MAX: Final = 256 * KIB  # the unit of loss and of acknowledgement: 2 s at 1 Mbit/s
SIDE_VALUES_MAX: Final = 100_000  # entries of all KLT rows of a lattice, so that a side chunk stays a chunk
CHUNKS_MAX: Final = 2**20  # per scene, with pages; 40 MB of ledger at worst
PAGE_CHUNKS: Final = 16_384  # chunks listed by one page; 7 bytes each at most = 112 KiB, so a page is a chunk as well
TILE_PX_MAX: Final = 320  # so that 16 bit-packed masks (200 KiB) always fit a chunk
TILE_PX_MULTIPLE: Final = 32  # the stride of the hyper-latents
GROUPS_MAX: Final = 64  # layers: one per latent channel at most
MAX_ERROR_MAX: Final = 65_535  # an error that a user allows: the whole range of 16 bits
REFERENCES_MAX: Final = 16  # streams that decoding one scene may take: itself, its reference, that one's, …
STEP_MIN: Final = 2.0**-20  # the quantiser's step, in units of the pixels: far below any noise ...
STEP_MAX: Final = 2.0**20  # ... and far above any pixel
ZSTD_RAW_BYTES_MAX: Final = MIB  # whatever one zstd frame may expand to (side information, masks, manifests)

# Model bundles.
BUNDLE_JSON_BYTES_MAX: Final = MIB
BUNDLE_BYTES_MAX: Final = 64 * MIB  # that comes over the link: ten times the largest we have; 2.3 h at 64 kbit/s
BUNDLE_FILES_MAX: Final = 64

# The link.
MESSAGE_BYTES_MAX: Final = MIB  # gRPC's own bound, which holds against gzip bombs as well: never raise it to -1
UNACKED_BYTES_MAX: Final = 16 * MIB  # the window: 26 Mbit/s at a round trip of 5 s
REQUEST_BYTES_MAX: Final = 64 * KIB  # of the ground: 4096 ranges fit
STREAMS_PER_NODE_MAX: Final = 2  # one that works and one that nobody has noticed is dead
NODES_MAX: Final = 64
HELLOS_PER_MINUTE_MAX: Final = 60  # per node: a link that is cut each second still gets through
CALLS_PER_CONNECTION_MAX: Final = 8
PROBES_MAX: Final = 16  # health and reflection, of all peers together; streams have places of their own
PROBE_S: Final = 10.0  # how long one of these may take
HANDSHAKE_S: Final = 20.0  # from the connection to the end of TLS's and HTTP/2's greetings; 4 round trips of 5 s
IDLE_STREAM_S: Final = 60.0  # until a stream says Hello
SILENT_STREAM_S: Final = 600.0  # between two frames, either way: one chunk at 3.5 kbit/s
KEEPALIVE_S: Final = 30.0  # the same on both ends, or the server cuts with too_many_pings


def at_most(value: int, bound: int, what: str, advice: str) -> None:
    """Raise `TooLarge` naming the value, the bound and the way out, if `value` is above `bound`."""
    if value > bound:
        raise TooLarge(f"{what}: {value} is above the limit of {bound}; {advice}")


def expand(frame: bytes, bound: int, what: str, words: bytes = b"") -> bytes:
    """Decompress the one zstd frame that `frame` is, to at most `bound` bytes (itself at most `ZSTD_RAW_BYTES_MAX`).

    The size in the frame's header is required and checked against our bound before anything is allocated:
    python-zstandard ignores its own `max_output_size` as soon as a header states a size, and 32 KiB then become a GiB.
    The frame is then read as a stream that stops one byte past the stated size, because the header may lie. Refuses cut
    frames, frames without a size, and anything after the frame. `words` is the dictionary that the frame was written
    with, if any.
    """
    at_most(bound, ZSTD_RAW_BYTES_MAX, f"{what}: the bound on what its zstd frame may hold", "split it")
    try:
        parameters = zstandard.get_frame_parameters(frame)
        size = parameters.content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            raise Malformed(f"{what}: its zstd frame does not state its size; write it with the size in the header")
        at_most(size, bound, f"{what}: bytes stated by its zstd frame", "the writer must keep to the format's bounds")
        if parameters.dict_id:
            raise Malformed(f"{what}: its zstd frame asks for dictionary {parameters.dict_id}, the format has none")
        window = max(KIB, 2 * bound)  # a frame may round its window up to the next power of two, never beyond
        shared = zstandard.ZstdCompressionDict(words, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if words else None
        decompressor = zstandard.ZstdDecompressor(max_window_size=window, dict_data=shared)
        raw = decompressor.stream_reader(frame).read(size + 1)
        if len(raw) != size:
            found = "more" if len(raw) > size else len(raw)
            raise Malformed(f"{what}: its zstd frame states {size} bytes and holds {found}")
        again = decompressor.decompressobj()  # only this tells where the frame ended; by now its size is known
        again.decompress(frame)
    except zstandard.ZstdError as error:
        raise Malformed(f"{what}: not a zstd frame ({error}); the writer must follow docs/format.md") from error
    if again.unused_data:
        raise Malformed(f"{what}: {len(again.unused_data)} bytes after its zstd frame; there must be none")
    return raw
