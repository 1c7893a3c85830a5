"""What an encoder has seen in each tile of a scene: its land cover and how much of it is cloud, two bytes a tile.

In the manifest, so the ground has it before the first chunk. It names its own classes: a reader knows no head and no
list of them. Pure. Refused (`Malformed`): other lengths than the tiles ask for, classes without a name, shares above
100 %.
"""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from downlink import limits
from downlink.errors import Malformed
from downlink.scene import check_text

UNKNOWN: Final = 255
"""In the place of a class and of a share: of the tile's pixels none is valid."""
CLASSES_MAX: Final = 32
CLASS_CHARS_MAX: Final = 64


class Cover(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Positional on the wire: never reorder the fields."""

    lattice: int  # whose tiles these are
    classes: Annotated[tuple[str, ...], Meta(max_length=CLASSES_MAX)]
    tiles: Annotated[bytes, Meta(max_length=2 * limits.CHUNKS_MAX)]
    """The class of each tile, then the share of cloud of each in per cent; or `UNKNOWN`."""

    @classmethod
    def of(cls, lattice: int, classes: tuple[str, ...], kinds: NDArray[np.uint8], clouds: NDArray[np.uint8]) -> Cover:
        return cls(lattice, classes, kinds.astype(np.uint8).tobytes() + clouds.astype(np.uint8).tobytes())

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """The number of each tile's class."""
        return np.frombuffer(self.tiles[: len(self.tiles) // 2], np.uint8)

    @property
    def clouds(self) -> NDArray[np.uint8]:
        """Per cent of each tile that are cloud."""
        return np.frombuffer(self.tiles[len(self.tiles) // 2 :], np.uint8)

    @property
    def shares(self) -> dict[str, float]:
        """Of the tiles that are known, how many per cent each class has that there is; the largest first."""
        known = self.kinds[self.kinds != UNKNOWN]
        counts = np.bincount(known, minlength=len(self.classes)) / max(1, len(known))
        order = np.argsort(-counts, kind="stable").tolist()
        return {self.classes[kind]: round(100 * float(counts[kind]), 1) for kind in order if counts[kind]}

    def validate(self, tiles: int) -> None:
        """Raise unless it can be that of a lattice of so many tiles."""
        if len(self.tiles) != 2 * tiles:
            raise Malformed(f"cover: {len(self.tiles)} bytes for {tiles} tiles; each takes 2")
        if len(set(self.classes)) != len(self.classes) or not self.classes:
            raise Malformed(f"cover: classes {', '.join(self.classes)[:64]!r}; they must differ, and there must be one")
        for name in self.classes:
            check_text(name, "class of a cover")
            if not 0 < len(name) <= CLASS_CHARS_MAX:
                raise Malformed(f"cover: a class of {len(name)} characters; a name has 1 to {CLASS_CHARS_MAX}")
        for numbers, most, what in ((self.kinds, len(self.classes) - 1, "class"), (self.clouds, 100, "share")):
            wrong = numbers[(numbers > most) & (numbers != UNKNOWN)]
            if len(wrong):
                raise Malformed(f"cover: {what} {wrong[0]}; {most} is the largest, {UNKNOWN} says that none is known")
