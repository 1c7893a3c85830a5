"""`decoder-node reprocess`, which is `downlink reprocess` too: decode what an archive holds anew; and where decoding
is done, as options of it and of `serve`."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

models_option = click.option(
    "--models", multiple=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A folder of model bundles, beside the released ones. May be given several times.",
)  # fmt: skip


def place_options(command: Command) -> Command:
    """Where scenes are decoded, and what comes of them."""
    for option in (
        click.option(
            "--store", default="", metavar="URL",
            help="Write products and catalogue to this fsspec URL (s3://bucket/archive). Default: the archive.",
        ),
        click.option(
            "--product", "products", multiple=True, type=click.Choice(["zarr"]),
            help="What to write beside the GeoTIFFs. Needs latent-downlink[cube].",
        ),
        click.option(
            "--worker-memory-mb", type=click.IntRange(1024), metavar="N",
            help="Address space of each process. Default: its share of 3/4 of the memory, at least 2048.",
        ),
        click.option(
            "--workers", default="1", show_default=True, metavar="N|tcp://…", callback=_workers,
            help="Processes that decode here (0: none), or the address of a Dask scheduler.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _workers(ctx: click.Context, _: click.Parameter, value: str | int) -> int | str:
    """How many processes, or where the scheduler is."""
    text = str(value)
    if re.match(r"(tcp|tls|ws|wss|ucx)://[^/ ]", text):
        return text
    if not text.isdecimal() or int(text) > 256:
        raise click.BadParameter(f"{text!r} is no number up to 256, and no address like tcp://scheduler:8786", ctx)
    return int(text)


@click.command()
@click.argument("scenes", nargs=-1, metavar="[SCENE]...")
@click.option(
    "--archive", required=True, type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The archive's folder.",
)  # fmt: skip
@place_options
@models_option
@click.option("--queue", is_flag=True, help="Only mark the scenes: the `serve` that runs decodes them.")
@click.option("--json", "as_json", is_flag=True, help="Print figures as JSON at the end.")
def reprocess(
    scenes: tuple[str, ...], archive: Path, workers: int | str, worker_memory_mb: int | None, products: tuple[str, ...],
    store: str, models: tuple[Path, ...], queue: bool, as_json: bool,
) -> None:  # fmt: skip
    """Decode the scenes of an archive anew: a better decoder, another product, another place.

    SCENE is an id or its first digits; without any, all complete scenes are decoded. What was decoded before stays
    until it is replaced. It may be killed at any moment: what is left is decoded by `serve`, or by the next reprocess.

    \b
    decoder-node reprocess --archive /srv/archive --workers 4
    decoder-node reprocess 3fa94c --archive /srv/archive --product zarr
    decoder-node reprocess --archive /srv/archive --workers tcp://scheduler:8786 --store s3://bucket/archive
    decoder-node reprocess --archive /srv/archive --queue
    """
    from decoder_node.decoding import NEEDS_GROUND, MissingExtra
    from decoder_node.ledger import Ledger
    from decoder_node.log import log_to_stderr
    from decoder_node.serving import alone
    from downlink.errors import LinkError

    if find_spec("rasterio") is None:
        raise MissingExtra(f"decoding needs rasterio; {NEEDS_GROUND}")
    log_to_stderr("error")
    archive = archive.resolve()
    ledger = Ledger(archive)
    try:
        known = [entry.scene_id for entry in ledger.entries() if entry.durable_at is not None]
        chosen = None
        if scenes:
            chosen = []
            for given in scenes:
                found = [scene_id for scene_id in known if scene_id.startswith(given.lower())]
                if len(found) != 1:
                    raise LinkError(f"{len(found)} complete scenes have an id that begins with {given!r}; see `list`")
                chosen += found
        if queue:
            print(f"{len(ledger.again(chosen))} scenes are to be decoded anew")
            return
        if workers == 0:
            raise click.UsageError("--workers 0 decodes nothing; say --queue to leave it to `serve`")
        with alone(archive):
            wanted = ledger.again(chosen)
            ledger.close()
            figures = asyncio.run(_run(archive, wanted, workers, worker_memory_mb, products, store, models))
    finally:
        ledger.close()
    if as_json:
        print(json.dumps(figures))
    else:
        rate = f"{figures['scenes_per_s']:.3g} scenes/s, {figures['msamples_per_s']:.3g} Msamples/s"
        print(f"{figures['decoded']} of {figures['scenes']} scenes decoded in {figures['seconds']:.1f} s: {rate}")
    if figures["decoded"] < figures["scenes"]:
        for reason in figures["reasons"]:
            click.echo(f"not decoded: {reason}", err=True)
        sys.exit(1)


async def _run(
    archive: Path, wanted: list[str], workers: int | str, memory_mb: int | None, products: tuple[str, ...], store: str,
    models: tuple[Path, ...],
) -> dict[str, Any]:  # fmt: skip
    """Work until none of these is undecoded, or nothing more can be done."""
    import contextlib
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial

    from decoder_node.admission import Admission
    from decoder_node.ledger import Ledger
    from decoder_node.serving import Serving, start_workers

    disk = ThreadPoolExecutor(1, thread_name_prefix="ledger")
    loop = asyncio.get_running_loop()
    ledger = await loop.run_in_executor(disk, partial(Ledger, archive))
    memory = None if memory_mb is None else memory_mb * 2**20
    how = Serving(
        archive=archive, listen="", tls=None, insecure=False, admission=Admission((), ()), workers=workers,
        memory=memory, partial_after_s=None, models=models, products=products, store=store,
    )  # fmt: skip
    ending = contextlib.AsyncExitStack()
    names = set(wanted)

    def left() -> tuple[int, int, list[str]]:
        entries = [entry for entry in ledger.entries() if entry.scene_id in names]
        waiting = [entry for entry in entries if entry.state == "durable" and entry.reason is None]
        undone = [entry for entry in entries if entry.state != "decoded" and entry.reason is not None]
        return len(waiting), len(undone), [f"{entry.name}: {entry.reason}" for entry in undone]

    try:
        running = await start_workers(how, ledger, disk, ending)
        began = time.monotonic()  # a scheduler was connected to: that is not decoding
        await running.start()
        shown = -1
        while True:
            waiting, undone, reasons = await loop.run_in_executor(disk, left)
            done = len(names) - waiting - undone
            if done != shown and sys.stderr.isatty():
                click.echo(f"\r{done} of {len(names)} decoded", nl=False, err=True)
            elif done != shown:
                click.echo(f"{done} of {len(names)} decoded", err=True)
            shown = done
            if not waiting:
                break
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - began
        if sys.stderr.isatty():
            click.echo(err=True)
        await running.stop()
        samples = 0
        for scene_id in wanted:
            manifest = await loop.run_in_executor(disk, ledger.manifest, scene_id)
            samples += manifest.scene.samples
    finally:
        await ending.aclose()
        disk.shutdown(wait=True)
        ledger.close()
    return {
        "scenes": len(names), "decoded": done, "seconds": round(seconds, 3), "reasons": reasons,
        "scenes_per_s": round(done / seconds, 3), "msamples_per_s": round(samples / 1e6 / seconds, 3),
    }  # fmt: skip
