"""A new operator, timed: `python -m evaluation.newcomer`.

Types the lines of docs/ground.md, "In five minutes", one after the other, in an empty folder: the environment is made
and filled by pip from this checkout (the only word that is changed is `latent-downlink`), both nodes run, a real scene
comes down, the page shows it on its map, and the programs that the document names open it. Prints how long each line
took, and ends with an error where one fails or the scene is not on the map within a minute. Needs the package registry
that pip is set up for, and the ports that the document names (50551 and 8080).
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
PAGE = "http://127.0.0.1:8080"
STAYS = ("decoder-node serve", "encoder-node run")  # programs that run until they are stopped
WITHIN_S = 60.0


def lines(document: str) -> list[list[str]]:
    """What is typed, a list per terminal."""
    found = re.search(r"^## In five minutes\n(.*?)^## ", document, re.MULTILINE | re.DOTALL)
    if found is None:
        raise click.ClickException('docs/ground.md has no chapter "In five minutes"')
    blocks = re.findall(r"^```\n(.*?)^```", found[1], re.MULTILINE | re.DOTALL)
    return [block.splitlines() for block in blocks]


class Terminal:
    """Lines typed one after the other into a shell's folder; what activates an environment holds for the rest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = ""
        self._running: list[tuple[str, subprocess.Popen[str]]] = []

    def type(self, line: str) -> float:
        """Run it to its end, or, of a program that stays, leave it running. Returns seconds."""
        began = time.monotonic()
        if line.startswith(". "):
            self._before += f"{line} && "
            return 0.0
        stays = line.startswith(STAYS)
        command = self._before + ("exec " if stays else "") + line.replace("latent-downlink", str(ROOT))
        log = (self._folder / f"terminal-{time.monotonic_ns()}.log").open("w+")
        process = subprocess.Popen(["bash", "-c", command], cwd=self._folder, stdout=log, stderr=log, text=True)
        self._running.append((line, process))
        if stays:
            time.sleep(1)  # somebody reads what it says
            code = process.poll()
        else:
            code = process.wait()
        if code:
            log.seek(0)
            raise click.ClickException(f"{line}\n{log.read()[-2000:]}")
        return time.monotonic() - began

    def close(self) -> None:
        for _, process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(20)


def on_the_map() -> bool:
    """Is there a scene on the page's map, whole, with a picture?"""
    try:
        with urllib.request.urlopen(f"{PAGE}/footprints.geojson", timeout=5) as answer:
            found = json.load(answer)["features"]
        states = [feature["properties"]["state"] for feature in found]
        if states != ["decoded"]:
            return False
        scene = found[0]["properties"]["id"]
        with urllib.request.urlopen(f"{PAGE}/scenes/{scene}/preview.png", timeout=30) as answer:
            return bool(answer.read(4) == b"\x89PNG")
    except OSError:
        return False


@click.command()
def main() -> None:
    """Do what docs/ground.md says, and time it."""
    first, second, third = lines((ROOT / "docs" / "ground.md").read_text())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as name:
        terminals = [Terminal(Path(name)) for _ in range(3)]
        try:
            for terminal, typed in zip(terminals[:2], (first, second), strict=True):
                for line in typed:
                    seconds = terminal.type(line)
                    print(f"{seconds:7.1f} s  {line}", flush=True)
            waited = time.monotonic()
            while not on_the_map():
                if time.monotonic() - waited > WITHIN_S:
                    raise click.ClickException(f"no scene on the page's map within {WITHIN_S:.0f} s")
                time.sleep(0.2)
            print(f"{time.monotonic() - waited:7.1f} s  (the scene is whole, and on the page's map)")
            for line in third:
                print(f"{terminals[2].type(line):7.1f} s  {line}", flush=True)
        finally:
            for terminal in terminals:
                terminal.close()
    print(f"{time.monotonic() - began:7.1f} s  in all")


if __name__ == "__main__":
    main()
