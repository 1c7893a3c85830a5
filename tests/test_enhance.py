"""`decoder-node enhance`: what is made of a decoded scene is what the bundle says, where it says, and is labelled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="pip install 'latent-downlink[ground]'")
onnx = pytest.importorskip("onnx", reason="pip install 'latent-downlink[training]'")

from click.testing import CliRunner  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

from decoder_node.cli_enhance import enhance as command  # noqa: E402
from decoder_node.enhance import STRIP, WINDOW, EnhanceError, enhance  # noqa: E402
from downlink.bundle import Bundle  # noqa: E402
from downlink.enhance import enhance_spec  # noqa: E402
from downlink.errors import BundleError  # noqa: E402
from tests import scenes  # noqa: E402

NAMES = ("B02", "B03", "B04")


def blurring(bands: int) -> bytes:
    """A graph that gives the mean of 5 x 5 pixels where a pixel is lost, and elsewhere the pixel."""
    shape = ["n", bands, "h", "w"]
    nodes = [
        helper.make_node("AveragePool", ["pixels"], ["mean"], kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
        helper.make_node("Sub", ["mean", "pixels"], ["change"]),
        helper.make_node("Mul", ["change", "lost"], ["wanted"]),
        helper.make_node("Add", ["pixels", "wanted"], ["enhanced"]),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("pixels", "lost", "enhanced")
    }
    graph = helper.make_graph(nodes, "g", [values["pixels"], values["lost"]], [values["enhanced"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def bundle_in(folder: Path, task: str = "restore", **changes: Any) -> Bundle:
    folder.mkdir(exist_ok=True)
    content = blurring(len(NAMES))
    (folder / "enhance.onnx").write_bytes(content)
    parameters = {"task": task, "inputs": NAMES, "outputs": NAMES, "halo": 2, "label": "made up", **changes}
    stated = {
        "format": 1, "name": "made", "version": "1", "kind": "enhance", "parameters": parameters,
        "files": {"enhance.onnx": hashlib.sha256(content).hexdigest()},
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(stated))
    return Bundle.read(folder)


def geotiff(path: Path, pixels: Any, names: tuple[str, ...] = NAMES, unit: int = 10) -> Path:
    bands, height, width = pixels.shape
    place = rasterio.Affine(unit, 0, 500000, 0, -unit, 5800000)
    profile = {
        "count": bands,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        "nodata": 0,
        "crs": "EPSG:32633",
    }
    with rasterio.open(path, "w", driver="GTiff", transform=place, **profile) as dataset:
        dataset.write(pixels)
        dataset.descriptions = names
        dataset.update_tags(platform="Sentinel-2A")
    return path


def read(path: Path) -> Any:
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.fixture(scope="module")
def damaged() -> tuple[Any, Any]:
    """A scene larger than a window: a dead column in each band, a corner that no band has; and where they are."""
    pixels = scenes.pixels(3, 3, STRIP + 60, WINDOW + 50, nodata=None)
    lost = np.zeros(pixels.shape, bool)
    for band in range(3):
        lost[band, :, 40 + 170 * band] = True
    pixels[lost] = 0
    pixels[:, :30, :20] = 0
    return pixels, lost


def test_lost_lines_are_restored_others_kept_and_the_mask_says_which(tmp_path: Path, damaged: Any) -> None:
    pixels, lost = damaged
    source = geotiff(tmp_path / "in.tif", pixels)
    out, mask = enhance([source], tmp_path / "out.tif", bundle_in(tmp_path / "bundle"))
    made, restored = read(out), read(mask)
    assert mask.name == "out_restored.tif"
    assert (restored.astype(bool) == lost).all()
    assert (made[~lost] == pixels[~lost]).all()  # the corner, too: nothing is invented where no band saw anything
    assert (made[lost] > 0).all()
    with rasterio.open(out) as dataset:
        assert dataset.descriptions == NAMES
        assert (dataset.nodata, dataset.crs.to_epsg()) == (0, 32633)
        tags = dataset.tags()
    assert (tags["PRODUCT"], tags["PRODUCT_NOTE"], tags["platform"]) == ("restore", "made up", "Sentinel-2A")
    assert tags["PRODUCT_BUNDLE"].startswith("made 1 ")


def test_windows_leave_no_seams(tmp_path: Path, damaged: Any) -> None:
    """The same as the whole scene at once: a halo of two pixels is what a mean of five needs."""
    pixels, lost = damaged
    source = geotiff(tmp_path / "in.tif", pixels)
    made = read(enhance([source], tmp_path / "out.tif", bundle_in(tmp_path / "bundle"))[0])
    around = np.pad(pixels.astype(np.float64), [(0, 0), (2, 2), (2, 2)], mode="edge")
    mean = np.lib.stride_tricks.sliding_window_view(around, (5, 5), axis=(1, 2)).mean(axis=(3, 4))
    assert np.abs(made[lost] - mean[lost]).max() <= 0.51


def test_what_lies_too_far_from_all_that_its_band_has_seen_stays_lost(tmp_path: Path) -> None:
    """Nothing is invented there: a band of which half the scene is gone is restored at its edge only."""
    pixels = scenes.pixels(2, 3, 60, 64, nodata=None)
    pixels[1, :, 20:] = 0
    source = geotiff(tmp_path / "in.tif", pixels)
    out, mask = enhance([source], tmp_path / "out.tif", bundle_in(tmp_path / "bundle"))  # of a halo of 2
    expected = np.zeros(pixels.shape, bool)
    expected[1, :, 20:22] = True
    assert (read(mask).astype(bool) == expected).all()
    assert (read(out)[1, :, 22:] == 0).all()
    assert (read(out)[1, :, 20:22] > 0).all()


def test_a_perceptual_product_is_labelled_and_keeps_nodata(tmp_path: Path, damaged: Any) -> None:
    pixels, _ = damaged
    source = geotiff(tmp_path / "in.tif", pixels)
    (out,) = enhance([source], tmp_path / "out.tif", bundle_in(tmp_path / "bundle", "perceptual"))
    assert ((read(out) == 0) == (pixels == 0)).all()
    with rasterio.open(out) as dataset:
        assert dataset.tags()["PRODUCT"] == "perceptual"


def test_bands_of_several_files_come_together_on_the_finest_grid(tmp_path: Path) -> None:
    fine, coarse = (scenes.pixels(seed, 2, side, side, nodata=None) for seed, side in ((1, 64), (2, 32)))
    ten = geotiff(tmp_path / "a_10m.tif", fine, ("B02", "B03"))
    twenty = geotiff(tmp_path / "a_20m.tif", coarse, ("B04", "B05"), 20)
    (out,) = enhance([twenty, ten], tmp_path / "out.tif", bundle_in(tmp_path / "bundle", "perceptual"))
    made = read(out)
    assert (made[:2] == fine).all()
    assert (made[2] == coarse[0].repeat(2, 0).repeat(2, 1)).all()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    pixels = scenes.pixels(1, 3, 40, 40)
    bundle = bundle_in(tmp_path / "bundle")
    source = geotiff(tmp_path / "in.tif", pixels, ("B02", "B03", "B08"))
    with pytest.raises(EnhanceError, match="needs B04"):
        enhance([source], tmp_path / "out.tif", bundle)
    with pytest.raises(EnhanceError, match="one of the inputs"):
        enhance([source], source, bundle)
    other = geotiff(tmp_path / "other.tif", scenes.pixels(1, 3, 27, 40))
    with pytest.raises(EnhanceError, match="do not lie on"):
        enhance([source, other], tmp_path / "out.tif", bundle)
    assert not (tmp_path / "out.tif").exists()
    with pytest.raises(BundleError, match="kind 'planes'"):
        enhance_spec("planes", {})
    with pytest.raises(BundleError, match="halo is even"):
        enhance([source], tmp_path / "out.tif", bundle_in(tmp_path / "odd", halo=3))
    with pytest.raises(BundleError, match="not an enhancer's"):
        enhance([source], tmp_path / "out.tif", bundle_in(tmp_path / "bad", task="paint"))


def test_the_command_writes_the_product(tmp_path: Path, damaged: Any) -> None:
    source = geotiff(tmp_path / "in.tif", damaged[0][:, :64, :64])
    bundle_in(tmp_path / "bundle")
    out = tmp_path / "out.tif"
    ran = CliRunner().invoke(command, [str(source), str(out), "--model", str(tmp_path / "bundle"), "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.output)["paths"] == [str(out), str(tmp_path / "out_restored.tif")]


def test_the_archive_makes_the_products_of_the_bundles_it_has(tmp_path: Path, damaged: Any) -> None:
    """Of a scene with lost lines: restored, mask and label in the catalogue. Of one without: nothing to restore."""
    from decoder_node.catalogue import add_item
    from decoder_node.enhance import archive_products
    from downlink.chunk import ChunkList, GridCoding, Layout
    from downlink.manifest import Manifest
    from downlink.scene import Band, Grid, Scene

    pixels = damaged[0][:, :128, :128]
    whole = np.maximum(pixels, 1)
    models = tmp_path / "models"
    models.mkdir()
    bundle_in(models / "restorer")
    bundle_in(models / "other", inputs=("B99",), outputs=("B99",))
    folder = tmp_path / "scenes" / "ab"
    folder.mkdir(parents=True)
    source = geotiff(folder / "ab.tif", pixels)
    made = archive_products([source], folder / "ab", [models])
    assert [path.name for path in made] == ["ab.made.enhanced.tif", "ab.made.enhanced_restored.tif"]
    assert archive_products([geotiff(tmp_path / "whole.tif", whole)], tmp_path / "whole", [models]) == []

    scene = Scene("s", (Grid(128, 128, "uint16", tuple(map(Band, NAMES)), 0),))
    coding = GridCoding(planes=3, planes_per_chunk=3, groups=4, mask="none", step=1.0)
    listed = ChunkList.of([b""] * (len(layout := Layout(scene, [coding])) - layout.pages))
    manifest = Manifest.of(
        scene=scene, bundle=bytes(range(32)), bundle_name="b", codings=[coding], settings={}, listed=listed,
        chunks=[b""] * (len(layout) - layout.pages),
    )  # fmt: skip
    item = json.loads(add_item(tmp_path, "ab", manifest, [source, *made], {}).read_text())
    assets = item["assets"]
    assert set(assets) == {"data", "made_enhanced", "made_enhanced_restored"}
    assert assets["made_enhanced"]["title"] == "made up"
    assert assets["made_enhanced"]["roles"] == ["enhanced", "restore"]
    assert assets["made_enhanced_restored"]["roles"] == ["mask", "metadata"]
