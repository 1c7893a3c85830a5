"""The rig: a folder with an aarch64 Python, the edge packages' aarch64 wheels, and a qemu that runs them on x86-64.

    python -m tests.aarch64        fetches it (about 50 MB, once), tries it, prints where it lies

It lies in $DOWNLINK_CACHE, or else in the user's cache folder, never in the repository; its name holds a hash of the
recipe below, so that a changed recipe is fetched anew. Only apt-get, dpkg and pip are used, as this machine has them
set up, without root and without touching what is installed. A fetch is whole or not there: everything is unpacked
beside, tried, and renamed. `NoRig` says in one sentence what is missing; `Rig.find` never fetches, so that a test run
without network stays one.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOW = "make rig (python -m tests.aarch64)"

DEBS = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1"),
    *("libssl3", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1"),
    *("libncursesw6", "libtinfo6", "libreadline8", "libdb5.3", "libcrypt1"),
)
WHEELS = (
    "numpy==2.2.6",
    "onnxruntime==1.20.1",  # the newest that was seen to start under qemu 7.2; 1.31.1 crashes when it is imported
    "flatbuffers==25.12.19",
    "protobuf==5.29.5",
    "packaging==25.0",
    "coloredlogs==15.0.1",
    "humanfriendly==10.0",
    "msgspec==0.19.0",
    "zstandard==0.23.0",
    "click==8.1.8",
)
"""The edge packages, not newer than this Python and qemu can run; without grpcio, which no stream needs."""
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
QEMU = "qemu-aarch64-static"
QEMU_DEB = "qemu-user-static"
FETCH_S = 240
"""Longest that one command of a fetch may take."""
TRY = "import numpy, onnxruntime, msgspec, zstandard, click, platform; print(platform.machine())"


class NoRig(Exception):
    """The rig is not here, or cannot be had; the message says why."""


@dataclass(frozen=True)
class Rig:
    """A rig that was fetched and tried."""

    folder: Path

    @classmethod
    def find(cls) -> Rig:
        """The rig in the cache; NoRig where there is none."""
        if platform.machine() != "x86_64":
            raise NoRig(f"this machine is {platform.machine()}; the proof compares x86-64 with aarch64 from x86-64")
        folder = place()
        if not folder.is_dir():
            raise NoRig(f"no aarch64 rig at {folder}; fetch it with: {HOW}")
        return cls(folder)

    @classmethod
    def fetch(cls) -> Rig:
        """The rig in the cache, fetched if it is not there."""
        try:
            return cls.find()
        except NoRig:
            if platform.machine() != "x86_64":
                raise
        folder = place()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
            made = cls(Path(name) / "rig")
            made.folder.mkdir()
            _fetch_debs(made.folder, Path(name) / "apt")
            _fetch_wheels(made.folder / "site", Path(name) / "wheels")
            machine = made.run(["-c", TRY], FETCH_S)
            if machine.stdout.strip() != "aarch64":
                raise NoRig(f"what was fetched does not run: {machine.stderr.strip()[-300:] or machine.stdout!r}")
            try:
                made.folder.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was quicker, which is as well
                    raise
        return cls(folder)

    @property
    def command(self) -> list[str]:
        """What starts its Python."""
        own = self.folder / "qemu" / "usr/bin" / QEMU
        qemu = str(own) if own.exists() else shutil.which(QEMU)
        if qemu is None:
            raise NoRig(f"{QEMU} is gone; fetch the rig anew: remove {self.folder} and run {HOW}")
        root = self.folder / "root"
        return [qemu, "-L", str(root), str(root / "usr/bin/python3.11")]

    def run(self, arguments: Sequence[str | Path], limit_s: float = 400) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS...` there, with our checkout on its path. Files are this machine's own."""
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder / 'site'}",
            "PYTHONDONTWRITEBYTECODE": "1",  # ours would lie in the checkout, made by another Python
            "PYTHONNOUSERSITE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [*self.command, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=limit_s, check=False
        )


def place() -> Path:
    """Where the rig of this recipe lies, or would."""
    cache = os.environ.get("DOWNLINK_CACHE") or os.environ.get("XDG_CACHE_HOME")
    base = Path(cache) if cache else Path.home() / ".cache"
    recipe = hashlib.sha256(repr((DEBS, WHEELS, PLATFORMS, QEMU)).encode()).hexdigest()[:12]
    return base / "latent-downlink" / f"aarch64-{recipe}"


def _run(command: Sequence[str | Path], cwd: Path) -> None:
    try:
        done = subprocess.run(
            list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=FETCH_S, check=False
        )
    except FileNotFoundError:
        raise NoRig(f"{command[0]} is not on this machine; the rig is fetched on Debian") from None
    except subprocess.TimeoutExpired:
        raise NoRig(f"{command[0]} did not end within {FETCH_S} s; is there a network?") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NoRig(f"{command[0]} failed: {said[-1] if said else f'exit code {done.returncode}'}")


def _fetch_debs(rig: Path, apt: Path) -> None:
    """Debian's packages, unpacked, not installed: arm64's into root/, qemu into qemu/ unless this machine has it."""
    _unpack_debs("arm64", DEBS, apt / "arm64", rig / "root")
    if shutil.which(QEMU) is None:
        _unpack_debs("amd64", (QEMU_DEB,), apt / "amd64", rig / "qemu")
        for other in (rig / "qemu" / "usr/bin").iterdir():
            if other.name != QEMU:
                other.unlink()  # forty other processors


def _unpack_debs(architecture: str, names: Sequence[str], state: Path, out: Path) -> None:
    """apt's own state is left alone: lists and archives go to `state`."""
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Acquire::http::Timeout": 30,
        "Acquire::https::Timeout": 30,
        "Acquire::Languages": "none",
    }
    options = [f"-o{key}={value}" for key, value in settings.items()]
    _run(["apt-get", *options, "update"], state)
    _run(["apt-get", *options, "download", *names], state / "debs")
    out.mkdir()
    for deb in sorted((state / "debs").glob("*.deb")):
        _run(["dpkg", "-x", deb, out], state)


def _fetch_wheels(site: Path, wheels: Path) -> None:
    """Wheels, unpacked into `site`: what pip would install there."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    pip += ["--timeout", "30", "--retries", "2", "--only-binary", ":all:", "--python-version", "3.11"]
    pip += [word for name in PLATFORMS for word in ("--platform", name)]
    _run([*pip, "--dest", wheels, *WHEELS], site.parent)
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)


def main() -> None:
    try:
        print(Rig.fetch().folder)
    except NoRig as missing:
        sys.exit(f"Error: {missing}")


if __name__ == "__main__":
    main()
