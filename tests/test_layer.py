"""Layers cut a scene's chunks into a coarse whole and what refines it."""

from __future__ import annotations

from downlink.chunk import Kind
from downlink.layer import layer_ends, layer_of
from downlink.manifest import Manifest
from tests.scenes import fake_stream
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
