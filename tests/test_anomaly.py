"""`submit --priority anomaly`: a scene with a tile unlike its others goes first, its manifest says where, and
that tile goes before its others."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from decoder_node.ledger import Ledger
from downlink.chunk import Layout
from downlink.errors import LinkError
from downlink.layer import layer_ends
from downlink.manifest import Manifest
from encoder_node.anomaly import ALERT_CHARS, TileScore, alert_of
from encoder_node.cli import main
from encoder_node.outbox import Outbox
from tests.test_link import Proxy, deliver, ground

SIDE = 3 * 256


def scene(seed: int, odd: bool) -> np.ndarray:
    """A calm scene of nine tiles; with `odd`, one of them is rough."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    pixels = 1500 + 300 * np.sin(x / 40 + seed) + 200 * np.cos(y / 50) + random.normal(scale=60, size=(SIDE, SIDE))
    if odd:
        pixels[256:512, 512:768] += random.normal(scale=600, size=(256, 256))
    return pixels.clip(1, 60000).astype(np.uint16)[None]


ODD = 5
"""The number of the rough tile."""


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The outbox and what `submit` has said of a calm scene and an odd one, and of the odd one as a stream file."""
    folder = tmp_path_factory.mktemp("submitted")
    paths = [folder / "calm.npy", folder / "odd.npy", folder / "odd.dl"]
    for path, odd in zip(paths, (False, True), strict=False):
        np.save(path, scene(1, odd))
    how = ["--quality", "46", "--effort", "fast"]
    assert CliRunner().invoke(main, ["encode", *map(str, paths[1:]), *how]).exit_code == 0
    arguments = ["submit", *map(str, paths), "--outbox", str(folder / "box"), *how, "--json", "--priority", "anomaly"]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output
    return folder / "box", [json.loads(line) for line in ran.stdout.splitlines()]


def test_the_scene_that_stands_out_goes_first_with_its_alert(submitted: tuple[Path, list[dict[str, Any]]]) -> None:
    box, (calm, odd, file) = submitted
    with Outbox(box, read_only=True) as opened:
        first, second, last = opened.entries()
        assert (first.scene_id, second.scene_id, last.name) == (odd["scene_id"], file["scene_id"], "calm")
        assert first.priority >= 4
        assert last.priority == 0
    assert odd["settings"]["alert"].startswith("1 of 9 tiles: ")
    assert odd["settings"]["alert"].endswith(" at 512,256")
    assert "alert" not in calm["settings"]
    assert second.priority == first.priority  # the manifest of a file stays as it is, its priority does not


def tile_chunks(layout: Layout, tile: int, lengths: np.ndarray) -> set[int]:
    return {index for index in layout.latents_of(0, tile) if lengths[index]}


def test_the_odd_tile_is_whole_before_the_others_get_their_second_layer(
    submitted: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Over a real link, which is cut when the first layer and the odd tile have gone, and by a node that is started
    anew after that."""
    with Outbox(submitted[0]) as made:
        outgoing = next(one for one in made.due(9) if one.scene_id == submitted[1][1]["scene_id"])
        pieces = made.load(outgoing.scene_id, np.flatnonzero(outgoing.lengths).tolist())
    lengths, manifest = outgoing.lengths.astype(np.int64), Manifest.unpack(outgoing.manifest)
    layout, ends = manifest.layout(), layer_ends(manifest)
    odd = tile_chunks(layout, ODD, lengths)
    others = {index for index in range(ends[0], len(lengths)) if lengths[index]} - odd
    ahead = int(lengths[: ends[0]].sum() + sum(lengths[index] for index in odd if index >= ends[0]))
    rest = int(sum(lengths[index] for index in others))
    assert rest > 10_000
    contents = {piece.index: piece.content for piece in pieces}
    chunks = [contents.get(index, b"") for index in range(len(lengths))]
    cut_at = len(outgoing.manifest) + ahead + rest // 4

    def meddle(piece: bytes, before: int) -> bytes | None:
        return piece if before < cut_at else None

    async def run() -> int:
        with Outbox(tmp_path / "box", create=True) as box:
            box.submit(outgoing.manifest, chunks, priority=outgoing.priority, ahead=outgoing.ahead)
            async with ground(tmp_path) as (address, _):
                proxy = Proxy(address, meddle)
                with pytest.raises(LinkError, match="gave up"):
                    await deliver(box, await proxy.start(), give_up_s=0.4, window_bytes=6000)
                proxy.close()
        with contextlib.closing(Ledger(tmp_path / "archive", read_only=True)) as ledger:
            there = {i for one in ledger.committed(outgoing.scene_id) for i in range(one.first, one.end)}
        assert odd <= there
        assert sum(lengths[index] for index in others & there) < rest / 2
        with Outbox(tmp_path / "box") as box:  # a new process
            assert box.due(1)[0].ahead == outgoing.ahead
            async with ground(tmp_path) as (address, _):
                proxy = Proxy(address, lambda piece, _: piece)
                await deliver(box, await proxy.start())
                proxy.close()
        left = int(sum(lengths[index] for index in range(len(lengths)) if index not in there))
        assert proxy.down < left + 4000  # nothing goes twice
        return left

    assert asyncio.run(run()) > rest / 2
    stream = (tmp_path / "archive" / "streams" / f"{outgoing.scene_id}.dl").read_bytes()
    assert stream.endswith(b"".join(chunks))


def test_an_alert_is_short_and_names_the_loudest() -> None:
    quiet = [TileScore(1.0, 0, 0, 0)] * 60
    assert alert_of(quiet) is None
    loud = [TileScore(30.0 - n, 256 * n, 10240, n) for n in range(20)]
    text = alert_of(loud + quiet)
    assert text is not None
    assert text.startswith("20 of 80 tiles: 30.0 at 0,10240; 29.0 at 256,10240")
    assert len(text) <= ALERT_CHARS


def test_other_words_than_anomaly_are_refused(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main, ["submit", "x.npy", "--outbox", str(tmp_path), "--priority", "soon"])
    assert ran.exit_code == 2
    assert "neither a number" in ran.output
