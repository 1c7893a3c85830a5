"""The page in a process of its own beside the receiver, so that drawing maps never holds an acknowledgement up.

`Beside` starts it, and starts it again when it ends; it ends with its parent. `run` is the process itself, and what
`decoder-node page` runs. Refused, with `PageError`: addresses that cannot be bound, and those that strangers can reach,
unless that is wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path

from decoder_node.log import log, log_to_stderr
from downlink.errors import DownlinkError

AGAIN_S = 2.0
STOP_S = 4.0


class PageError(DownlinkError):
    """The page cannot be served like this."""

    code = "page"


@dataclass(frozen=True)
class PageOptions:
    """How to serve a page."""

    archive: Path
    listen: str  # HOST:PORT
    hosts: Sequence[str] = ()  # further names that it answers to
    models: Sequence[Path] = ()
    token: Path | None = None
    open: bool = False  # may strangers reach it?
    log_level: str = "info"


def check(options: PageOptions) -> None:
    """Raise `PageError` for an address that strangers reach, unless that is wanted, and for a token that is none."""
    host = options.listen.rpartition(":")[0].strip("[]")
    if not _loopback(host) and not options.open:
        raise PageError(
            f"--page {options.listen} is not a loopback address: whoever reaches it would see every scene. Put a web "
            "server with TLS and a login before a page on loopback (docs/ground.md), or say --page-open"
        )
    if options.token is not None:
        from decoder_node.page.operator import read_token

        read_token(options.token)


def run(options: PageOptions) -> None:
    """Serve until SIGTERM or SIGINT."""
    import uvicorn

    from decoder_node.page.app import make_app
    from decoder_node.page.operator import read_token
    from decoder_node.page.station import Settings

    check(options)
    host, _, port = options.listen.rpartition(":")
    host = host.strip("[]")
    here = {host} if _loopback(host) else set[str]()
    names = {*options.hosts, *here, "localhost", "127.0.0.1", "::1"}
    hosts = frozenset() if options.open and not options.hosts else frozenset(names)
    token = None if options.token is None else read_token(options.token)
    app = make_app(Settings(options.archive, hosts, options.models, token))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, int(port)))
        except OSError as error:
            raise PageError(f"the page cannot listen on {options.listen}: {error.strerror}") from error
        address = f"{options.listen.rpartition(':')[0]}:{bound.getsockname()[1]}"
        log.info("page", extra={"url": f"http://{address}/", "operator": token is not None})
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="on",
            timeout_graceful_shutdown=2, limit_concurrency=256, h11_max_incomplete_event_size=32 * 1024,
        )  # fmt: skip
        server = uvicorn.Server(config)
        # Listeners wait for ever, and uvicorn for them: it is told first.
        asyncio.run(_serve(server, bound, app.state.events))


async def _serve(server: object, bound: socket.socket, events: object) -> None:
    serving = asyncio.create_task(server.serve(sockets=[bound]))  # type: ignore[attr-defined]
    while not serving.done():
        await asyncio.sleep(0.2)
        if server.should_exit:  # type: ignore[attr-defined]
            events.stop()  # type: ignore[attr-defined]
            break
    await serving


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _child(options: PageOptions) -> None:
    """In the process: serve, and do not outlive the node."""
    log_to_stderr(options.log_level)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for_any([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        run(options)
    except DownlinkError as error:
        log.error("no page", extra={"reason": str(error)})
        os._exit(3)


class Beside:
    """Keeps a page running beside a node."""

    def __init__(self, options: PageOptions) -> None:
        check(options)
        self._options = options
        self._process: multiprocessing.process.BaseProcess | None = None

    async def keep(self) -> None:
        """Until cancelled."""
        context = multiprocessing.get_context("spawn")
        try:
            while True:
                process = context.Process(target=_child, args=(self._options,), daemon=True)
                process.start()
                self._process = process
                while process.is_alive():
                    await asyncio.sleep(0.2)
                log.error("the page has ended, starting it again", extra={"exit": process.exitcode})
                await asyncio.sleep(AGAIN_S)
        finally:
            await self._end()

    async def _end(self) -> None:
        process = self._process
        if process is None or not process.is_alive() or process.pid is None:
            return
        os.kill(process.pid, signal.SIGTERM)
        for _ in range(int(STOP_S / 0.1)):
            if not process.is_alive():
                return
            await asyncio.sleep(0.1)
        process.kill()
