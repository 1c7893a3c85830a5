"""`decoder-node serve`, put together: the receiver, the workers, the page and the figures of one archive."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from decoder_node.admission import Admission
from decoder_node.asks import Asks
from decoder_node.decoding import MissingExtra, task
from decoder_node.identity import Tls
from decoder_node.inbox import Inbox
from decoder_node.ledger import Ledger, located
from decoder_node.log import log
from decoder_node.nodes import Nodes
from decoder_node.page.process import Beside, PageOptions
from decoder_node.receiver import Receiver
from decoder_node.worker import Workers
from downlink import __version__
from downlink.errors import LinkError

if TYPE_CHECKING:
    from decoder_node.metrics import Metrics


@dataclass(frozen=True)
class Serving:
    """How to serve."""

    archive: Path
    listen: str
    tls: Tls | None
    insecure: bool
    admission: Admission
    workers: int | str  # processes here, or the address of a Dask scheduler
    memory: int | None  # bytes of each process here
    partial_after_s: float | None
    models: tuple[Path, ...]
    products: tuple[str, ...] = ()
    store: str = ""  # URL that products go to; empty: the archive
    page: PageOptions | None = None
    metrics: str | None = None


async def serve(how: Serving) -> None:
    """Until SIGTERM or SIGINT."""
    disk = ThreadPoolExecutor(1, thread_name_prefix="ledger")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    ledger = await loop.run_in_executor(disk, partial(Ledger, how.archive, create=True))
    ending = contextlib.AsyncExitStack()
    try:
        facts = {"tls": how.tls is not None, "archive": str(how.archive), "workers": how.workers}
        committed: Callable[[float], object] = lambda seconds: None  # noqa: E731
        if how.metrics is not None:
            figures = _figures(how.archive)
            ending.callback(figures.close)
            facts["metrics"] = figures.serve(how.metrics)
            committed = figures.committed
        inbox = await loop.run_in_executor(disk, partial(Inbox, how.archive, ledger))
        await loop.run_in_executor(disk, place_all, how.archive, ledger)
        for scene_id in await loop.run_in_executor(disk, inbox.recover):
            log.info("durable", extra={"scene": scene_id, "after": "restart"})
        workers = await start_workers(how, ledger, disk, ending)
        asks, nodes = Asks(how.archive, ledger), Nodes(ledger)
        for recover in (asks.recover, nodes.recover):
            await loop.run_in_executor(disk, recover)
        software = f"decoder-node {__version__}"
        receiver = Receiver(inbox, disk, workers.wake, software, how.admission, asks, nodes, committed)
        address = await receiver.start(how.listen, how.tls, insecure=how.insecure)
        await workers.start()
        if how.tls is None and how.insecure:
            log.warning("anybody who reaches this address can send scenes as any node", extra={"listen": address})
        log.info("listening", extra={"listen": address, **facts})
        beside = None if how.page is None else asyncio.create_task(Beside(how.page).keep())
        stopping, failing = asyncio.create_task(stop.wait()), asyncio.create_task(receiver.failed())
        await asyncio.wait({stopping, failing}, return_when=asyncio.FIRST_COMPLETED)
        error = failing.exception() if failing.done() else None
        for waiting in (stopping, failing):
            waiting.cancel()
        log.info("stopping")
        if beside is not None:
            beside.cancel()
        await asyncio.gather(receiver.stop(), workers.stop(), *([asyncio.wait({beside})] if beside else []))
        await ending.aclose()
        log.info("stopped")
        if error is not None:
            raise error
    finally:
        await ending.aclose()
        disk.shutdown(wait=True)
        ledger.close()


def place_all(archive: Path, ledger: Ledger) -> None:
    """Scenes that were decoded before the ledger kept places get theirs from their items, once."""
    for scene_id, name in ledger.unplaced():
        try:
            item = json.loads(Path(located(archive, name)).read_bytes())
            properties, geometry = item["properties"], item.get("geometry")
            when = properties.get("datetime") or properties.get("start_datetime")
            acquired = when if properties.get("downlink:acquired") else None
            ledger.place(scene_id, {"acquired": acquired, "bbox": item.get("bbox"), "outline": geometry})
        except (OSError, ValueError, KeyError) as error:  # no item, no place: `reprocess` makes both
            log.warning("no place", extra={"scene": scene_id, "reason": f"{type(error).__name__}: {error}"})


def _figures(archive: Path) -> Metrics:
    """Its package may not be here."""
    try:
        from decoder_node.metrics import Metrics
    except ImportError as error:
        needs = "pip install 'latent-downlink[ground]' brings it"
        raise MissingExtra(f"--metrics needs {error.name}; {needs}") from error
    return Metrics(archive)


async def start_workers(
    how: Serving, ledger: Ledger, disk: ThreadPoolExecutor, ending: contextlib.AsyncExitStack
) -> Workers:
    """Processes here, or a cluster."""
    if isinstance(how.workers, int) and not how.store:
        doing = partial(task, products=how.products)
        return Workers(
            how.archive, ledger, disk, how.models, how.workers, doing, how.memory,
            trusts=how.admission.trusts, partial_after_s=how.partial_after_s,
        )  # fmt: skip
    from decoder_node.cluster import cluster_workers

    return await cluster_workers(how, ledger, disk, ending)


@contextlib.contextmanager
def alone(archive: Path) -> Iterator[None]:
    """One server per archive: the ledger has one writer."""
    with (archive / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LinkError(f"another `decoder-node serve` uses the archive {archive}; stop it first") from None
        yield
