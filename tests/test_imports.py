"""Who may import what (DESIGN: the house). Read from the source, and tried out with the heavy packages blocked."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from tests import scenes

ROOT = Path(__file__).parents[1]
OURS = ("downlink", "encoder_node", "decoder_node", "training", "evaluation")
STDLIB = sys.stdlib_module_names
BASE = {"click", "grpc", "msgspec", "numpy", "onnxruntime", "google", "zstandard"}

# our packages that each of our packages may import
MAY_IMPORT = {
    "downlink": {"downlink"},
    "encoder_node": {"encoder_node", "downlink"},
    "decoder_node": {"decoder_node", "downlink"},
    "training": set(OURS),
    "evaluation": set(OURS),
}
# the one exception: a thin click group that loads the others' commands by name
THIN = "downlink/cli.py"

# packages that only some files may import, as patterns on the path
ONLY_IN = {
    "torch": ["training/*", "evaluation/peers.py"],
    "onnx": ["training/*"],
    "onnxscript": ["training/*"],
    "onnxruntime": [
        "encoder_node/encoder.py", "decoder_node/decoder.py", "decoder_node/enhance.py", "training/*",
        "evaluation/graphs.py",
    ],
    "grpc": [
        "downlink/wire/*", "encoder_node/call.py", "encoder_node/sender.py", "encoder_node/channel.py",
        "decoder_node/receiver.py", "decoder_node/identity.py", "decoder_node/probe.py", "decoder_node/server.py",
        "decoder_node/calls.py",
    ],
    "cryptography": ["encoder_node/signature.py", "decoder_node/cli_model.py"],
    "grpc_health": ["decoder_node/*"],
    "grpc_reflection": ["decoder_node/*"],
    "rasterio": [
        "encoder_node/source_*.py", "decoder_node/raster.py", "decoder_node/quicklook.py", "decoder_node/footprint.py",
        "decoder_node/enhance.py", "decoder_node/bits.py", "decoder_node/cube.py", "decoder_node/page/*",
        "training/corpus.py", "evaluation/*",
    ],
    "fastapi": ["decoder_node/page/*", "evaluation/page.py"],
    "rio_tiler": ["decoder_node/page/*"],
    "xarray": ["decoder_node/cube.py"],
    "distributed": ["decoder_node/cluster.py", "evaluation/scale.py"],
    "prometheus_client": ["decoder_node/metrics.py"],
    "imagecodecs": ["evaluation/*"],
    "matplotlib": ["evaluation/*", "training/lab/*"],
    "constriction": [],
    "pystac": ["evaluation/page.py"],
}  # fmt: skip


def sources() -> list[Path]:
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(dotted name, line, at the top of the module?) of every import, those inside functions too."""
    tree = ast.parse(path.read_text(), str(path))
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, node in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; say the package's name"
            yield node.module or "", node.lineno, node in top


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_each_part_imports_only_the_parts_it_may() -> None:
    wrong = [
        f"{name_of(path)}:{line}: {name}"
        for path in sources()
        for name, line, _ in imports(path)
        if (part := name.partition(".")[0]) in OURS and part not in MAY_IMPORT[name_of(path).partition("/")[0]]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_packages_stay_where_they_belong(package: str) -> None:
    wrong = [
        f"{name_of(path)}:{line}: {name}"
        for path in sources()
        for name, line, _ in imports(path)
        if name.partition(".")[0] == package
        and not any(fnmatch(name_of(path), allowed) for allowed in ONLY_IN[package])
    ]
    assert wrong == []


def test_the_core_has_no_window_on_the_world() -> None:
    """downlink/ opens no socket, session or clock; files only through the folder that bundle.py is given."""
    forbidden = {
        "socket",
        "asyncio",
        "time",
        "sqlite3",
        "subprocess",
        "threading",
        "multiprocessing",
        "tempfile",
        "random",
    }
    wrong = [
        f"{name_of(path)}:{line}: {name}"
        for path in sources()
        if name_of(path).startswith("downlink/") and not name_of(path).startswith("downlink/wire/")
        for name, line, _ in imports(path)
        if name_of(path) != THIN and name.partition(".")[0] in forbidden
    ]
    assert wrong == []


def test_the_edge_needs_nothing_but_the_base_at_import() -> None:
    """What encoder_node and downlink import is the standard library, the base, and, where they are asked for, rasterio
    and cryptography."""
    wrong = [
        f"{name_of(path)}:{line}: {name}"
        for path in sources()
        if name_of(path).startswith(("encoder_node/", "downlink/"))
        for name, line, _ in imports(path)
        if name.partition(".")[0] not in STDLIB | BASE | set(OURS) | {"rasterio", "cryptography"}
    ]
    assert wrong == []


ENCODE = """
import sys
for blocked in ("torch", "rasterio", "fastapi", "pystac", "rich", "onnx", "imagecodecs", "matplotlib"):
    sys.modules[blocked] = None
from pathlib import Path
from downlink import bundle
from downlink.stream import StreamReader
from encoder_node.encoder import PlaneEncoder
from encoder_node.pipeline import encode_scene
from encoder_node.source import open_source
from encoder_node.target import Target
source = open_source(Path(sys.argv[1]))
with encode_scene(source, PlaneEncoder(bundle.find(sys.argv[3])), Target(quality=40)) as encoded:
    with open(sys.argv[2], "wb") as file:
        encoded.write(file)
with open(sys.argv[2], "rb") as file:
    reader = StreamReader(file)
    reader.verify()
    print(reader.manifest.scene.grids[0].shape)
assert not {"torch", "rasterio"} & {name for name, module in sys.modules.items() if module is not None}
"""


@pytest.mark.skipif(
    not (ROOT / "models" / "universal" / "bundle.json").is_file(), reason="models/universal is not here"
)
@pytest.mark.parametrize("half", [False, True])
def test_the_edge_encodes_with_torch_and_gdal_blocked(tmp_path: Path, half: bool) -> None:
    """Also with the encoder half of the bundle, which is all that the edge needs."""
    from downlink import bundle

    model = "universal"
    if half:
        for name, content in bundle.split(bundle.find("universal").folder, "encoder").items():
            (tmp_path / name).write_bytes(content)
        model = str(tmp_path)
    np.save(tmp_path / "scene.npy", scenes.pixels(bands=4, height=130, width=70))
    ran = subprocess.run(
        [sys.executable, "-c", ENCODE, tmp_path / "scene.npy", tmp_path / "scene.dl", model],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "(4, 130, 70)"


NO_GDAL = """
import sys
sys.modules["rasterio"] = None
from encoder_node.source import open_source
from downlink.errors import SceneError
try:
    open_source(sys.argv[1])
except SceneError as error:
    print(error)
"""


def test_without_rasterio_a_geotiff_is_refused_with_the_pip_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    ran = subprocess.run(
        [sys.executable, "-c", NO_GDAL, tmp_path / "a.tif"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'latent-downlink[edge-gdal]'" in ran.stdout
