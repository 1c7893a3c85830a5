"""One connection between an edge and the ground."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.sim.network import Direction, Weather

if TYPE_CHECKING:
    from tests.sim.edge import EdgeMachine
    from tests.sim.ground import GroundMachine


class Wire:
    """Each end learns of a cut by itself, the ground's perhaps never."""

    def __init__(self, edge: EdgeMachine, ground: GroundMachine, weather: Weather, source: random.Random) -> None:
        time = edge.time
        self.down = Direction(time, weather, source, lambda message: ground.hear(self, message))
        self.up = Direction(time, weather, source, edge.hear)
        self.delay_s = weather.delay_s
