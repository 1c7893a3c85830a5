#!/usr/bin/env python3
"""Writes downlink/wire/ from proto/downlink/v1/link.proto:  python proto/generate.py [--check]

The generator is pinned to the oldest grpcio-tools that we support, because generated code refuses runtimes that are
older than its generator: code made by grpcio-tools 1.85 would force grpcio >= 1.85 and protobuf >= 7.35 on every
user. Code made by 1.65.5 runs with any grpcio >= 1.65.5 and protobuf >= 5.26.1, protobuf 7 included. That old a
generator cannot be installed beside a new protobuf (its metadata forbids it), so it is unpacked into .scratch/, by
itself and without dependencies.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.65.5"
ROOT = Path(__file__).resolve().parent.parent
WIRE = ROOT / "downlink" / "wire"
PROTO = "downlink/v1/link.proto"
FILES = ("link_pb2.py", "link_pb2.pyi", "link_pb2_grpc.py")


def generator() -> Path:
    """The folder that holds the pinned grpc_tools; fetched once. Raises CalledProcessError when pip can't bring it."""
    folder = ROOT / ".scratch" / f"grpcio-tools-{VERSION}"
    if not (folder / "grpc_tools" / "protoc.py").exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps",
             "--only-binary", ":all:", "--target", str(folder), f"grpcio-tools=={VERSION}"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return folder


def generate(into: Path) -> None:
    """Writes FILES into the folder `into`."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
            f"--python_out={scratch}", f"--pyi_out={scratch}", f"--grpc_python_out={scratch}", PROTO,
        ]  # fmt: skip
        subprocess.run(command, check=True, cwd=scratch, env={"PYTHONPATH": str(generator())})
        for name in FILES:
            text = (Path(scratch) / "downlink" / "v1" / name).read_text()
            # The package on the wire is downlink.v1; the Python package that holds it is downlink.wire.
            text = text.replace("from downlink.v1 import", "from downlink.wire import")
            text = text.replace("'downlink.v1.link_pb2'", "'downlink.wire.link_pb2'")
            text = text.replace("downlink/v1/link_pb2_grpc.py", "downlink/wire/link_pb2_grpc.py")
            (into / name).write_text(text)


def stale() -> list[str]:
    """Names of the checked-in files that differ from what the schema gives now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [
            name
            for name in FILES
            if not (WIRE / name).exists() or (WIRE / name).read_text() != (Path(folder) / name).read_text()
        ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if downlink/wire/ is stale")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            differing = stale()
            if differing:
                sys.exit(f"downlink/wire/ is stale ({', '.join(differing)}): run `make proto`")
        else:
            generate(WIRE)
            print(f"wrote {', '.join(FILES)} into downlink/wire/ with grpcio-tools {VERSION}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd[:4]))}… failed:\n{error.stderr or ''}")
