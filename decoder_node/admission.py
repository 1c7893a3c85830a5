"""Who may do what, and how much of it: nodes, their streams, their scenes' bundles.

A node has at most `STREAMS_PER_NODE_MAX` streams. One more takes the place of its oldest, which may well be a dead
connection that nobody has noticed yet: a node can push out itself, never another. A node that comes back more than
`HELLOS_PER_MINUTE_MAX` times a minute is sent away. Peers without a certificate cannot be told apart but by their
address, and one address may be many nodes: `NODES_MAX` times as much is theirs.

Knows no gRPC and no clock. Nothing here outlives the process; who a scene belongs to is in the ledger.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from decoder_node.identity import NOBODY
from downlink import limits
from downlink.errors import LinkError
from downlink.manifest import NO_BUNDLE


class Denied(LinkError):
    """This node may not connect."""

    code = "permission_denied"


class TooBusy(LinkError):
    """This node asks for too much; later it may."""

    code = "resource_exhausted"


@dataclass(eq=False, slots=True)
class Seat:
    """The place of one stream. `wanted` is set when a newer stream of the same node takes it."""

    node: str
    address: str
    wanted: asyncio.Event = field(default_factory=asyncio.Event)


class Admission:
    """What the operator allows. Empty `nodes`: all that the CA has signed. Empty `bundles`: all."""

    def __init__(self, nodes: Collection[str] = (), bundles: Collection[bytes] = ()) -> None:
        self._nodes = frozenset(nodes)
        self._bundles = frozenset(bundles)
        self._seats: dict[tuple[str, str], list[Seat]] = {}  # by node, or by address where there is no node
        self._arrivals: dict[tuple[str, str], deque[float]] = {}  # of the last minute

    def enter(self, node: str, address: str, now: float) -> Seat:
        """Let a stream in. Raises `Denied` or `TooBusy`."""
        if self._nodes and node not in self._nodes:
            raise Denied(f"node {node or 'without a name'!r} is not among the {len(self._nodes)} that are let in here")
        key, share = _key(node, address)
        self._forget(now)
        arrivals = self._arrivals.setdefault(key, deque())
        if len(arrivals) >= share * limits.HELLOS_PER_MINUTE_MAX:
            raise TooBusy(f"{len(arrivals)} streams within a minute, as many as are allowed; wait a minute")
        arrivals.append(now)
        seats = self._seats.setdefault(key, [])
        standing = [seat for seat in seats if not seat.wanted.is_set()]
        if len(standing) >= share * limits.STREAMS_PER_NODE_MAX:
            standing[0].wanted.set()
        seat = Seat(node, address)
        seats.append(seat)
        return seat

    def leave(self, seat: Seat) -> None:
        """A stream has ended."""
        key, _ = _key(seat.node, seat.address)
        self._seats[key].remove(seat)
        if not self._seats[key]:
            del self._seats[key]

    def trusts(self, bundle: bytes) -> bool:
        """May scenes that were coded with this bundle be taken and decoded?"""
        return not self._bundles or bundle in self._bundles or bundle == NO_BUNDLE

    def _forget(self, now: float) -> None:
        """Whoever has not come for a minute has never been here: a flood of addresses leaves nothing behind."""
        for key in [key for key, arrivals in self._arrivals.items() if arrivals[-1] <= now - 60]:
            del self._arrivals[key]
        for arrivals in self._arrivals.values():
            while arrivals[0] <= now - 60:
                arrivals.popleft()


def _key(node: str, address: str) -> tuple[tuple[str, str], int]:
    """Under which name a stream counts, and how many nodes may be behind that name."""
    return ((NOBODY, address), limits.NODES_MAX) if node == NOBODY else ((node, ""), 1)
