"""What each tile shows: its land cover, and how much of it is cloud, from the latents, while it is being encoded.

A small head (multinomial logistic regression, `head.json`, made by `python -m training.survey_head`) looks at every
block of 8 x 8 pixels in four bands: at its lowest latent, which is the block's mean, and at the energy of its other 63,
which is the square of its deviation. These are the codec's own coefficients of the single bands (`TilePixels.latents`),
before bands are decorrelated: after that they depend on the scene, the rate and the reference. Pixels are read once,
for this and for coding. A block's class is the one of the highest score. Of a tile are kept the most frequent class and
the share of blocks that are cloud or snow, which the head does not tell apart, nor thin cloud from ground.

Refused (`SceneError`): scenes without bands of those names at one resolution, and 8-bit ones (whose values are no
reflectances). Reflectance is DN / 10000; an offset that a product states is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from downlink.cover import UNKNOWN, Cover
from downlink.dct import BLOCK, FLAT
from downlink.errors import SceneError
from encoder_node.tiles import LatticeReader, TilePixels

REFLECTANCE: Final = 10000.0
Floats = NDArray[np.float32]


def features(latents: Floats) -> Floats:
    """Latents (bands, 64, blocks down, blocks across) in DN -> in reflectance, the mean of each block in each band,
    then its deviation: (2 bands, blocks down, blocks across). By Parseval's theorem, but for what mixing across the
    borders of blocks adds."""
    mean = latents[:, 0] / np.float32(FLAT * REFLECTANCE)
    rest = latents[:, 1:]
    energy = np.einsum("bcij,bcij->bij", rest, rest)
    return np.concatenate([mean, np.sqrt(energy) / np.float32(BLOCK * REFLECTANCE)])


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """scores = weights @ features + bias; the class of the highest score is a block's."""

    bands: tuple[str, ...]
    classes: tuple[str, ...]
    cloud: str
    """Which of the classes is cloud."""
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    made: str
    """Where it comes from, and how well it did."""

    def classify(self, latents: Floats) -> NDArray[np.intp]:
        """The class of each block, (blocks down, blocks across), from latents (bands, 64, …) in DN."""
        scores = np.tensordot(np.array(self.weights, np.float32), features(latents), 1)
        return np.asarray(np.argmax(scores + np.array(self.bias, np.float32)[:, None, None], axis=0))


def released_head() -> Head:
    """The head that comes with this program."""
    return msgspec.json.decode(resources.files("encoder_node").joinpath("head.json").read_bytes(), type=Head)


class Survey:
    """Looks at tiles as they are read. `begin`, then all tiles of the scene (`see`), then what was seen."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.lattice = 0
        self._places: NDArray[np.intp] = np.zeros(0, np.intp)
        self._counts: NDArray[np.int64] = np.zeros((0, len(head.classes)), np.int64)
        self._looked_over = False

    def begin(self, readers: Sequence[LatticeReader]) -> LatticeReader:
        """Be shown the tiles of these lattices, unless they have all been looked at before (`look_over`). Returns the
        one that has the bands."""
        chosen = next((reader for reader in readers if self._has_bands(reader)), None)
        if chosen is None:
            has = ", ".join(band.name for reader in readers for band in reader.grid.bands[:16])
            wanted = ", ".join(self.head.bands)
            raise SceneError(
                f"clouds and land cover: bands {wanted} are needed at one resolution, the scene has {has}; leave "
                "--land-cover and --skip-clouds out"
            )
        if chosen.grid.dtype == "uint8":
            raise SceneError(
                "clouds and land cover: 8-bit pixels are no reflectances; give a 16-bit product, or leave --land-cover "
                "and --skip-clouds out"
            )
        if not (self._looked_over and (chosen.number, len(chosen.tiles)) == (self.lattice, len(self._counts))):
            names = [band.name for band in chosen.grid.bands]
            self.lattice, self._looked_over = chosen.number, False
            self._places = np.array([names.index(name) for name in self.head.bands])
            self._counts = np.zeros((len(chosen.tiles), len(self.head.classes)), np.int64)
            chosen.watcher = self.see
        return chosen

    def _has_bands(self, reader: LatticeReader) -> bool:
        return set(self.head.bands) <= {band.name for band in reader.grid.bands}

    def look_over(self, readers: Sequence[LatticeReader]) -> LatticeReader:
        """Read and see all tiles now, before the scene is encoded."""
        reader = self.begin(readers)
        for row in range(reader.tiles.rows):
            for _ in reader.row(row):
                pass
        self._looked_over = True
        return reader

    def see(self, tile: TilePixels) -> None:
        """Judge a tile by its blocks of which at least half is valid."""
        latents, valid = tile.latents(self._places)
        kinds = self.head.classify(latents)[valid >= 0.5]
        self._counts[tile.number] = np.bincount(kinds, minlength=len(self.head.classes))

    @cached_property
    def _cloud(self) -> int:
        return self.head.classes.index(self.head.cloud)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Per cent of each tile that are cloud; of tiles without valid pixels, 0."""
        return np.asarray(100 * self._counts[:, self._cloud] / np.maximum(1, self._counts.sum(axis=1)))

    @property
    def cloud_percent(self) -> float:
        """Of all that is valid in the scene."""
        return float(100 * self._counts[:, self._cloud].sum() / max(1, self._counts.sum()))

    @property
    def cover(self) -> Cover:
        """What was seen, as the manifest states it."""
        known = self._counts.any(axis=1)
        kinds: Any = np.where(known, self._counts.argmax(axis=1), UNKNOWN)
        clouds: Any = np.where(known, self.shares.round(), UNKNOWN)
        return Cover.of(self.lattice, self.head.classes, kinds, clouds)
