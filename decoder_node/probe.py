"""What any client may ask without being a sender: health (grpc.health.v1), and reflection of the schema.

Both have calls that a client could keep open for ever; here each ends after `PROBE_S`, and beyond `PROBES_MAX` at a
time they are refused with `RESOURCE_EXHAUSTED`. So they never take the places of streams.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from downlink import limits


class Probes:
    """Both services, on one server."""

    def __init__(self, server: Any, services: Sequence[str]) -> None:
        self._services = services
        self._asked = 0
        self._health = _Health(self._place)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_Reflection(names, self._place), server)

    async def ready(self) -> None:
        """Say SERVING."""
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def leaving(self) -> None:
        """Say NOT_SERVING, for good."""
        await self._health.enter_graceful_shutdown()

    @contextlib.asynccontextmanager
    async def _place(self, context: Any) -> AsyncIterator[None]:
        if self._asked >= limits.PROBES_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many ask at once; try again")
        self._asked += 1
        try:
            async with asyncio.timeout(limits.PROBE_S):
                yield
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"calls end after {limits.PROBE_S:g} s; ask again")
        finally:
            self._asked -= 1


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    def __init__(self, place: Any) -> None:
        super().__init__()
        self._place = place

    async def Check(self, request: Any, context: Any) -> Any:
        async with self._place(context):
            return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:
        async with self._place(context):
            await super().Watch(request, context)


class _Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    def __init__(self, names: Sequence[str], place: Any) -> None:
        super().__init__(names)
        self._place = place

    async def ServerReflectionInfo(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async with self._place(context):
            async for answer in super().ServerReflectionInfo(request_iterator, context):
                yield answer
