"""Builds downlink/_native.abi3.so with the C compiler there is, for wheels and for editable installs alike.

The extension is optional (`downlink.accelerator`): where there is no compiler, no Python.h, or anything else goes
wrong, one line says so and what is installed is pure Python, with the same results. DOWNLINK_NATIVE=0 in the
environment of the build leaves it out on purpose. One file serves every CPython from 3.11 on (limited API); it chooses
its loops for the processor when it runs, so it is not tied to the machine that built it.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGET = "downlink/_native.abi3.so"
FLAGS = ("-O3", "-std=c11", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-DNDEBUG")


def compile_native(root: Path) -> Path:
    """Build the extension in the tree, unless it is there and newer than what it is made from; OSError or
    CalledProcessError where that cannot be."""
    target, native = root / TARGET, root / "downlink" / "native"
    if _is_up_to_date(target, [*native.iterdir(), Path(__file__)]):
        return target
    link = shlex.split(sysconfig.get_config_var("LDSHARED") or "cc -shared")
    compiler = shlex.split(os.environ.get("CC", "")) or link[:1]
    include = sysconfig.get_path("include")
    if not (Path(include) / "Python.h").is_file():
        raise FileNotFoundError(f"{include}/Python.h is not there")
    fresh = target.with_suffix(f".{os.getpid()}")
    with tempfile.TemporaryDirectory(prefix="downlink-native-") as folder:

        def compiled(source: Path) -> str:
            out = str(Path(folder) / source.with_suffix(".o").name)
            command = [*compiler, *FLAGS, f"-I{include}", "-c", str(source), "-o", out]
            subprocess.run(command, check=True, capture_output=True, text=True)
            return out

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                largest_first = sorted(native.glob("*.c"), key=lambda path: -path.stat().st_size)
                objects = list(pool.map(compiled, largest_first))
            command = [*compiler, *link[1:], *objects, "-o", str(fresh)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            os.replace(fresh, target)  # whoever has the old one open keeps it
        finally:
            fresh.unlink(missing_ok=True)
    return target


def _is_up_to_date(target: Path, sources: list[Path]) -> bool:
    try:
        made = target.stat().st_mtime
        ctypes.CDLL(str(target))  # not another machine's
    except OSError:
        return False
    return all(source.stat().st_mtime < made for source in sources)


class NativeHook(BuildHookInterface):  # type: ignore[misc]
    """Adds the extension to what is built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or os.environ.get("DOWNLINK_NATIVE") == "0":
            return
        try:
            built = compile_native(Path(self.root))
        except (OSError, subprocess.CalledProcessError) as error:
            why = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            self.app.display_warning(f"without the native loops, which are optional: {why[-1] if why else error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        if version != "editable":
            build_data["force_include"][str(built)] = TARGET
