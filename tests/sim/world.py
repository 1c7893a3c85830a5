"""One run: a few edges, one ground, and all that can go wrong, drawn from a seed; then no more faults, and everything
must arrive."""

from __future__ import annotations

import random
from pathlib import Path

from downlink.ranges import runs_of
from downlink.request import Cancel, Refine, Request, SetPriority, SetTarget
from tests.sim.edge import EdgeMachine
from tests.sim.ground import GroundMachine
from tests.sim.judge import Broken, Judge
from tests.sim.network import Time, Weather
from tests.streams import Stream, stream

STREAMS = 12  # made once, shared by all runs
BOUND_S = 4 * 3600.0  # from the end of the faults until everything has arrived, at the latest
EVENTS_MAX = 50_000


class World:
    """A seed's run. `run` raises `Broken`. When `calm`, nothing goes wrong but what the caller arranges. With `asks`,
    the ground asks for things; None: in one of seven runs."""

    def __init__(self, seed: int, calm: bool = False, asks: bool | None = None) -> None:
        source = self.source = random.Random(seed)
        self._asking = random.Random(seed + 1_000_000)  # of its own: the rest of a run stays as it is
        self._asks = self._asking.random() < 0.15 and not calm if asks is None else asks
        self.time = Time()
        chosen = source.sample(range(STREAMS), source.choice([1, 1, 2, 2, 3, 4, 7]))
        made = [stream(number, chunk_bytes=30) for number in chosen]
        capacity = 1 << 20 if calm else source.choice([1 << 20, 1 << 20, source.randint(600, 4000)])
        self.ground = GroundMachine(self.time, random.Random(source.random()), Path("/archive"), capacity)
        self.ground.places = source.choice([1, 2, 4])
        self.judge = self.ground.judge = Judge(Path("/archive"), self.ground.disk, self.ground.database, made)
        self.edges = []
        for _ in range(source.choice([1, 1, 2])):
            fair = calm or source.random() < 0.2
            weather = Weather(
                rate=10 ** source.uniform(2, 5),
                delay_s=source.choice([0.005, 0.3, 2.5]),
                lose=0 if fair else source.choice([0, 0, 0.02, 0.1]),
                repeat=0 if fair else source.choice([0, 0.1]),
                reorder=0 if fair else source.choice([0, 0, 0.1]),
                damage=0 if fair else source.choice([0, 0, 0.02, 0.1]),
            )
            frame_bytes, window = source.choice([30, 120, 400]), source.choice([1, 100, 500, 20_000])
            edge = EdgeMachine(self.time, random.Random(source.random()), self.ground, weather, frame_bytes, window)
            if source.random() < 0.25:
                edge.passes = (300.0, source.choice([30.0, 120.0]))
            self.edges.append(edge)
        self.faults_s = source.choice([20.0, 120.0, 600.0])
        self.submitted = self._submit(made)
        self.asked = self._plan_asks(made) if self._asks else 0
        if not calm:
            self._plan_faults()

    def _submit(self, made: list[Stream]) -> int:
        """When which scene is submitted where; how often in all."""
        source, time = self.source, self.time
        self.ground.start()
        for edge in self.edges:
            edge.start()
        count = 0
        for one in made:
            edges = self.edges if source.random() < 0.2 else [source.choice(self.edges)]  # twice: the same scene
            for edge in edges[:1] if self._asks else edges:
                count += 1
                moment, priority = source.uniform(0, self.faults_s / 2), source.choice([0, 0, 5])
                layers = self._asking.choice([None, 1, 1]) if self._asks else None
                submit = (one, priority, layers)
                time.at(moment, lambda edge=edge, submit=submit: edge.submit(*submit))
        return count

    def _plan_asks(self, made: list[Stream]) -> int:
        """What is asked for when; how often in all. All of each scene is asked for, unless it is called off."""
        source = self._asking
        requests: list[Request] = [SetTarget("quality", float(source.randrange(100)))]
        for one in made:
            some = runs_of(source.sample(range(len(one.chunks)), source.randint(1, 5)))
            more: list[Request] = [
                Refine(one.id, 0, some), Refine(one.id, 1), Refine(one.id), SetPriority(one.id, source.randint(-9, 9)),
                SetTarget("psnr_db", float(source.randint(10, 90)), 1),
            ]  # fmt: skip
            if source.random() < 0.2:
                more.append(Cancel(one.id))
                self.judge.called_off.add(one.id)
            requests += source.sample(more, source.randint(0, len(more)))
            requests.append(Refine(one.id))
        for request in requests:
            self.time.at(source.uniform(0, self.faults_s), lambda request=request: self.ground.ask(request))
        return len(requests)

    def _plan_faults(self) -> None:
        """What goes wrong when."""
        source, time = self.source, self.time
        for edge in self.edges:
            for _ in range(source.choice([0, 0, 1, 5])):
                time.at(source.uniform(0, self.faults_s), edge.cut)
        for machine in (self.ground, *self.edges):
            for _ in range(source.choice([0, 0, 1, 3])):  # at a moment, ...
                power_cut = source.random() < 0.5
                time.at(source.uniform(0, self.faults_s), lambda m=machine, p=power_cut: m.up and m.stop(p))
            trouble = machine.trouble
            for _ in range(source.choice([0, 0, 1, 2])):  # ... or in the middle of an operation
                moment, more = source.uniform(0, self.faults_s), source.randint(1, 30)
                time.at(moment, lambda t=trouble, n=more: setattr(t, "stop_at", t.operations + n))
            for _ in range(source.choice([0, 0, 1, 3])):
                moment, more = source.uniform(0, self.faults_s), source.randint(1, 30)
                time.at(moment, lambda t=trouble, n=more: setattr(t, "fail_at", t.operations + n))

    def run(self) -> None:
        """Faults first, then none."""
        events = 0
        healed = False
        while True:
            if not healed and self.time.now >= self.faults_s:
                healed = True
                self._heal()
            if healed and self.time.now > self.faults_s + BOUND_S:
                left = [edge.undelivered() for edge in self.edges]
                left += [[entry.what for entry in self.ground.asks.entries() if entry.state == "waiting"]]
                raise Broken(f"{BOUND_S:.0f} s after the last fault, {left} is still not delivered")
            if healed and events % 8 == 0 and self._done():
                break
            if not self.time.step() or (events := events + 1) > EVENTS_MAX:
                raise Broken(f"nothing gets on: {events} events, now {self.time.now:.0f} s")
        for edge in self.edges:
            edge.check()
        self.judge.check_end(self.ground.ledger)

    def _heal(self) -> None:
        self.ground.disk.capacity = 1 << 30
        for machine in (self.ground, *self.edges):
            machine.trouble.fail_at = machine.trouble.stop_at = None
        for edge in self.edges:
            edge.weather.clear()

    def _done(self) -> bool:
        edges = self.edges
        return (
            self.ground.up
            and self.ground.asked == self.asked
            and all(entry.state != "waiting" for entry in self.ground.asks.entries())
            and sum(len(edge.scenes) for edge in edges) == self.submitted
            and all(edge.up and not edge.undelivered() for edge in edges)
        )
