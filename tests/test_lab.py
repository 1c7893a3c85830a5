"""The laboratory: every member of the family learns what it is for, in seconds and on made-up places, and the command
writes its page."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'latent-downlink[training]'")

from click.testing import CliRunner  # noqa: E402

from downlink.bundle import Bundle  # noqa: E402
from downlink.dct import FLAT  # noqa: E402
from tests import scenes  # noqa: E402
from training.config import ConfigError  # noqa: E402
from training.lab import entropy, heads, penalties  # noqa: E402
from training.lab import page as pages  # noqa: E402
from training.lab.architectures import build  # noqa: E402
from training.lab.config import Network, Patches, Row, Trial, read_row  # noqa: E402
from training.lab.corruptions import corrupt  # noqa: E402
from training.lab.figures import reconstruction  # noqa: E402
from training.lab.penalties import contractive, normal  # noqa: E402
from training.lab.places import Place, Places, places_of  # noqa: E402
from training.lab.rows import Result, configs, find_rows, held_claims, run_trial  # noqa: E402
from training.lab.tasks import anomaly, restore, sequence, superresolve  # noqa: E402
from training.lab.tasks.few_labels import land_cover  # noqa: E402
from training.lab.trial import task_of  # noqa: E402
from training.loop import find_rate, fit  # noqa: E402
from training.survey_head import blocks, train_head  # noqa: E402


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
    learned, _ = lab.run("linear", "by gradient", 300, network=two, patches=Patches(batch=64))
    assert exact["of_pca_percent"] == pytest.approx(100, abs=1e-3)
    assert exact["angle_worst_deg"] < 0.1
    assert 97 < learned["of_pca_percent"] <= 100.001
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
    after, _ = lab.run("convolutional", "8 channels", 40, figures=("reconstruction",))
    assert after["psnr_db"] > before["psnr_db"] + 2


# ---- rows 5 to 9


def test_corruptions_lose_what_they_say() -> None:
    x = torch.rand(64, 12, 8, 8) + 0.5
    random = torch.Generator().manual_seed(1)
    for name, spared in (("pixels", (0,)), ("bands", (2, 3)), ("lines", (2,))):
        seen, lost = corrupt(x, {name: 0.25}, random)
        assert float(lost.float().mean()) == pytest.approx(0.25, abs=0.05)
        assert (seen[lost] == 0).all()
        assert torch.equal(seen[~lost], x[~lost])
        for axis in spared[:1] if name == "pixels" else spared:
            whole = lost.all(dim=axis) | ~lost.any(dim=axis)
            assert bool(whole.all()) == (name != "pixels")
    noisy, lost = corrupt(x, {"gaussian": 0.1, "stripes": 0.05}, random)
    assert not lost.any()
    assert float((noisy - x).std()) == pytest.approx(0.11, abs=0.02)


def test_a_denoising_autoencoder_restores_lines_that_a_plain_one_does_not(lab: Lab) -> None:
    plain, _ = lab.run("denoising", "plain", 150)
    trained, _ = lab.run("denoising", "lines", 150)
    assert trained["lost_psnr_db"] > plain["lost_psnr_db"] + 0.2


def test_the_restorer_touches_no_pixel_that_is_not_lost(lab: Lab) -> None:
    figures, task = lab.run("denoising", "restorer", 60)
    assert figures["lost_psnr_db"] > figures["interpolated_psnr_db"]
    clean = task.patches[:4]
    known, lost = task.damaged(clean, torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = task.module(known)
    assert torch.allclose(out[~lost], clean[~lost])
    assert not torch.equal(out[lost], known[:, :12][lost])


@pytest.mark.parametrize("variant", ["L1", "KL"])
def test_a_sparse_code_is_quieter(lab: Lab, variant: str) -> None:
    plain, _ = lab.run("sparse", "plain", 120)
    quiet, _ = lab.run("sparse", variant, 120)
    assert quiet["active_percent"] < plain["active_percent"] - 2
    assert quiet["psnr_db"] > 15


def test_the_jacobian_penalty_is_the_jacobians_norm(places: Places) -> None:
    """The closed form against autograd's Jacobian, and Hutchinson's estimate against the closed form."""
    torch.manual_seed(0)
    network = build(Network(code=5, code_activation="sigmoid"), (12, 4, 4))
    network.look_at(places.patches("train", 4, 20, 100, 1))
    seen = places.patches("train", 4, 4, 6, 1)
    one = network(seen)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: network.encode(x[None])[0]))(seen)
    norm = jacobian.flatten(1).pow(2).sum(dim=1).mean()
    assert float(contractive.exact(one)) == pytest.approx(float(norm), rel=1e-4)
    estimates = [float(contractive.estimate(one).detach()) for _ in range(300)]
    assert np.mean(estimates) == pytest.approx(float(norm), rel=0.15)


def test_a_contractive_code_moves_less_under_noise(lab: Lab) -> None:
    plain, _ = lab.run("contractive", "dense", 120)
    still, _ = lab.run("contractive", "dense, contractive", 120)
    assert still["sensitivity"] < 0.9 * plain["sensitivity"]


def test_a_price_on_the_divergence_shortens_a_variational_code(lab: Lab) -> None:
    free, _ = lab.run("variational", "β = 0", 100)
    paid, task = lab.run("variational", "β = 1", 100)
    assert paid["rate_nats"] < 0.5 * free["rate_nats"]
    assert paid["psnr_db"] > 21.5
    task.module.train()
    first, second = (task.module(task.patches[:4]).output for _ in range(2))
    assert not torch.equal(first, second)  # the decoder sees a sample
    task.module.eval()
    with pytest.raises(ConfigError, match="variational"):
        normal.penalty(build(Network(), (12, 4, 4))(task.patches[:4]))


def test_a_memorising_network_fails_on_unseen_places(lab: Lab) -> None:
    known_by_heart, _ = lab.run("overcomplete", "48 patches, free", 120)
    held_back, _ = lab.run("overcomplete", "6000 patches, sparse", 120)
    assert known_by_heart["gap_db"] > held_back["gap_db"] + 3


def test_a_penalty_is_one_file(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/lab.md shows works as it is shown."""
    shown = re.search(r"    # training/lab/penalties/smooth.py\n((?:    .*\n|\n)+)", pages.INTRO.read_text())
    assert shown is not None
    (tmp_path / "smooth.py").write_text(textwrap.dedent(shown[1]))
    monkeypatch.setattr(penalties, "__path__", [*penalties.__path__, str(tmp_path)])
    row = row_of("dense")
    plain = task_of(shortened(row.variants["MSE"], 1), places)
    smooth = task_of(shortened(row.variants["MSE"], 1, penalties={"smooth": 10.0}), places)
    batch = plain.draw()
    assert float(smooth.loss(batch, 0.5).detach()) > float(plain.loss(batch, 0.5).detach())
    with pytest.raises(ConfigError, match="no training/lab/penalties/rough"):
        penalties.find("rough")


# ---- rows 10 to 14

SPECTRA = {  # DN of B01 … B12 as few_labels' rule wants them: water, forest, other vegetation, bare,
    0: (900, 800, 700, 400, 300, 250, 200, 200, 180, 150, 100, 80),
    1: (300, 300, 450, 300, 800, 2000, 2500, 2700, 2800, 2700, 1200, 500),
    2: (400, 450, 700, 600, 1100, 2200, 2500, 2600, 2700, 2600, 2600, 1500),
    3: (900, 1000, 1300, 1700, 1900, 2000, 2100, 2200, 2300, 2200, 3000, 2600),
    4: (5200, 5200, 5300, 5400, 5400, 5500, 5500, 5600, 5600, 5600, 3000, 2000),  # and cloud or snow
}


@pytest.fixture(scope="module")
def parcels() -> Places:
    """Places of 16 x 16 parcels, each of one land cover."""

    def made(seed: int) -> Place:
        random = np.random.default_rng(seed)
        kind = random.integers(0, 5, (6, 6)).repeat(16, 0).repeat(16, 1)
        table = np.array([SPECTRA[k] for k in range(5)], np.float32)
        light = random.uniform(0.9, 1.1, (6, 6)).repeat(16, 0).repeat(16, 1)
        pixels = table[kind].transpose(2, 0, 1) * light + random.normal(scale=15, size=(12, 96, 96))
        return Place(f"parcels{seed}", pixels.astype(np.float32))

    places = [made(seed) for seed in range(5)]
    return places_of(places[:3], places[3:4], places[4:])


def test_the_rule_knows_its_land_covers(parcels: Places) -> None:
    spectra = torch.tensor([SPECTRA[k] for k in range(5)])[:, :, None, None].expand(-1, -1, 2, 2) / 10000
    assert land_cover(spectra).tolist() == [0, 1, 2, 3, 4]


def test_the_head_on_board_is_trained_to_tell_land_covers(parcels: Places) -> None:
    head = train_head(parcels)
    flat = np.array([SPECTRA[k] for k in range(5)])[:, [1, 2, 3, 7]]
    latents = np.zeros((4, 64, 1, 5), np.float32)
    latents[:, 0, 0] = FLAT * flat.T
    assert head.classify(latents).tolist() == [[0, 1, 2, 3, 4]]
    found, truth = blocks(parcels.test[0])
    scores = found @ torch.tensor(head.weights).T + torch.tensor(head.bias)
    share = 100 * heads.balanced_accuracy(scores, truth, 5)
    assert share > 90
    assert f"balanced accuracy {share:.1f} %" in head.made


def test_areas_under_curves_and_balanced_accuracies() -> None:
    positive = torch.tensor([False, False, True, True])
    assert heads.roc_auc(torch.tensor([1.0, 2.0, 3.0, 4.0]), positive) == 1.0
    assert heads.roc_auc(torch.tensor([4.0, 3.0, 2.0, 1.0]), positive) == 0.0
    assert heads.roc_auc(torch.tensor([1.0, 1.0, 1.0, 1.0]), positive) == 0.5
    scores = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    assert heads.balanced_accuracy(scores, torch.tensor([0] * 8 + [1, 1]), 2) == pytest.approx(0.75)


@pytest.mark.parametrize("variant", ["pre-trained, frozen", "pre-trained, fine-tuned", "PCA features"])
def test_few_labels_are_enough_for_a_head(parcels: Places, tmp_path: Path, variant: str) -> None:
    trial = shortened(row_of("few_labels").variants[variant], 30)
    figures, _ = run_trial(trial, parcels, tmp_path / "run")
    assert figures["classes"] >= 3
    assert figures["labels_20_percent"] > 80  # of five classes, chance is 20


def test_planted_anomalies_stand_out(lab: Lab) -> None:
    figures, task = lab.run("anomaly", "autoencoder", 80)
    normal, _ = task.ordinary()
    burning = anomaly.fire(normal[:5], torch.from_numpy(task.places.scale), torch.Generator().manual_seed(1))
    changed = (burning != normal[:5]).flatten(2).any(dim=2).nonzero()[:, 1].unique()
    assert changed.tolist() == [10, 11]  # B11 and B12
    assert figures["auc_ship_error"] > 0.6
    assert figures["auc_fire_error"] > 0.55


def native(places: Places) -> Places:
    """The same places with 20 m bands stored 2 x 2 repeated."""

    def one(place: Place, name: str) -> Place:
        pixels = place.pixels.copy()
        for band in superresolve.TWENTY_METRES:
            pixels[band] = pixels[band, ::2, ::2].repeat(2, 0).repeat(2, 1)
        return Place(name, pixels)

    train = [one(place, name) for place, name in zip(places.train, ("a", "b", "d"), strict=True)]
    return places_of(train, places.validation, [one(place, "e") for place in places.test])


def test_guided_super_resolution_beats_bicubic(places: Places, tmp_path: Path) -> None:
    trial = shortened(row_of("superresolution").variants["guided"], 60)
    figures, task = run_trial(trial, native(places), tmp_path / "run")
    assert {place.name for place in task.native("validation")} == {"d"}  # held out of those to train on
    assert figures["psnr_db"] > figures["plain_psnr_db"] + 1


def test_an_adversary_trains_beside_the_decoder_and_never_through_it(places: Places) -> None:
    trial = shortened(row_of("adversarial").variants["adversarial"], 8)
    task = task_of(trial, places)
    batch = task.draw()
    known, owed = batch
    assert not torch.equal(known, owed)  # what the nodes made of it, and the scene
    task.loss(batch, 0.1).backward()
    assert all(p.grad is None for p in task.module.adversary.parameters())  # squared error alone, to begin with
    task.module.zero_grad()
    with torch.no_grad():
        task.module.made.corrector.leave.weight.normal_(std=0.05)
    weight = task.trial.options["adversarial"]
    whole = torch.autograd.grad(task.loss(batch, 0.9), list(task.module.adversary.parameters()))
    adversary = task.module.adversary
    own = ((adversary(owed) - 1) ** 2).mean() + (adversary(task.module(known).detach()) ** 2).mean()
    alone = torch.autograd.grad(own, list(adversary.parameters()))
    assert weight > 0
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(whole, alone, strict=True))


def test_a_recurrent_network_learns_a_series(lab: Lab) -> None:
    before, _ = lab.run("sequence", "recurrent", 1)
    after, _ = lab.run("sequence", "recurrent", 40)
    assert after["psnr_db"] > before["psnr_db"] + 3


def test_a_reference_saves_bits_and_is_never_worse(lab: Lab) -> None:
    """A made series differs in light and noise only: the reference gives all else."""
    figures, _ = lab.run("sequence", "difference, fitted", 1)
    assert figures["conditioned_bits"] < 0.8 * figures["alone_bits"]
    assert figures["used"] > 0
    own, _ = lab.run("sequence", "as the nodes do it", 1)
    assert own["alone_bits"] == figures["alone_bits"]
    assert own["conditioned_bits"] < 0.8 * own["alone_bits"]
    scene = np.random.default_rng(1).uniform(100, 3000, (12, 16, 16)).astype(np.float32)
    assert np.abs(sequence.fitted(0.7 * scene + 50, scene) - (0.7 * scene + 50)).max() < 0.1


# ---- row 15: the loop's comforts


def weights_after(trial: Trial, places: Places, folder: Path, resume: bool = False) -> dict[str, Any]:
    task = task_of(trial, places)
    fit(task, trial.schedule, trial.name, trial, folder, {}, resume, quiet=True, board=False)
    loaded: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return loaded


def test_one_seed_is_one_result_and_another_is_another(places: Places, tmp_path: Path) -> None:
    trial = shortened(row_of("dense").variants["MSE"], 12)
    first, again = (weights_after(trial, places, tmp_path / name)["weights"] for name in "ab")
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = weights_after(msgspec.structs.replace(trial, seed=2), places, tmp_path / "c")["weights"]
    assert not torch.equal(first["stages.0.there.weight"], other["stages.0.there.weight"])


def test_a_run_goes_on_where_it_was_stopped(places: Places, tmp_path: Path) -> None:
    trial = shortened(row_of("dense").variants["MSE"], 10)
    weights_after(trial, places, tmp_path / "run")
    longer = shortened(row_of("dense").variants["MSE"], 15)
    assert weights_after(longer, places, tmp_path / "run", resume=True)["state"]["step"] == 15
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 10, 10, 15]  # what each run is, and its reports


def test_a_run_that_gets_no_better_stops_early(places: Places, tmp_path: Path) -> None:
    trial = shortened(row_of("dense").variants["MSE"], 60)
    schedule = msgspec.structs.replace(trial.schedule, patience=2, validate_every=3, learning_rate=0.0)
    stopped = weights_after(msgspec.structs.replace(trial, schedule=schedule), places, tmp_path / "run")
    assert stopped["state"]["step"] == 6  # the first validation is the best; two more are not


def test_the_finder_finds_a_rate_that_learns_and_puts_the_weights_back(places: Places) -> None:
    task = task_of(row_of("dense").variants["MSE"], places)
    before = {key: value.clone() for key, value in task.module.state_dict().items()}
    rate, curve = find_rate(task)
    assert 1e-4 < rate < 0.2
    assert curve[-1][1] > min(loss for _, loss in curve)
    assert all(torch.equal(before[key], value) for key, value in task.module.state_dict().items())


def test_tensorboard_gets_figures_pictures_and_histograms(places: Places, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_trial(shortened(row_of("dense").variants["MSE"], 3), places, tmp_path / "run", board=True)
    seen = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()
    assert {"loss", "score", "rate"} <= set(seen["scalars"])
    assert seen["images"] == ["held_out"]
    assert seen["histograms"] == ["code"]


def test_half_precision_learns(lab: Lab) -> None:
    before, _ = lab.run("comforts", "bfloat16", 1)
    after, task = lab.run("comforts", "bfloat16", 60)
    assert after["psnr_db"] > before["psnr_db"] + 1
    assert all(p.dtype == torch.float32 for p in task.module.parameters())


@pytest.mark.parametrize(
    "hole", [np.s_[:, 20:23], np.s_[:, :, 20:24], np.s_[:, 10:20, 10:20]], ids=["rows", "columns", "a hole"]
)
def test_the_restorers_guess_does_not_care_which_way_lines_run(hole: Any) -> None:
    slope = torch.linspace(0.2, 0.6, 40)[None, None, :, None] + torch.linspace(0.0, 0.2, 40)
    clean, lost = slope.expand(1, 12, 40, 40), torch.zeros(1, 12, 40, 40)
    lost[:, :6][(slice(None), *hole)] = 1
    with torch.no_grad():
        out = restore.Restorer(8, 1)(torch.cat([clean * (1 - lost), lost], dim=1))  # before it has learnt anything
    assert float((out - clean).abs().max()) < 0.08
    assert torch.allclose(out[lost == 0], clean[lost == 0])


def test_an_export_gives_what_was_trained_and_has_a_card(lab: Lab, tmp_path: Path) -> None:
    from training.lab.export import export

    figures, _ = lab.run("denoising", "restorer", 60)
    result = Result("denoising", "restorer", 1, figures, lab.folder / "denoising-restorer-60")
    checks = export(row_of("denoising"), result, lab.places, tmp_path / "bundle")
    assert all(value < 1e-3 for value in checks.values())
    bundle = Bundle.read(tmp_path / "bundle")
    bundle.verify()
    assert bundle.kind == "enhance"
    card = bundle.file("card.md").decode()
    assert f"{figures['psnr_db']:.4g}" in card
    assert "## Not for" in card


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
    arguments = [
        str(mine),
        "--budget",
        "2s",
        "--jobs",
        "1",
        "--data",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
    ]
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
