"""The laboratory: every member of the family learns what it is for, in seconds and on made-up places, and the command
writes its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'latent-downlink[training]'")

from click.testing import CliRunner  # noqa: E402

from tests import scenes  # noqa: E402
from training.config import ConfigError  # noqa: E402
from training.lab import entropy  # noqa: E402
from training.lab.architectures import build  # noqa: E402
from training.lab.config import Network, Row, Trial, read_row  # noqa: E402
from training.lab.figures import reconstruction  # noqa: E402
from training.lab.places import Place, Places, places_of  # noqa: E402
from training.lab.rows import Result, configs, find_rows, held_claims, run_trial  # noqa: E402
from training.lab.trial import task_of  # noqa: E402


@pytest.fixture(scope="module")
def places() -> Places:
    """Three made-up places to train on, one to validate, one to test."""
    made = [Place(f"made{seed}", scenes.pixels(seed, 12, 96, 96, nodata=None).astype(np.float32)) for seed in range(5)]
    return places_of(made[:3], made[3:4], made[4:])


def row_of(name: str) -> Row:
    return read_row(find_rows([name])[0])


def shortened(trial: Trial, steps: int, **more: Any) -> Trial:
    schedule = msgspec.structs.replace(
        trial.schedule,
        steps=max(1, min(steps, trial.schedule.steps)),
        minutes=0.0,
        validate_every=steps,
        warmup_steps=2,
    )
    return msgspec.structs.replace(trial, schedule=schedule, **more)


class Lab:
    """Short runs of variants, kept for the module."""

    def __init__(self, places: Places, folder: Path) -> None:
        self.places, self.folder = places, folder
        self.kept: dict[tuple[str, str, int], tuple[dict[str, float], Any]] = {}

    def run(self, row: str, variant: str, steps: int = 60, **more: Any) -> tuple[dict[str, float], Any]:
        key = (row, variant, steps)
        if key not in self.kept:
            trial = shortened(row_of(row).variants[variant], steps, **more)
            self.kept[key] = run_trial(trial, self.places, self.folder / f"{row}-{variant}-{steps}")
        return self.kept[key]


@pytest.fixture(scope="module")
def lab(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    return Lab(places, tmp_path_factory.mktemp("lab"))


# ---- the frame


@pytest.mark.parametrize("path", configs(), ids=lambda path: path.stem)
def test_every_row_is_valid_and_named_as_its_file(path: Path) -> None:
    row = read_row(path)
    assert path.stem.partition("-")[2] == row.base.name
    assert row.base.title
    assert row.base.text


def test_a_typo_in_a_variant_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('name = "bad"\n[[variants]]\nname = "a"\nnetwork = { widhts = [3] }\n')
    with pytest.raises(ConfigError, match="widhts"):
        read_row(path)


def test_variants_override_some_settings_and_keep_the_others() -> None:
    row = row_of("dense")
    assert row.variants["BCE"].loss == "bce"
    assert row.variants["BCE"].network.widths == row.base.network.widths
    assert row.variants["MSE"].loss == "mse"


def test_a_claim_counts_the_seeds_in_which_it_holds() -> None:
    row = row_of("linear")
    figures = {("closed form", 1): 5.0, ("closed form", 2): 5.0, ("by gradient", 1): 4.0, ("by gradient", 2): 6.0}
    names = [*row.variants]
    results = [
        Result("linear", name, seed, {"of_pca_percent": figures.get((name, seed), 4.5)}, Path())
        for name in names
        for seed in (1, 2)
    ]
    assert [held for _, held, of in held_claims(row, results)] == [1]


def test_a_code_is_counted_in_the_bytes_that_would_be_sent() -> None:
    random = np.random.default_rng(1)
    symbols = np.rint(random.normal(scale=(0.3, 3.0), size=(4000, 2))).astype(np.int32)
    size = len(entropy.payload(symbols, entropy.tables_of(symbols)))
    ideal = 0.0
    for channel in symbols.T:
        share = np.unique(channel, return_counts=True)[1] / len(channel)
        ideal -= float((share * np.log2(share)).sum()) * len(channel)
    assert ideal / 8 <= size < 1.03 * ideal / 8 + 20


# ---- rows 1 to 4


def test_gradient_descent_finds_the_principal_subspace(lab: Lab) -> None:
    two = Network(architecture="dense", activation="none", code=2)
    exact, _ = lab.run("linear", "closed form", network=two)
    learned, _ = lab.run("linear", "by gradient", 300, network=two)
    assert exact["of_pca_percent"] == pytest.approx(100, abs=1e-3)
    assert exact["angle_worst_deg"] < 0.1
    assert 98 < learned["of_pca_percent"] <= 100.001
    assert learned["angle_deg"] < 30


@pytest.mark.parametrize("variant", ["MSE", "BCE"])
def test_the_dense_autoencoder_learns(lab: Lab, variant: str) -> None:
    before, _ = lab.run("dense", variant, 1)
    after, _ = lab.run("dense", variant, 150)
    assert after["psnr_db"] > before["psnr_db"] + 3


def test_tied_stages_share_their_weight_and_learn(lab: Lab) -> None:
    before, _ = lab.run("stacked", "tied", 1)
    after, task = lab.run("stacked", "tied", 150)
    assert after["psnr_db"] > before["psnr_db"] + 3
    free = build(Network(widths=(96, 32)), (12, 4, 4))
    assert sum(p.numel() for p in task.module.parameters()) < 0.52 * sum(p.numel() for p in free.parameters())


def test_greedy_training_trains_one_stage_at_a_time(places: Places) -> None:
    trial = shortened(row_of("stacked").variants["greedy only"], 10)
    task = task_of(trial, places)
    for done, stage in ((0.0, 0), (0.5, 1), (0.9, 2)):
        task.module.zero_grad()
        task.loss(task.draw(), done).backward()
        moved = [any(p.grad is not None for p in one.parameters()) for one in task.module.stages]
        assert moved == [number == stage for number in range(3)]


def test_greedy_stages_give_a_working_autoencoder(lab: Lab) -> None:
    before, _ = lab.run("stacked", "greedy only", 1)
    after, _ = lab.run("stacked", "greedy only", 240)
    assert after["psnr_db"] > before["psnr_db"] + 0.5


def test_the_convolutional_autoencoder_learns(lab: Lab) -> None:
    before, _ = lab.run("convolutional", "8 channels", 1, figures=("reconstruction",))
    after, _ = lab.run("convolutional", "8 channels", 60, figures=("reconstruction",))
    assert after["psnr_db"] > before["psnr_db"] + 3


# ---- the command


def test_the_command_trains_measures_and_writes_its_page(places: Places, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    from training.lab.cli import lab

    (tmp_path / "in").mkdir()
    for number in range(12):
        pixels = scenes.pixels(number, 12, 48, 48)
        profile = {"driver": "GTiff", "count": 12, "height": 48, "width": 48, "dtype": "uint16"}
        with rasterio.open(tmp_path / "in" / f"{number:02d}.tif", "w", **profile) as dataset:
            dataset.write(pixels)
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'name = "mine"\ntitle = "Mine"\ntext = "Does it?"\n'
        'claims = [{ says = "it does", figure = "psnr_db", more = "a", less = "b" }]\n'
        '[patches]\nmost = 200\n[[variants]]\nname = "a"\n[[variants]]\nname = "b"\nschedule = { steps = 1 }\n'
    )
    arguments = [str(mine), "--budget", "4s", "--data", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    page = tmp_path / "page" / "lab.md"
    ran = CliRunner().invoke(lab, [*arguments, "--page", str(page)])
    assert ran.exit_code == 0, ran.output
    text = page.read_text()
    assert "| a |" in text
    assert "±" in text
    assert "it does: in all 2 seeds" in text
    again = CliRunner().invoke(lab, [*arguments, "--page", str(page)])
    assert again.exit_code == 0
    assert page.read_text().partition("## ")[2].count("±") == text.partition("## ")[2].count("±")
    assert [line for line in ran.output.splitlines() if "seed" in line] == [
        line for line in again.output.splitlines() if "seed" in line
    ]
    refused = CliRunner().invoke(lab, ["nothing"])
    assert refused.exit_code == 1
    assert "no row 'nothing'" in refused.output


def test_reconstruction_is_measured_on_places_that_were_not_trained_on(places: Places) -> None:
    trial = shortened(row_of("linear").variants["closed form"], 1)
    task = task_of(trial, places)
    found = reconstruction(task, task.module)
    test = places.test[0].pixels[:, :96, :96]
    assert 10 < found["psnr_db"] < 10 * np.log10(1e8)
    assert not any(np.array_equal(test, place.pixels) for place in places.train)
