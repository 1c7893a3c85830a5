"""The self-test: this machine's prior must answer as the bundle states, or nothing is coded with it."""

import msgspec
import numpy as np
import pytest

from downlink import selftest
from downlink.bundle import find
from downlink.errors import BundleError
from encoder_node.encoder import PlaneEncoder


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(find("universal"))


def test_the_released_bundle_answers_as_it_states(encoder: PlaneEncoder):
    stated = msgspec.json.decode(encoder.bundle.file("selftest.json"), type=selftest.SelfTest)
    found = selftest.answer(encoder.spec, encoder.prior, stated.seed, stated.planes, stated.size)
    assert found == stated.sha256


def test_one_index_off_by_one_is_refused(encoder: PlaneEncoder):
    def off(*contexts):
        index, mean = encoder.prior(*contexts)
        index = index.copy()
        index.reshape(-1)[17] ^= 1
        return index, mean

    with pytest.raises(BundleError, match="on this machine"):
        selftest.check(encoder.spec, off, encoder.bundle.file("selftest.json"), "universal")


@pytest.mark.parametrize("packed", [b"", b"{}", b'{"seed":1,"planes":100000,"size":16,"sha256":""}'])
def test_a_self_test_that_cannot_be_run_is_refused(encoder: PlaneEncoder, packed: bytes):
    with pytest.raises(BundleError):
        selftest.check(encoder.spec, encoder.prior, packed, "universal")


def test_the_drawn_integers_never_change():
    assert (
        selftest.draw(1, 3) == np.array([0x910A2DEC89025CC1, 0xBEEB8DA1658EEC67, 0xF893A2EEFB32555E], np.uint64)
    ).all()
