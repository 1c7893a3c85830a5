"""docs/format.md says what the code does: constants, orders and sizes that a second implementation would copy."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from downlink import dct
from downlink.bundle import find
from downlink.plane import PARTITIONS
from downlink.prior import FEATURES, GRAPHS, MEANS, PREDICTED
from downlink.spec import PlaneSpec
from downlink.words import WORDS
from encoder_node.encoder import PlaneEncoder

TEXT = (Path(__file__).parents[1] / "docs" / "format.md").read_text()


def section(heading: str) -> str:
    return re.split(r"^#+ ", TEXT.split(f"# {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def block(heading: str) -> str:
    return section(heading).split("```\n")[1]


def test_channels_are_numbered_as_stated():
    assert [(int(uv[0]), int(uv[1])) for uv in block("Transform").split()] == dct.scan()
    rows = re.findall(r"^\| (\d) \| (\d+)(?: to (\d+))? \|", section("Transform"), re.MULTILINE)
    assert [(int(first), int(last or first) + 1) for _, first, last in rows] == [
        (at.start, at.stop) for at in map(dct.subband, range(4))
    ]


def test_the_dictionary_is_the_one_stated():
    words = base64.b64decode(block("Dictionary of manifests"))
    assert words == WORDS
    assert f"{len(WORDS)} bytes, SHA-256 `{hashlib.sha256(WORDS).hexdigest()}`" in TEXT


def test_every_parameter_of_a_bundle_is_named():
    rows = [row for row in section("Latent chunk").splitlines() if row.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows))) == set(PlaneSpec.__struct_fields__)
    spec = PlaneEncoder(find("universal")).spec
    for name, value in re.findall(r"`(\w+)` \((\d+)\)", section("Latent chunk")):
        assert getattr(spec, name) == int(value), name


def test_partitions_are_those_stated():
    stated = "0: all four; 1: 0 to 2, and 3; 2: 0 and 1, 2, 3; 3: each its own"
    assert stated in " ".join(section("Side chunk").split())
    assert PARTITIONS == ((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 2), (0, 1, 2, 3))


@pytest.mark.parametrize("number", range(4))
def test_the_released_networks_have_the_inputs_and_outputs_stated(number: int):
    sessions = PlaneEncoder(find("universal"))._sessions
    coarse, fine = (output.shape[1] for output in sessions[FEATURES].get_outputs())
    own, first = (16, 3, 12, 48)[number], (0, 1, 4, 16)[number]
    rows = [row.split(" | ") for row in section("Prior").splitlines() if row.startswith("| ")]
    inputs = 0
    for channels, subbands, _ in (row for row in rows if len(row) == 3 and row[0] != "| channels"):
        if subbands == "all" or str(number) in subbands.split():
            inputs += {
                "| *c*": own, "| *s*": first, "| 1": 1, "| 2": 2, "| 4": 4, "| F₀ or F": fine if number else coarse
            }[channels]  # fmt: skip
    (given,), (told,) = sessions[GRAPHS[number]].get_inputs(), sessions[GRAPHS[number]].get_outputs()
    assert given.shape[1] == inputs
    assert told.shape[1] == own + MEANS[number] + PREDICTED[number]
