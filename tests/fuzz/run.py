"""`make fuzz MIN=10`: every target for its share of the time; stops with 1 at the first input that does harm.

Where atheris is installed (it has a wheel for CPython 3.11 on x86-64), libFuzzer steers by the coverage of `downlink`;
elsewhere mutations are drawn blindly. Each target runs in a process of its own with bounded memory; an input may take
`INPUT_S`. The last is `wire`: a real ground, and bytes on its port (`tests.fuzz.wire`). What does harm is left in
`--found`, as TARGET-SHA1, and belongs into `tests/fuzz/fixtures/` once it is mended: `tests/test_fuzz.py` reads all
that lies there.

    python -m tests.fuzz.run --minutes 1 --only manifest --only symbols
    python -m tests.fuzz.run --replay manifest FILE
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
INPUT_S = 20
MEMORY_BYTES = 3 << 30
WIRE = "wire"


def steered(name: str, seconds: int, folder: Path) -> None:
    """In a process of its own: libFuzzer on one target. Returns only when there is nothing to do."""
    import atheris  # type: ignore[import-not-found,import-untyped]

    with atheris.instrument_imports(include=["downlink"]):
        from tests.fuzz.targets import TARGETS, tolerated
    target = TARGETS[name]
    if not target.seeds():
        print(f"{name}: 0 inputs, there is nothing here to start from")
        return
    corpus = folder / "corpus" / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    options = [
        f"-max_total_time={seconds}", f"-timeout={INPUT_S}", "-rss_limit_mb=2048", "-max_len=65536", "-verbosity=0",
        "-print_final_stats=1", f"-artifact_prefix={folder}/{name.replace(' ', '-')}-", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], lambda data: tolerated(target, data))
    atheris.Fuzz()


def blind(name: str, seconds: int, folder: Path) -> None:
    """In a process of its own: mutations without coverage. Raises what the target must not raise."""
    from tests.fuzz.mutate import mutated
    from tests.fuzz.targets import TARGETS, tolerated

    target = TARGETS[name]
    chance = random.Random(time.time_ns())
    seeds = target.seeds()
    if not seeds:
        print(f"{name}: 0 inputs, there is nothing here to start from")
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = mutated(seeds, chance)
        count += 1
        faulthandler.dump_traceback_later(INPUT_S, exit=True)
        path = folder / f"{name.replace(' ', '-')}-{hashlib.sha1(data).hexdigest()}"
        try:
            began = time.monotonic()
            tolerated(target, data)
        except BaseException:
            path.write_bytes(data)
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
        if time.monotonic() - began > INPUT_S / 4:
            path.write_bytes(data)
            raise AssertionError(f"{name}: {time.monotonic() - began:.1f} s for {len(data)} bytes")
    print(f"{name}: {count} inputs in {seconds} s, nothing found")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", action="append", metavar="TARGET")
    parser.add_argument("--found", type=Path, default=ROOT / ".scratch" / "fuzz")
    parser.add_argument("--blind", action="store_true", help="without atheris, even where it is installed")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    coverage = importlib.util.find_spec("atheris") is not None and not asked.blind
    if asked.worker:  # before anything is imported that atheris must see being imported
        (steered if coverage else blind)(asked.worker, max(1, int(60 * asked.minutes)), asked.found)
        return
    from tests.fuzz.targets import TARGETS, tolerated

    if asked.replay:
        tolerated(TARGETS[asked.replay[0]], Path(asked.replay[1]).read_bytes())
        print("harmless")
        return
    asked.found.mkdir(parents=True, exist_ok=True)
    for name in set(asked.only or ()) - {*TARGETS, WIRE}:
        parser.error(f"there is no target {name!r}; there are {', '.join([*TARGETS, WIRE])}")
    names = asked.only or [*sorted(TARGETS), WIRE]
    print(f"{len(names)} targets, {'steered by coverage (atheris)' if coverage else 'blind: there is no atheris here'}")
    for name in names:
        options = ["--worker", name, "--found", str(asked.found), *(["--blind"] if asked.blind else [])]
        command = [sys.executable, "-m", *(["tests.fuzz.wire"] if name == WIRE else ["tests.fuzz.run", *options])]
        command += ["--minutes", str(asked.minutes / len(names))]
        ran = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        tail = [line for line in (ran.stdout + ran.stderr).splitlines() if "stat::" in line or "inputs" in line]
        print(f"{name}: {'; '.join(tail[:3])}", flush=True)
        if ran.returncode:
            print(ran.stdout[-4000:] + ran.stderr[-8000:])
            sys.exit(f"{name}: found something; see {asked.found}, replay with --replay {name!r} FILE")


if __name__ == "__main__":
    main()
