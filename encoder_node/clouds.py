"""Clouds are left on board: `--skip-clouds P` sends nothing of tiles of which more than P per cent is cloud.

What is cloud, the survey's head says (`encoder_node.survey`). It looks at all tiles before the first is encoded, so
pixels are read twice: a skipped tile must be nodata in the statistics and at its neighbours' borders as well.

Skipped tiles become nodata, in all grids of the scene, and cost next to nothing; the manifest's settings say which:

    cloud_percent = 37.2     of the scene          clouds_skipped = "3 of 64 tiles: 0,0; 256,0; 512,256"

Refused (`SceneError`): what the survey refuses, and grids without a nodata value.
"""

from __future__ import annotations

from typing import Final

from downlink.errors import SceneError
from downlink.scene import Scene
from downlink.tile import Window
from encoder_node import exact, pipeline
from encoder_node.source import Pixels, Source
from encoder_node.survey import Survey
from encoder_node.tiles import LatticeReader, NotRepeated

LISTED_CHARS: Final = 200


class CloudFree:
    """A source without its cloudy tiles: they read as nodata. `exactly`: as method `exact` cuts it."""

    def __init__(self, source: Source, percent: float, survey: Survey, exactly: bool = False) -> None:
        self.source = source
        lacking = next((grid for grid in source.scene.grids if grid.nodata is None), None)
        if lacking is not None:
            raise SceneError(
                f"clouds: a grid of {lacking.height} x {lacking.width} px has no nodata value, which skipped tiles "
                "would become; set one (gdal_translate -a_nodata 0), or leave --skip-clouds out"
            )
        reader = self._looked_over(survey, exactly)
        lattice, self._tiles = reader.lattice, len(reader.tiles)
        self._finest = [lattice.members[0].pixel * side for side in self._grid(lattice.members[0].grid)]
        self._skipped: list[Window] = []
        """In pixels of the finest grid."""
        for number in (survey.shares > percent).nonzero()[0].tolist():
            row, col, height, width = (lattice.unit * side for side in reader.tiles.tile(number).window)
            top, left = max(0, lattice.row + row), max(0, lattice.col + col)
            bottom = min(self._finest[0], lattice.row + row + height)
            right = min(self._finest[1], lattice.col + col + width)
            self._skipped.append(Window(top, left, bottom - top, right - left))

    def _looked_over(self, survey: Survey, exactly: bool) -> LatticeReader:
        if exactly:
            return survey.look_over(exact.readers_of(self.source))
        try:
            return survey.look_over(pipeline.readers_of(self.source, pipeline.resolutions_of(self.source)))
        except NotRepeated:
            return survey.look_over(pipeline.readers_of(self.source, ()))

    def _grid(self, number: int) -> tuple[int, int]:
        return self.scene.grids[number].height, self.scene.grids[number].width

    @property
    def scene(self) -> Scene:
        return self.source.scene

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    def read(self, grid: int, window: Window) -> Pixels:
        """As the source, but for cloudy tiles."""
        pixels = self.source.read(grid, window)
        own = self.scene.grids[grid]
        down, across = own.height / self._finest[0], own.width / self._finest[1]
        for hole in self._skipped:
            top, bottom = (round(edge * down) - window.row for edge in (hole.row, hole.row + hole.height))
            left, right = (round(edge * across) - window.col for edge in (hole.col, hole.col + hole.width))
            pixels[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = own.nodata
        return pixels

    def close(self) -> None:
        self.source.close()

    @property
    def skipped(self) -> dict[str, str | float]:
        """What was left out, as the manifest's settings state it."""
        if not self._skipped:
            return {}
        text = f"{len(self._skipped)} of {self._tiles} tiles: "
        for number, window in enumerate(self._skipped):
            part = ("; " if number else "") + f"{window.col},{window.row}"
            if len(text) + len(part) > LISTED_CHARS:
                text += "; …"
                break
            text += part
        return {"clouds_skipped": text}
