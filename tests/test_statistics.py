"""What a scene's bands hold, strip by strip, against numpy over all of it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from decoder_node.statistics import Statistics
from downlink.scene import Band, Grid
from tests import scenes


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0), ("uint16", None), ("int16", -9999), ("uint8", 0)])
def test_they_are_those_of_the_valid_pixels(dtype: str, nodata: int | None) -> None:
    pixels = scenes.pixels(bands=3, height=90, width=70, dtype=dtype, nodata=nodata)
    pixels[2] = 5 if nodata is None else nodata  # a band of one value, or without any
    grid = Grid(90, 70, dtype, tuple(Band(f"B{n}") for n in range(3)), nodata)  # type: ignore[arg-type]
    gathered = Statistics(grid)
    for strip in np.split(pixels, [17, 64], axis=1):
        gathered.add(strip)
    for band, values in enumerate(pixels):
        valid = values if nodata is None else values[values != nodata]
        found = gathered.of_band(band)
        assert found.pop("valid_percent") == pytest.approx(100 * valid.size / values.size, abs=1e-4)
        if not valid.size:
            assert found == {}
            continue
        assert (found["minimum"], found["maximum"]) == (valid.min(), valid.max())
        assert found["mean"] == pytest.approx(valid.mean(dtype=np.float64), abs=1e-4)
        assert found["stddev"] == pytest.approx(valid.std(dtype=np.float64), abs=1e-3)
        assert msgspec.json.decode(msgspec.json.encode(found)) == found


def test_large_values_lose_nothing() -> None:
    """A variance of 1 at 65 000, over more pixels than floats would keep it for by sums of squares in 32 bits."""
    pixels = np.full((1, 1200, 1200), 64999, np.uint16)
    pixels[0, ::2] = 65001
    gathered = Statistics(Grid(1200, 1200, "uint16", (Band("B1"),)))
    gathered.add(pixels)
    assert gathered.of_band(0)["stddev"] == 1.0
