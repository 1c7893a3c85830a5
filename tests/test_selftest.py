"""The self-test: this machine's prior must answer as the bundle states, or nothing is coded with it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from downlink import selftest
from downlink.bundle import find
from downlink.errors import BundleError
from downlink.prior import GRAPHS, Prior
from encoder_node.encoder import PlaneEncoder
from tests import priors


@pytest.fixture(scope="module")
def encoder() -> PlaneEncoder:
    return PlaneEncoder(find("universal"))


def answer(encoder: PlaneEncoder, prior: Prior) -> str:
    stated = msgspec.json.decode(encoder.bundle.file("selftest.json"), type=selftest.SelfTest)
    return selftest.answer(encoder.spec, encoder.tables, prior, stated.seed, stated.planes, stated.size)


def test_the_released_bundle_answers_as_it_states(encoder: PlaneEncoder):
    stated = msgspec.json.decode(encoder.bundle.file("selftest.json"), type=selftest.SelfTest)
    assert answer(encoder, encoder.prior) == stated.sha256
    assert stated.planes >= 2  # energy and turned slopes are in it


@pytest.mark.parametrize("name", GRAPHS)
def test_one_output_off_by_one_is_refused(encoder: PlaneEncoder, name: str):
    def off(graph: str, inputs: dict[str, Any]) -> list[Any]:
        outputs = encoder._run(graph, inputs)
        if graph == name:
            outputs = [outputs[0].copy()]
            outputs[0].reshape(-1)[17] += 1
        return outputs

    packed = encoder.bundle.file("selftest.json")
    with pytest.raises(BundleError, match="on this machine"):
        selftest.check(encoder.spec, encoder.tables, Prior(off), packed, "universal")


def test_features_off_by_one_are_refused(encoder: PlaneEncoder):
    def off(graph: str, inputs: dict[str, Any]) -> list[Any]:
        outputs = encoder._run(graph, inputs)
        return [output + 1 for output in outputs] if graph not in GRAPHS else outputs

    packed = encoder.bundle.file("selftest.json")
    with pytest.raises(BundleError, match="on this machine"):
        selftest.check(encoder.spec, encoder.tables, Prior(off), packed, "universal")


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"{}",
        b'{"seed":1,"planes":100000,"size":16,"sha256":""}',
        b'{"seed":1,"planes":2,"size":15,"sha256":""}',
        b'{"seed":1,"planes":2,"size":0,"sha256":""}',
    ],
)
def test_a_self_test_that_cannot_be_run_is_refused(encoder: PlaneEncoder, packed: bytes):
    with pytest.raises(BundleError):
        selftest.check(encoder.spec, encoder.tables, encoder.prior, packed, "universal")


def test_the_drawn_integers_never_change():
    assert (
        selftest.draw(1, 3) == np.array([0x910A2DEC89025CC1, 0xBEEB8DA1658EEC67, 0xF893A2EEFB32555E], np.uint64)
    ).all()


def test_the_answer_never_changes():
    """What is drawn, how it is shaped, and every context: by a prior that needs no bundle."""
    found = selftest.answer(priors.SPEC, priors.made_tables(), priors.PRIOR, 5, 3, 8)
    assert found == "594ef1e274b4769e56dd4119bf626af4efc17ed93ca4276555e69c62ddd01cf4"
