"""Training: settings are strict, integers are exact, the warm start is a working codec, a short run learns, resumes
and exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'latent-downlink[training]'")

from click.testing import CliRunner  # noqa: E402

from downlink import context  # noqa: E402
from downlink.bundle import Bundle  # noqa: E402
from tests import scenes  # noqa: E402
from training.config import ConfigError, Model, Run, read_config  # noqa: E402
from training.corpus import Batch, Picture, Sampler, spectral_basis  # noqa: E402
from training.integer import EXACT, FrozenIntegerConv, IntegerConv  # noqa: E402
from training.model import HALO, PlaneCodec  # noqa: E402
from training.objective import measure  # noqa: E402
from training.rate import bits, deviation_of  # noqa: E402
from training.warmstart import patch_basis  # noqa: E402

SMALL = """
name = "small"
threads = 1
[corpus]
crop = 64
planes_per_step = 8
validation_share = 0.3
[model]
encoder_width = 16
hyper_width = 16
prior_widths = [8, 8, 16]
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
    flat = pixels.reshape(bands, -1).astype(np.float64)
    return Picture(f"made{seed}__.tif", f"made{seed}", pixels, 10000.0, flat.mean(axis=1), np.cov(flat))


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
    for path in Path("training/configs").rglob("*.toml"):
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


def test_contexts_are_those_of_the_nodes():
    codec = PlaneCodec(Model())
    symbols = np.random.default_rng(0).integers(-300, 300, (2, 3, 64, 4, 4)).astype(np.int32)
    own, before, energy = codec.contexts(torch.from_numpy(symbols.reshape(6, 64, 4, 4)).float(), 3)
    for crop in range(2):
        expected_energy = np.zeros((64, 4, 4), np.int16)
        expected_before = np.zeros((64, 4, 4), np.int16)
        for plane in range(3):
            at = crop * 3 + plane
            companded = context.compand(symbols[crop, plane])
            assert (own[at].numpy() == companded).all()
            assert (before[at].numpy() == expected_before).all()
            assert (energy[at].numpy() == expected_energy).all()
            expected_energy, expected_before = context.next_energy(expected_energy, companded), companded


def test_the_prior_sees_nothing_of_what_is_not_decoded_yet():
    torch.manual_seed(0)
    codec = PlaneCodec(Model()).eval()
    hyper = torch.randint(-5, 6, (1, 8, 2, 2)).float()
    level = torch.full((1, 1, 1, 1), 40.0)
    known = [torch.randint(-60, 60, (1, 64, 8, 8)).float() for _ in range(3)]
    start = 0
    for end in codec.config.groups:
        others = [tensor.clone() for tensor in known]
        others[0][:, start:] = 99.0  # own symbols of this and later groups
        others[1][:, end:] = -99.0  # the plane before, later groups
        others[2][:, end:] = 77.0
        for one, two in zip(codec.prior(hyper, *known, level), codec.prior(hyper, *others, level), strict=True):
            assert (one[:, start:end] == two[:, start:end]).all()
        start = end


def test_the_warm_start_is_already_a_transform_codec():
    """PCA basis orthonormal, and at a fine step the error is that of a uniform quantiser: 1/12 of a step squared."""
    run = Run(corpus=read_small().corpus)
    sampler = Sampler([made_picture(seed) for seed in range(3)], run, HALO, 1)
    codec = PlaneCodec(Model())
    basis, deviation = patch_basis(sampler, 4)
    codec.start_from(basis, deviation)
    flat = basis.reshape(64, 64)
    assert torch.allclose(flat @ flat.T, torch.eye(64), atol=1e-4)
    assert deviation[0] > 3 * deviation[20]
    picture = made_picture(9)
    rows, variances = spectral_basis(picture.covariance)
    planes = np.tensordot(rows, picture.pixels.astype(np.float32) - picture.mean[:, None, None], axes=1).astype(
        np.float32
    )
    levels = [context.level_of(float(v) ** 0.5, 4.0) for v in variances]
    batch = Batch(torch.from_numpy(planes[None, :, :80, :80] / 4.0), torch.tensor([levels], dtype=torch.float32))
    with torch.no_grad():
        outcome = measure(codec.eval(), batch, False, 8.66)
    assert float(outcome.error[0]) == pytest.approx(1 / 12, rel=0.1)


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
    assert "prior_outputs_differing: 0" in exported.output
    bundle = Bundle.read(tmp_path / "models" / "small")
    bundle.verify()
    assert "## Measured" in bundle.file("card.md").decode()


def test_a_folder_without_integer_rasters_is_refused(tmp_path: Path, config: Path):
    from training.cli import train

    result = CliRunner().invoke(train, [str(config), "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "no 8/16-bit integer raster" in result.output
