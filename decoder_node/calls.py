"""How grpc.aio waits: two faults of grpcio 1.85 kept away from us.

What an operation of gRPC reads into or writes from belongs to its coroutine. When that is cancelled the memory is
freed, and gRPC's core, which was not told, uses it afterwards. `to_its_end` lets a cancelled operation run to its end.

The server's own loop waits for calls by such operations, and cancels them when it ends. It ends, for good, when the
path of a call to no known method is not UTF-8: one flipped bit, or one peer that means harm. `server` makes a server
whose loop never sees such calls; they are answered UNIMPLEMENTED beside it.

The second is done by names that grpcio does not document. Where it has them no more, servers are as grpcio makes them,
and `decoder_node.server` starts another when one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

import grpc.aio
from grpc._cython import cygrpc

from decoder_node.log import log

Result = TypeVar("Result")
NAMES: Final = ("_handle_rpc", "_schedule_rpc_coro", "_RequestCallError")
METHODS: Final = ("_make_request_call_future", "_request_registered_call", "_request_call")
MENDED: Final = all(hasattr(cygrpc, name) for name in NAMES) and all(
    hasattr(cygrpc.AioServer, name) for name in METHODS
)

_running: set[asyncio.Future[Any]] = set()


def to_its_end(operation: Coroutine[Any, Any, Result]) -> asyncio.Future[Result]:
    """Begin an operation of gRPC. Whoever awaits its outcome and is cancelled leaves it running."""
    return asyncio.shield(_kept(operation))


def _kept(operation: Coroutine[Any, Any, Result]) -> asyncio.Future[Result]:
    running = asyncio.ensure_future(operation)
    _running.add(running)
    running.add_done_callback(_ended)
    return running


def _ended(operation: asyncio.Future[Any]) -> None:
    _running.discard(operation)
    if not operation.cancelled():
        operation.exception()  # whoever has waited knows it; nobody else needs to


class _NoMethods:
    """Knows no method."""

    def resolve_handler(self, details: object) -> None:
        return None


class _Server(cygrpc.AioServer):  # type: ignore[misc]
    """Waits for calls in operations that are never cancelled, and by itself for those to no known method."""

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """What the server's loop waits for: the next call of a method, or (None) to none that is known."""
        if method is not None:
            return to_its_end(self._request_registered_call(method))
        _kept(self._refuse_others())
        return asyncio.get_running_loop().create_future()

    async def _refuse_others(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                state = await to_its_end(self._request_call())
                answer = cygrpc._handle_rpc("", _NoMethods(), (), state, loop, False)
                _kept(cygrpc._schedule_rpc_coro(answer, state, loop, ""))
        except cygrpc._RequestCallError:
            pass  # the server has been stopped
        except Exception:
            log.exception("calls to unknown methods are not answered any more")


def server(options: Sequence[tuple[str, Any]], maximum_concurrent_rpcs: int) -> Any:
    """A server, not yet started."""
    plain = cygrpc.AioServer
    cygrpc.AioServer = _Server if MENDED else plain  # grpc.aio.server takes no class
    try:
        return grpc.aio.server(options=options, maximum_concurrent_rpcs=maximum_concurrent_rpcs)
    finally:
        cygrpc.AioServer = plain
