"""Decoding on a Dask cluster: `serve --workers tcp://scheduler:8786`.

The ledger stays the truth. A scene is a task on the cluster while this node waits for it, as it would for a process of
its own: what the cluster forgets (a worker that is killed, a scheduler that is started anew) is still undecoded in the
ledger, and is given out again. Tasks are idempotent, so that one that was carried out twice does no harm. As many
scenes are given out at a time as the cluster has threads, and two more; that is looked at again every few seconds, so a
cluster may grow and shrink. The cluster's workers should have one thread each (`dask worker --nthreads 1`).

Workers see the archive's folder (a shared file system), or, with `--store`, nothing but the store: streams are put
there first, and parts of streams travel with the task. Models are found on the workers: the released ones, and folders
by the same paths. Refused, with `LinkError`: a scheduler that does not answer at the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from decoder_node import bounds
from decoder_node.decoding import MissingExtra, Outcome, part_path, task
from decoder_node.ledger import Ledger
from decoder_node.log import log
from decoder_node.reference import among, lineage
from decoder_node.worker import Died, Job, Lost, Place, Process, Workers
from downlink.errors import LinkError
from downlink.manifest import Manifest
from downlink.ranges import Range
from downlink.stream import read_head

if TYPE_CHECKING:
    from decoder_node.serving import Serving
    from decoder_node.store import Store

CONNECT_S: Final = 6.0
LOOK_S: Final = 5.0
AHEAD: Final = 2  # scenes given out beyond what the cluster can do at once: nobody waits for us
PART_BYTES_MAX: Final = 64 << 20  # of a scene on its way that travels with its task


def shared_task(
    archive: str, scene_id: str, model_folders: Sequence[str], received_at: float,
    there: Sequence[tuple[int, int]] | None, products: Sequence[str],
) -> Outcome:  # fmt: skip
    """`decoding.task` on a worker that sees the archive's folder."""
    ranges = None if there is None else [Range(*item) for item in there]
    return task(Path(archive), scene_id, [Path(one) for one in model_folders], received_at, ranges, products)


def _streams(job: Job) -> list[str]:
    """The scenes whose streams a job takes, as far as they are here: references, and its own if it is complete."""
    own = job.archive / "streams" / f"{job.scene_id}.dl"
    source = own if job.there is None else part_path(job.archive, job.scene_id)
    try:
        with source.open("rb") as file:
            manifest = Manifest.unpack(read_head(file))
    except FileNotFoundError:
        return []
    found = [scene_id for scene_id, path in lineage(manifest, among([own.parent])) if path is not None]
    return [job.scene_id, *found] if job.there is None else found


def _stored(
    url: str, products: Sequence[str], archive: Path, scene_id: str, model_folders: Sequence[Path], received_at: float,
    there: Sequence[Range] | None = None,
) -> Outcome:  # fmt: skip
    """`store.store_task` as a task of a process here."""
    from decoder_node.store import store_task

    content = None if there is None else part_path(archive, scene_id).read_bytes()
    ranges = None if there is None else [(item.first, item.count) for item in there]
    return store_task(url, content, scene_id, [str(one) for one in model_folders], received_at, ranges, products)


class _Cluster:
    """A connection to a scheduler, that is made again when it is lost."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Any = None
        self._lock = asyncio.Lock()
        self._numbers = 0

    async def client(self) -> Any:
        """The client. Raises OSError when the scheduler does not answer."""
        from distributed import Client

        async with self._lock:
            if self._client is None or self._client.status != "running":
                await self.close()
                connecting: Any = Client
                self._client = await connecting(
                    self.address, asynchronous=True, timeout=CONNECT_S, set_as_default=False
                )
            return self._client

    async def threads(self) -> int:
        """How many scenes the cluster can decode at once."""
        client = await self.client()
        counts = await client.ncores()
        return int(sum(counts.values()))

    async def run(self, function: Any, scene_id: str, *arguments: Any, clock_s: float) -> Outcome:
        """A task's outcome. Raises `Died`, or `Lost`."""
        from distributed import KilledWorker

        self._numbers += 1
        future = None
        try:
            client = await self.client()
            key = f"decode-{scene_id[:16]}-{id(self):x}-{self._numbers}"
            future = client.submit(function, *arguments, key=key, pure=False)
            async with asyncio.timeout(clock_s):
                outcome = await future
            assert isinstance(outcome, Outcome)
            return outcome
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise Lost("the scheduler has forgotten it") from error
        except KilledWorker as error:
            raise Died(f"the cluster's workers died of it, again and again: {str(error)[:200]}") from error
        except TimeoutError as error:
            raise Lost(f"the cluster has not answered within {clock_s:.0f} s") from error
        except (OSError, RuntimeError) as error:
            raise Lost(f"the scheduler {self.address} does not answer: {error}") from error
        except Exception as error:
            name = type(error).__name__
            if "Cancelled" in name or "Comm" in name or "Closed" in name:
                raise Lost(f"the scheduler has lost it: {error}") from error
            return Outcome(failure=f"{name}: {error}")
        finally:
            if future is not None:
                with contextlib.suppress(Exception):
                    future.release()

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            with contextlib.suppress(Exception):
                await client.close()


class _Anywhere:
    """A `Place`: wherever the cluster puts a task; with a store and no cluster, a process here."""

    def __init__(self, cluster: _Cluster | None, store: Store | None, products: Sequence[str], memory: int) -> None:
        self._cluster, self._store, self._products, self._memory = cluster, store, products, memory
        self._process: Process | None = None

    async def run(self, job: Job) -> Outcome:
        there = None if job.there is None else [(item.first, item.count) for item in job.there]
        models = [str(folder) for folder in job.model_folders]
        clock_s = bounds.START_S + job.cpu_s * bounds.CLOCK_PER_CPU
        if self._store is None:
            assert self._cluster is not None
            arguments = (str(job.archive), job.scene_id, models, job.received_at, there, self._products)
            return await self._cluster.run(shared_task, job.scene_id, *arguments, clock_s=clock_s)
        store, content = self._store, None
        for scene_id in await asyncio.to_thread(_streams, job):
            name = f"streams/{scene_id}.dl"
            if not await asyncio.to_thread(store.has, name):
                await asyncio.to_thread(store.put, job.archive / name, name)
        if there is not None:
            part = part_path(job.archive, job.scene_id)
            try:
                if part.stat().st_size > PART_BYTES_MAX:
                    return Outcome(waits=f"what has come of it has more than {PART_BYTES_MAX} bytes")
                content = await asyncio.to_thread(part.read_bytes)
            except FileNotFoundError:
                return Outcome(waits="it is complete by now, or was given up")
        from decoder_node.store import store_task

        rest = (store.url, content, job.scene_id, models, job.received_at, there, self._products)
        if self._cluster is not None:
            outcome = await self._cluster.run(store_task, job.scene_id, *rest, clock_s=clock_s)
        else:
            if self._process is None:
                self._process = Process(partial(_stored, rest[0], self._products), self._memory)
            outcome = await self._process.run(job)
        if outcome.result is not None:
            item = await asyncio.to_thread(store.read, f"scenes/{job.scene_id}/{job.scene_id}.json")
            if item is None:
                return Outcome(lost="its item is not in the store")
            async with _COLLECTION:
                await asyncio.to_thread(store.admit, json.loads(item))
        return outcome

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None


_COLLECTION: Final = asyncio.Lock()  # one change of a store's collection at a time


class ClusterWorkers(Workers):
    """Workers as many as the cluster has threads, and some more."""

    cluster: _Cluster | None = None
    _watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        if self.cluster is not None:
            self._watching = asyncio.create_task(self._watch(self.cluster))

    async def stop(self, within_s: float = 4.0) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await super().stop(within_s)
        if self.cluster is not None:
            await self.cluster.close()

    async def _watch(self, cluster: _Cluster) -> None:
        known = -1
        while True:
            try:
                threads = await cluster.threads()
                if threads != known:
                    log.info("cluster", extra={"scheduler": cluster.address, "threads": threads})
                    known = threads
                self.resize(threads + AHEAD if threads else 1)
            except Exception as error:
                if known:
                    log.error("no cluster", extra={"scheduler": cluster.address, "reason": str(error)[:200]})
                    known = 0
            await asyncio.sleep(LOOK_S)


async def cluster_workers(
    how: Serving, ledger: Ledger, disk: ThreadPoolExecutor, ending: contextlib.AsyncExitStack
) -> Workers:
    """Workers for `--workers tcp://…`, `--store`, or both."""
    try:
        cluster = _Cluster(how.workers) if isinstance(how.workers, str) else None
        store: Store | None = None
        if how.store:
            from decoder_node.store import Store as AStore

            store = AStore(how.store)
        if cluster is not None:
            import distributed  # noqa: F401
    except ImportError as error:
        needs = "pip install 'latent-downlink[cluster]' brings it"
        raise MissingExtra(f"a cluster needs {error.name}; {needs}") from error
    if cluster is not None:
        try:
            await cluster.client()
        except OSError as error:
            raise LinkError(f"the Dask scheduler {cluster.address} does not answer: {error}") from error
        ending.push_async_callback(cluster.close)
    memory = bounds.memory_bytes(1) if how.memory is None else how.memory

    def place() -> Place:
        return _Anywhere(cluster, store, how.products, memory)

    count = how.workers if isinstance(how.workers, int) else 1
    workers = ClusterWorkers(
        how.archive, ledger, disk, how.models, count, trusts=how.admission.trusts,
        partial_after_s=how.partial_after_s, place=place,
    )  # fmt: skip
    workers.cluster = cluster
    return workers
