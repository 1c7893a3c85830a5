"""Training: settings are strict, integers are exact, the warm start is a working codec, a short run learns, resumes
and exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'latent-downlink[training]'")

from click.testing import CliRunner  # noqa: E402

from downlink.bundle import Bundle  # noqa: E402
from downlink.context import COMPAND_LIMIT, LEVEL_LIMIT  # noqa: E402
from tests import scenes  # noqa: E402
from training import weights  # noqa: E402
from training.check import check_exact  # noqa: E402
from training.config import ConfigError, Model, Run, read_config  # noqa: E402
from training.corpus import PARTITIONS, Batch, Picture, Sampler, coefficients, planes_of, subband_covariances  # noqa: E402
from training.export import spec_of  # noqa: E402
from training.integer import EXACT, FrozenIntegerConv, IntegerConv  # noqa: E402
from training.model import ACTIVATION_LIMIT, PlaneCodec, Synthesis  # noqa: E402
from training.objective import measure  # noqa: E402
from training.rate import bits, deviation_of  # noqa: E402
from training.warmstart import relative_deviations  # noqa: E402
from training.weights import find_weights  # noqa: E402

SMALL = """
name = "small"
threads = 1
[corpus]
crop = 64
planes_per_step = 8
validation_share = 0.3
[model]
hyper_width = 16
prior_widths = [8, 8, 8, 16]
prior_features = 8
decoder_width = 16
decoder_blocks = 1
[schedule]
steps = 30
validate_every = 10
warmup_steps = 5
"""


def made_picture(seed: int, bands: int = 4) -> Picture:
    pixels = scenes.pixels(seed, bands, 128, 128, nodata=None)
    mean, factors = pixels.reshape(bands, -1).mean(axis=1), np.ones(bands, np.int64)
    covariances = subband_covariances(coefficients(pixels.astype(np.float32), mean, factors))
    return Picture(f"made{seed}__.tif", f"made{seed}", pixels, 10000.0, mean, factors, covariances)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder of GeoTIFFs, with one float raster that must be passed over."""
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path_factory.mktemp("rasters")
    for seed in range(4):
        pixels = scenes.pixels(seed, 4, 150, 140)
        profile = {"driver": "GTiff", "count": 4, "height": 150, "width": 140, "dtype": "uint16", "nodata": 0}
        with rasterio.open(path / f"made{seed}.tif", "w", **profile) as dataset:
            dataset.write(pixels)
    with rasterio.open(
        path / "float.tif", "w", driver="GTiff", count=1, height=50, width=50, dtype="float32"
    ) as dataset:
        dataset.write(np.ones((1, 50, 50), np.float32))
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(SMALL)
    return path


def test_a_typo_in_a_config_is_refused_with_its_place(tmp_path: Path):
    path = tmp_path / "bad.toml"
    path.write_text("[schedule]\nlerning_rate = 1.0\n")
    with pytest.raises(ConfigError, match="lerning_rate"):
        read_config(path)


def test_overrides_reach_their_setting(config: Path):
    run = read_config(config, ("schedule.steps=7", "name=other", "corpus.splits=['a','b']"))
    assert (run.schedule.steps, run.name, run.corpus.splits) == (7, "other", ("a", "b"))
    with pytest.raises(ConfigError, match="no '='"):
        read_config(config, ("schedule.steps",))


def test_the_released_configs_are_valid():
    for path in Path("training/configs").glob("*.toml"):
        assert read_config(path).name == path.stem


def test_an_integer_convolution_is_exact_and_the_same_when_frozen():
    torch.manual_seed(0)
    layer = IntegerConv(40, 24, 3, 0, 255).eval()
    x = torch.randint(-127, 256, (2, 40, 9, 9)).float()
    assert layer.largest_sum(255) < EXACT
    out = layer(x)
    assert (out == out.round()).all()
    assert out.min() >= 0
    assert out.max() <= 255
    double = FrozenIntegerConv(layer).double()(x.double())
    assert (double == out.double()).all()


def test_bits_are_those_of_the_density_and_never_infinite():
    index = torch.tensor([1.0, 20.0, 48.0, 95.0])
    values = torch.arange(-4000, 4001).float()[:, None]
    mass = torch.exp2(-bits(values, index.expand(len(values), 4))).sum(dim=0)
    assert torch.allclose(mass[:3], torch.ones(3), atol=1e-3)
    assert torch.isfinite(bits(torch.full((4,), 1e6), index)).all()
    assert deviation_of(torch.tensor(5.0)) / deviation_of(torch.tensor(1.0)) == pytest.approx(2.0)


def test_no_sum_in_the_prior_can_leave_exact_floats():
    """Whatever training does to the weights: integers within +-127 and the widths of the default model."""
    codec = PlaneCodec(Model())
    with torch.no_grad():
        for name, weight in codec.prior.named_parameters():
            if name.endswith("weight"):
                weight.fill_(100.0)
    assert check_exact(codec) < 1.0
    assert max(COMPAND_LIMIT, LEVEL_LIMIT) <= ACTIVATION_LIMIT  # what check_exact takes for granted
    with torch.no_grad():
        codec.prior.subbands[1].head.bias.fill_(1e9)
    with pytest.raises(ConfigError, match="sums may reach"):
        check_exact(codec)


def test_the_synthesis_starts_as_the_identity_and_sees_no_further_than_its_halo():
    torch.manual_seed(0)
    codec = PlaneCodec(Model(decoder_width=8))
    values, before = torch.randn(2, 1, 64, 21, 21).mul(20).unbind()
    level = torch.full((1, 4, 1, 1), 40.0)
    assert (codec.synthesis(values, before, level) == values).all()
    synthesis: Synthesis = codec.synthesis
    torch.nn.init.normal_(synthesis.correct.weight)
    halo = spec_of(codec, 8.66, ()).decoder_halo
    with torch.no_grad():
        clean = synthesis(values, before, level)
        values[:, :, 10, 10] += 50
        changed = (synthesis(values, before, level) != clean).any(dim=1)[0]
    places = changed.nonzero()
    assert int((places - 10).abs().max()) == halo
    assert synthesis(values, before, torch.tensor([40.0, 40.0, 0.0, 40.0]).view(1, 4, 1, 1))[:, 4:16].equal(
        values[:, 4:16]
    )


def batch_of(picture: Picture, step: float, side: int = 128) -> Batch:
    pixels = picture.pixels[:, :side, :side].astype(np.float32)
    values = coefficients(pixels, picture.mean, picture.factors)
    parts = planes_of(values, picture.covariances, picture.factors, PARTITIONS[-1], step)
    return Batch(*(torch.from_numpy(part[None]) for part in parts))


def test_weights_are_found_by_path_name_or_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    for name in ("some-0.9.0", "some-0.10.0", "some-other-1.0.0"):
        (tmp_path / f"{name}.pt").touch()
    assert find_weights("some") == tmp_path / "some-0.10.0.pt"
    assert find_weights("some-0.9.0") == tmp_path / "some-0.9.0.pt"
    assert find_weights(str(tmp_path / "some-other-1.0.0.pt")) == tmp_path / "some-other-1.0.0.pt"
    with pytest.raises(ConfigError, match=r"nor a released bundle with weights \(some-0.10.0, some-0.9.0"):
        find_weights("else")


def test_the_warm_start_is_already_a_transform_codec():
    """At a fine step the error is about that of a uniform quantiser, 1/12 of a step squared, and the rate falls by a
    bit for each doubling of the step; indices that start from deviations cost less than ones that do not."""
    run = read_small()
    sampler = Sampler([made_picture(seed) for seed in range(3)], run, 1)
    torch.manual_seed(0)
    blank = PlaneCodec(Model()).eval()
    codec = PlaneCodec(Model()).eval()
    root, latent = relative_deviations(sampler, 4)
    assert (root.shape, latent.shape) == ((16,), (64,))
    assert root[0] > 2 * root[15]
    assert latent[1] > 1.2 * latent[3]
    codec.prior.seed(root, latent)
    picture = made_picture(9)
    with torch.no_grad():
        fine, coarse = (measure(codec, batch_of(picture, step), False, run.trade) for step in (1.0, 2.0))
        unseeded = measure(blank, batch_of(picture, 1.0), False, run.trade)
    assert float(fine.error[0]) == pytest.approx(1 / 12, rel=0.1)
    assert float(fine.error[0]) == pytest.approx(float(fine.rounding[0]), rel=1e-4)
    assert float(fine.rate[0] - coarse.rate[0]) == pytest.approx(1.0, abs=0.2)
    assert float(fine.rate[0]) < float(unseeded.rate[0])


def test_a_batch_of_one_plane_costs_nothing_where_nothing_is_sent():
    batch = batch_of(made_picture(2), 1e7)
    assert not batch.levels.any()
    with torch.no_grad():
        outcome = measure(PlaneCodec(read_small().model).eval(), batch, False, 8.66)
    assert float(outcome.rate[0]) == 0.0
    assert float(outcome.error[0]) == 0.0


def read_small() -> Run:
    import msgspec

    return msgspec.convert(msgspec.toml.decode(SMALL), Run)


def test_a_short_run_learns_resumes_and_exports_a_bundle_that_works(folder: Path, config: Path, tmp_path: Path):
    from training.cli import export, train

    run = tmp_path / "run"
    first = CliRunner().invoke(train, [str(config), "--data", str(folder), "--out", str(run)])
    assert first.exit_code == 0, first.output
    more = ["--resume", "--set", "schedule.steps=60"]
    second = CliRunner().invoke(train, [str(config), "--data", str(folder), "--out", str(run), *more])
    assert second.exit_code == 0, second.output
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["score"] for row in rows if "score" in row}
    assert max(scores) == 60
    assert scores[60] < scores[1] - 0.02
    assert {"seed", "commit", "pictures"} <= rows[0].keys()
    exported = CliRunner().invoke(
        export, [str(run), "--data", str(folder), "--out", str(tmp_path / "models" / "small")]
    )
    assert exported.exit_code == 0, exported.output
    assert "integer_outputs_differing: 0" in exported.output
    bundle = Bundle.read(tmp_path / "models" / "small")
    bundle.verify()
    assert "## Measured" in bundle.file("card.md").decode()


def test_a_folder_without_integer_rasters_is_refused(tmp_path: Path, config: Path):
    from training.cli import train

    result = CliRunner().invoke(train, [str(config), "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "no 8/16-bit integer raster" in result.output
