"""Layers cut a scene's chunks into a coarse whole and what refines it."""

from __future__ import annotations

import numpy as np

from downlink.chunk import GridCoding, Kind
from downlink.layer import layer_ends, layer_of, turns
from downlink.manifest import Manifest
from downlink.ranges import Range
from downlink.region import AHEAD_RANGES_MAX, tile_chunks
from tests.scenes import fake_stream, grids_source
from tests.streams import stream


def check(manifest: Manifest) -> None:
    layout, ends = manifest.layout(), layer_ends(manifest)
    assert len(ends) == max(coding.groups for coding in manifest.codings)
    assert ends[-1] == manifest.chunk_count
    for index in range(manifest.chunk_count):
        key = layout.key(index)
        assert layer_of(ends, index) == (key.group if key.kind is Kind.LATENT else 0), index


def test_each_layer_is_a_group_of_latents_and_the_first_has_all_the_rest() -> None:
    check(Manifest.unpack(stream().packed))


def test_grids_may_have_different_numbers_of_groups() -> None:
    check(fake_stream()[0])


def test_what_the_ground_has_asked_for_goes_before_tiles_that_stand_out() -> None:
    manifest = Manifest.unpack(stream().packed)
    layout, [coarse, _] = manifest.layout(), layer_ends(manifest)
    asked, ahead = Range(manifest.chunk_count - 1, 1), tile_chunks(manifest, [7, 4])
    turn, (second, own) = turns(manifest, (asked,), ahead)
    order = sorted(range(manifest.chunk_count), key=lambda index: (turn[index], index))
    assert order[: layout.pages + 1] == [*range(layout.pages), asked.first]
    loud = [layout.latents_of(0, tile) for tile in (7, 4)]
    theirs = {*loud[0], *loud[1]}
    assert [index for index in order if index in theirs] == [loud[0][0], loud[1][0], loud[0][1], loud[1][1]]
    assert {index for index in order if second <= turn[index] < own} == {loud[0][1], loud[1][1]}
    assert max(order.index(index) for index in range(coarse)) < order.index(loud[0][1])


def test_tiles_that_stand_out_take_those_of_other_lattices_along_and_are_not_too_many() -> None:
    scene = grids_source(np.zeros((2, 256, 256), np.uint16), np.zeros((1, 128, 128), np.uint16)).scene
    coding = GridCoding(tile=32, planes=1, planes_per_chunk=1, groups=2, mask="none", step=4.0)
    manifest = fake_stream(scene, [coding, coding])[0]
    layout, lattices = manifest.layout(), manifest.lattices()
    last = len(layout.tiles(0)) - 1
    keys = [layout.key(index) for item in tile_chunks(manifest, [last]) for index in range(item.first, item.end)]
    assert [key.group for key in keys] == sorted(key.group for key in keys)
    assert {(key.grid, key.tile) for key in keys if key.kind is Kind.LATENT} == {
        (number, len(layout.tiles(number)) - 1) for number in range(len(lattices))
    }
    large = Manifest.unpack(stream(side=1600).packed)
    assert len(tile_chunks(large, range(2500))) == AHEAD_RANGES_MAX  # of two layers each
