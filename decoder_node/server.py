"""The gRPC server: its bounds, its address, and that it comes back.

grpc.aio has a loop that takes calls. `decoder_node.calls` keeps away from it what it is known to die of; should it die
all the same, the server is dead for good: connections are refused, and even `stop` hangs. So the loop is watched, and a
server whose loop has died is replaced by a new one on the same port. Open streams are cut then, which loses nothing
that was acknowledged.

Refuses to start, with `LinkError`, on an address that cannot be bound, or that strangers could reach without TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from decoder_node import calls
from decoder_node.identity import Tls, check_listen
from decoder_node.log import log
from decoder_node.probe import Probes
from downlink import limits
from downlink.errors import LinkError
from downlink.wire import link_pb2_grpc

SERVICE: Final = "downlink.v1.LinkService"
AGAIN_S: Final = 0.2  # between a server's death and the next one: nobody can keep us busy with dying
TRIES: Final = 50  # of the same port: its old socket may linger


class Server:
    """Serves `service`'s streams, health and reflection on one address. When it dies, `service.cut()` ends its
    streams."""

    def __init__(self, service: Any, listen: str, tls: Tls | None, *, insecure: bool) -> None:
        check_listen(listen, tls, insecure)
        self._service = service
        self._listen = listen
        self._tls = tls
        self._server: Any = None
        self._probes: Probes | None = None
        self._loops: list[asyncio.Task[Any]] = []
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Begin to serve; returns HOST:PORT as bound (port 0 takes a free one)."""
        await self._begin()
        asyncio.get_running_loop().set_exception_handler(_report)
        self._watching = asyncio.create_task(self._watch())
        return self._listen

    async def leaving(self) -> None:
        """Say NOT_SERVING to whoever asks for health."""
        if self._probes is not None:
            await self._probes.leaving()

    async def stop(self, grace_s: float) -> None:
        """Take no new streams; cut those that have not ended within `grace_s`."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await _stop(self._server, grace_s)

    async def _begin(self) -> None:
        settings = [
            ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.so_reuseport", 0),
            # Edges ping each KEEPALIVE_S; without this the server would cut them off with too_many_pings.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", int(limits.KEEPALIVE_S * 1000 / 3)),
            ("grpc.keepalive_permit_without_calls", 1),
            # Our own pings only find dead streams. The answer waits behind a chunk, minutes on a slow link.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 600_000),
            ("grpc.server_handshake_timeout_ms", int(limits.HANDSHAKE_S * 1000)),
            ("grpc.max_concurrent_streams", limits.CALLS_PER_CONNECTION_MAX),
        ]
        # Twice: a stream that is being ended still counts while another has its place.
        at_once = 2 * limits.NODES_MAX * limits.STREAMS_PER_NODE_MAX + limits.PROBES_MAX
        server = calls.server(settings, at_once)
        register: Any = link_pb2_grpc.add_LinkServiceServicer_to_server
        register(self._service, server)
        probes = Probes(server, (SERVICE,))
        try:
            if self._tls is None:
                port = server.add_insecure_port(self._listen)
            else:
                port = server.add_secure_port(self._listen, self._tls.credentials())
        except RuntimeError as error:
            await server.stop(None)
            advice = "it is in use, or not an address of this machine"
            raise LinkError(f"cannot listen on {self._listen}: {advice}") from error
        before = asyncio.all_tasks()
        await server.start()
        self._loops = [task for task in asyncio.all_tasks() - before if _takes_calls(task)]
        await probes.ready()
        self._server, self._probes = server, probes
        self._listen = f"{self._listen.rpartition(':')[0]}:{port}"

    async def _watch(self) -> None:
        """Whenever the server has died: another one."""
        while self._loops:
            await asyncio.wait(self._loops, return_when=asyncio.FIRST_COMPLETED)
            reasons = [str(loop.exception()) for loop in self._loops if loop.done() and not loop.cancelled()]
            log.error("server died, starting another", extra={"reason": "; ".join(reasons)})
            self._service.cut()
            await _stop(self._server, 0.0)
            for attempt in range(TRIES):
                await asyncio.sleep(AGAIN_S)
                try:
                    await self._begin()
                    break
                except LinkError as error:
                    log.error("cannot start the server", extra={"reason": str(error), "attempt": attempt})
            else:
                raise LinkError(f"the server died and {self._listen} could not be bound again in {TRIES} attempts")

    async def failed(self) -> None:
        """Returns never; raises `LinkError` when the server has died and cannot be started again."""
        if self._watching is not None:
            await self._watching
        await asyncio.Event().wait()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's last resort, for what nobody has caught: what a dying server leaves behind is reported by `_watch`."""
    if not isinstance(context.get("exception"), UnicodeDecodeError):
        loop.default_exception_handler(context)


def _takes_calls(task: asyncio.Task[Any]) -> bool:
    """Is this the loop inside grpc.aio's server without which it takes no calls?"""
    return "_server_main_loop" in getattr(task.get_coro(), "__qualname__", "")


async def _stop(server: Any, grace_s: float) -> None:
    """`stop` of a server that may have died, and then never returns."""
    stopping = asyncio.ensure_future(server.stop(grace_s))
    await asyncio.wait({stopping}, timeout=grace_s + 1.0)
    if stopping.done():
        with contextlib.suppress(Exception, asyncio.CancelledError):  # what it has died of
            stopping.result()
