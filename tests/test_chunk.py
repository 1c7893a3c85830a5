import tracemalloc
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from downlink import limits
from downlink.checksum import crc32c
from downlink.chunk import ChunkKey, ChunkList, GridCoding, Kind, Layout, page_count
from downlink.errors import Corrupt, Malformed, StreamError, TooLarge, Unsupported
from downlink.scene import Band, Grid, Scene

CODING = GridCoding(planes=5, planes_per_chunk=2, groups=3, mask="bands", step=1.5)


def grid(height: int, width: int, bands: int) -> Grid:
    return Grid(height, width, "uint16", (Band(),) * bands, 0)


SCENE = Scene("two grids", (grid(600, 300, 20), grid(40, 50, 3)))
CODINGS = (CODING, GridCoding(tile=32, planes=1, planes_per_chunk=1, groups=1, mask="shared", step=1.0))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    grids, codings = [], []
    for _ in range(draw(st.integers(1, 3))):
        bands = draw(st.integers(1, 40))
        grids.append(grid(draw(st.integers(1, 300)), draw(st.integers(1, 300)), bands))
        planes = draw(st.integers(1, bands))
        codings.append(
            GridCoding(
                tile=draw(st.sampled_from([32, 64, 256])),
                planes=planes,
                planes_per_chunk=draw(st.integers(1, planes)),
                groups=draw(st.integers(1, 4)),
                mask=draw(st.sampled_from(["none", "shared", "bands"])),
                step=1.0,
            )
        )
    return Layout(Scene("any", tuple(grids)), codings)


def by_loops(scene: Scene, codings: tuple[GridCoding, ...], layout: Layout) -> list[ChunkKey]:
    """The order as docs/format.md tells it, one key at a time."""
    keys = [ChunkKey(Kind.SIDE, number) for number in range(len(scene.grids))]
    for number, coding in enumerate(codings):
        per_tile = {"none": 0, "shared": 1, "bands": -(-len(scene.grids[number].bands) // 16)}[coding.mask]
        tiles = len(layout.tiles(number))
        keys += [ChunkKey(Kind.MASK, number, tile, 0, block) for tile in range(tiles) for block in range(per_tile)]
    for group in range(max(coding.groups for coding in codings)):
        for number, coding in enumerate(codings):
            if group < coding.groups:
                tiles, per_tile = len(layout.tiles(number)), -(-coding.planes // coding.planes_per_chunk)
                keys += [
                    ChunkKey(Kind.LATENT, number, tile, group, block)
                    for tile in range(tiles)
                    for block in range(per_tile)
                ]
    return [ChunkKey(Kind.PAGE, block=page) for page in range(-(-len(keys) // 16384))] + keys


def test_order_is_pages_sides_masks_then_latents_by_layer() -> None:
    layout = Layout(SCENE, CODINGS)
    assert [layout.key(index) for index in range(len(layout))] == by_loops(SCENE, CODINGS, layout)


@settings(deadline=None, max_examples=40)
@given(layouts())
def test_key_and_index_are_inverse(layout: Layout) -> None:
    step = max(1, len(layout) // 200)
    keys = [layout.key(index) for index in range(0, len(layout), step)]
    assert [layout.index(key) for key in keys] == list(range(0, len(layout), step))
    assert all(type(key.kind) is Kind for key in keys)


def test_every_chunk_belongs_to_one_tile_or_to_the_scene() -> None:
    layout = Layout(SCENE, CODINGS)
    seen = [*range(layout.pages), layout.side_of(0), layout.side_of(1)]
    for number in range(2):
        for tile in range(len(layout.tiles(number))):
            seen += [*layout.masks_of(number, tile), *layout.latents_of(number, tile)]
    assert sorted(seen) == list(range(len(layout)))


def test_latents_of_a_tile_come_by_group_then_block() -> None:
    layout = Layout(SCENE, CODINGS)
    keys = [layout.key(index) for index in layout.latents_of(0, 4)]
    assert keys == [ChunkKey(Kind.LATENT, 0, 4, group, block) for group in range(3) for block in range(3)]
    assert [layout.groups(0), layout.groups(1)] == [3, 1]
    assert layout.masks_of(0, 4) == range(
        layout.index(ChunkKey(Kind.MASK, 0, 4)), layout.index(ChunkKey(Kind.MASK, 0, 5))
    )


def test_without_a_mask_there_are_no_mask_chunks() -> None:
    layout = Layout(Scene("s", (grid(40, 50, 3),)), [msgspec.structs.replace(CODINGS[1], mask="none")])
    assert layout.masks_of(0, 0) == range(0)


def test_keys_and_indices_that_do_not_exist_are_refused() -> None:
    layout = Layout(SCENE, CODINGS)
    for index in (-1, len(layout)):
        with pytest.raises(IndexError, match="chunks"):
            layout.key(index)
    for key in (
        ChunkKey(Kind.PAGE, block=1),
        ChunkKey(Kind.PAGE, grid=1),
        ChunkKey(Kind.SIDE, 2),
        ChunkKey(Kind.SIDE, -1),
        ChunkKey(Kind.MASK, 0, 0, 1),
        ChunkKey(Kind.MASK, 1, 0, 0, 1),
        ChunkKey(Kind.LATENT, 1, 0, 1),
        ChunkKey(Kind.LATENT, 0, 6),
        ChunkKey(Kind.LATENT, 0, -1),
        ChunkKey(Kind.LATENT, 0, 0, 0, 3),
    ):
        with pytest.raises(IndexError, match="no chunk"):
            layout.index(key)
    with pytest.raises(IndexError, match="6 tiles"):
        layout.latents_of(0, 6)


def test_a_layout_of_a_million_chunks_costs_nothing() -> None:
    scene = Scene("large", (grid(25_000, 25_000, 4),))
    coding = GridCoding(tile=64, planes=4, planes_per_chunk=4, groups=5, mask="shared", step=1.0)
    tracemalloc.start()
    layout = Layout(scene, [coding])
    assert layout.index(layout.key(len(layout) - 1)) == len(layout) - 1 == 917_342
    assert tracemalloc.get_traced_memory()[1] < 50_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"method": "joint"}, Unsupported, "'joint' is none of planes"),
        ({"mask": "runs"}, Unsupported, "'runs'"),
        ({"tile": 0}, Malformed, "tiles of 0 px"),
        ({"tile": 352}, Malformed, "up to 320"),
        ({"tile": 100}, Malformed, "multiple of 32"),
        ({"planes": 0}, Malformed, "0 planes for 20 bands"),
        ({"planes": 21}, Malformed, "21 planes for 20 bands"),
        ({"planes_per_chunk": 0}, Malformed, "0 planes per chunk"),
        ({"planes_per_chunk": 6}, Malformed, "6 planes per chunk"),
        ({"groups": 0}, Malformed, "0 groups"),
        ({"groups": 65}, Malformed, "65 groups"),
        ({"step": 0.0}, Malformed, "step 0.0"),
        ({"step": float("nan")}, Malformed, "step nan"),
        ({"step": float("inf")}, Malformed, "step inf"),
    ],
)
def test_codings_outside_the_format_are_refused(changes: dict[str, Any], error: type[StreamError], match: str) -> None:
    with pytest.raises(error, match=match):
        Layout(SCENE, (msgspec.structs.replace(CODING, **changes), CODINGS[1]))


def test_a_mask_needs_a_nodata_value_and_a_grid_one_coding() -> None:
    with pytest.raises(Malformed, match="no nodata value"):
        Layout(Scene("s", (msgspec.structs.replace(SCENE.grids[0], nodata=None),)), [CODING])
    with pytest.raises(Malformed, match="1 codings for 2 grids"):
        Layout(SCENE, [CODING])


lengths_of_chunks = st.lists(st.sampled_from([0, 1, 127, 128, 129, 16383, 16384, limits.CHUNK_BYTES_MAX]), max_size=50)


def listing(lengths: list[int]) -> ChunkList:
    sizes = np.array(lengths, np.uint32)
    crcs = np.random.default_rng(0).integers(0, 2**32, len(sizes), np.uint32)
    return ChunkList(sizes, np.where(sizes > 0, crcs, 0).astype(np.uint32))


def same(one: ChunkList, other: ChunkList) -> bool:
    return np.array_equal(one.lengths, other.lengths) and np.array_equal(one.crcs, other.crcs)


@settings(deadline=None, max_examples=50)
@given(lengths_of_chunks)
def test_pages_state_the_list(lengths: list[int]) -> None:
    listed = listing(lengths)
    assert same(ChunkList.from_pages(listed.pages(), len(lengths)), listed)


def test_pages_hold_16384_chunks_and_fit_a_chunk() -> None:
    listed = listing([limits.CHUNK_BYTES_MAX] * (2 * limits.PAGE_CHUNKS + 1))
    pages = listed.pages()
    assert [len(page) for page in pages] == [7 * 16384, 7 * 16384, 7]
    assert max(map(len, pages)) <= limits.CHUNK_BYTES_MAX
    assert same(ChunkList.from_pages(pages, len(listed.lengths)), listed)
    assert listed.first == page_count(len(listed.lengths)) == 3


def test_a_page_is_varints_then_checksums_of_the_chunks_that_are_not_empty() -> None:
    chunks = [b"", b"123456789", bytes(300)]
    checksums = crc32c(chunks[1]).to_bytes(4, "little") + crc32c(chunks[2]).to_bytes(4, "little")
    assert ChunkList.of(chunks).pages() == [bytes([0, 9, 0xAC, 0x02]) + checksums]


def test_a_list_checks_chunks_by_their_index_in_the_stream() -> None:
    listed = ChunkList.of([b"", b"abc"])
    listed.check(1, b"")
    listed.check(2, b"abc")
    assert [listed.length(1), listed.length(2), listed.payload_bytes] == [0, 3, 3]
    with pytest.raises(Corrupt, match="chunk 2: 2 bytes, 3 stated"):
        listed.check(2, b"ab")
    with pytest.raises(Corrupt, match=r"chunk 2: crc32c 0x.{8}, 0x364b3fb7 stated"):
        listed.check(2, b"abd")
    for index in (0, 3):
        with pytest.raises(IndexError, match="not one of 1 to 2"):
            listed.check(index, b"")


@pytest.mark.parametrize(
    ("pages", "listed", "match"),
    [
        ([], 1, "0 pages for 1 chunks"),
        ([b"\x00", b"\x00"], 1, "2 pages for 1 chunks"),
        ([b""], 1, "holds 0 lengths, 1"),
        ([b"\x80\x80"], 1, "holds 0 lengths"),
        ([b"\x00"], 2, "holds 1 lengths, 2"),
        ([b"\x80\x00"], 1, "as short as"),
        ([b"\x80\x80\x80\x01" + bytes(4)], 1, "takes 4 bytes"),
        ([b"\x81\x80\x10" + bytes(4)], 1, "262145 is above"),
        ([b"\x01" + bytes(3)], 1, "3 bytes of checksums for 1"),
        ([b"\x01" + bytes(5)], 1, "5 bytes of checksums for 1"),
        ([b"\x00" + bytes(4)], 1, "4 bytes of checksums for 0"),
    ],
)
def test_pages_that_do_not_list_the_chunks_are_refused(pages: list[bytes], listed: int, match: str) -> None:
    with pytest.raises(StreamError, match=match):
        ChunkList.from_pages(pages, listed)


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(1, 12))
def test_any_bytes_give_a_list_or_a_stream_error(page: bytes, listed: int) -> None:
    with suppress(StreamError):
        assert ChunkList.from_pages([page], listed).pages() == [page]  # one list, one page: nothing else is accepted


def test_a_list_of_the_wrong_shape_is_the_callers_fault() -> None:
    sizes: NDArray[np.uint32] = np.ones(3, np.uint32)
    with pytest.raises(ValueError, match="3 lengths and 2 checksums"):
        ChunkList(sizes, sizes[:2])
    with pytest.raises(TooLarge, match="fewer planes per chunk"):
        ChunkList(sizes * np.uint32(limits.CHUNK_BYTES_MAX + 1), sizes)
