"""What a stream decodes to on this machine, as hashes: the same on every machine, or one of them is wrong.

    python -m decoder_node.digest scene.dl > here.json        and on the other machine the same; then compare `grids`

For a grid coded by `planes` the hash is over its symbols, which the entropy decoder and the integer prior give: SHA-256
of, for every tile in order, the hyper-latents, the root, then the latents (their channel 0 is zeros), as little-endian
int32 in C order (planes, channels, rows, columns); symbols of chunks that are not there are zeros. Its pixels come from
floats and may differ between machines in the last bit. Every other method promises its pixels, so for those the hash is
over them: row of tiles by row of tiles, (bands, rows, width) in C order, little-endian.

Refuses what the decoder refuses: a damaged file or a chunk that cannot be (`StreamError`), a bundle that is not here or
is another (`BundleError`).
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from decoder_node.compose import decode_rows
from decoder_node.decoder import PlaneDecoder
from downlink.bundle import find_id
from downlink.chunk import ChunkKey, Kind
from downlink.dct import BLOCK
from downlink.errors import BundleError, DownlinkError
from downlink.latent import ReceivedTile, TileCode, decode_tiles
from downlink.manifest import Manifest
from downlink.plane import unpack_front_end
from downlink.stream import StreamReader

Chunk = Callable[[int], bytes | None]


def tile_symbols(manifest: Manifest, chunk: Chunk, decoder: PlaneDecoder, number: int) -> Iterator[ReceivedTile]:
    """The symbols of every tile of a lattice coded by `planes`, in order; none if its side chunk is not there.

    `chunk` is as for `decode_rows`.
    """
    layout, coding, lattice = manifest.layout(), manifest.codings[number], manifest.lattices()[number]
    side = chunk(layout.index(ChunkKey(Kind.SIDE, grid=number)))
    if side is None:
        return
    tiles = layout.tiles(number)
    front_end = unpack_front_end(side, lattice.half, lattice.weights, coding.planes, len(tiles))
    for index, tile in enumerate(tiles):
        chunks = {}
        for at in layout.latents_of(number, index):
            key, payload = layout.key(at), chunk(at)
            if payload is not None:
                chunks[key.group, key.block] = payload
        height, width = (px // BLOCK for px in tile.coded)
        levels = front_end.levels_at(front_end.gain(index))
        code = TileCode(decoder.spec, decoder.tables, levels, front_end.turn, coding.planes_per_chunk)
        received = ReceivedTile(code, height, width, chunks)
        decode_tiles([received], decoder.prior)
        yield received


def grid_digests(manifest: Manifest, chunk: Chunk, decoder: PlaneDecoder | None) -> list[dict[str, Any]]:
    """Per grid: `grid`, `method`, `hashed` ("symbols" or "pixels"), how many (`count`) and their `sha256`.

    `decoder` may be None where no grid is coded by `planes`.
    """
    if not manifest.exact and (decoder is None or decoder.bundle.id != manifest.bundle):
        other = "none" if decoder is None else f"{decoder.bundle.name} {decoder.bundle.id.hex()[:16]}…"
        raise BundleError(
            f"scene was coded with bundle {manifest.bundle_name} {manifest.bundle.hex()[:16]}…, this decoder is "
            f"{other}; give the decoder that bundle"
        )
    found = []
    for grid, coding in enumerate(manifest.codings):
        digest, count = hashlib.sha256(), 0
        if by_symbols := coding.method == "planes" and decoder is not None:
            arrays = _symbols(manifest, chunk, decoder, grid)
        else:
            arrays = _pixels(manifest, chunk, decoder, grid)
        for array in arrays:
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
            count += array.size
        hashed = "symbols" if by_symbols else "pixels"
        found.append(
            {"grid": grid, "method": coding.method, "hashed": hashed, "count": count, "sha256": digest.hexdigest()}
        )
    return found


def _symbols(manifest: Manifest, chunk: Chunk, decoder: PlaneDecoder, grid: int) -> Iterator[np.ndarray[Any, Any]]:
    for tile in tile_symbols(manifest, chunk, decoder, grid):
        yield tile.symbols.hyper
        yield tile.symbols.root
        yield tile.symbols.latent


def _pixels(
    manifest: Manifest, chunk: Chunk, decoder: PlaneDecoder | None, grid: int
) -> Iterator[np.ndarray[Any, Any]]:
    return (row.pixels for row in decode_rows(manifest, chunk, decoder) if row.grid == grid)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("stream", type=click.Path(path_type=Path), metavar="IN.dl")
@click.option(
    "--models", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder of model bundles, beside the released ones. May be given several times.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Threads of the network.")
def main(stream: Path, models: tuple[Path, ...], threads: int) -> None:
    """Print, as JSON, the hashes of what IN.dl decodes to on this machine.

    \b
    python -m decoder_node.digest scene.dl | jq .grids
    """
    try:
        with stream.open("rb") as file:
            reader = StreamReader(file)
            manifest, decoder = reader.manifest, None
            if not manifest.exact:
                decoder = PlaneDecoder(find_id(manifest.bundle, models, "decoder.onnx"), threads)
            grids = grid_digests(manifest, reader.chunk, decoder)
    except DownlinkError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{stream}: {error.strerror or error}") from error
    bundle = {"name": manifest.bundle_name, "id": manifest.bundle.hex()}
    versions = {name: getattr(sys.modules[name], "__version__", "") for name in ("numpy", "onnxruntime")}
    where = {"machine": platform.machine(), "python": platform.python_version(), **versions}
    click.echo(json.dumps({"scene_id": reader.scene_id, "bundle": bundle, "grids": grids, "on": where}))


if __name__ == "__main__":
    main()
