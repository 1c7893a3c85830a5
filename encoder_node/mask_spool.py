"""Nodata masks of a grid on their way to the spool, tile by tile, before it is known which mode the grid needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from downlink import mask
from downlink.chunk import ChunkKey, Kind
from downlink.mask import MaskMode
from downlink.tile import TileGrid
from encoder_node.spool import Spool


class MaskSpool:
    """Keeps the masks of one grid. `mode` is "none" until a pixel is nodata, "shared" while all bands agree, and
    "bands" from the first tile whose bands differ: earlier tiles' masks are then repeated for every block of bands."""

    def __init__(self, grid: int, bands: int, tiles: TileGrid, spool: Spool) -> None:
        self.mode: MaskMode = "none"
        self._grid, self._bands, self._tiles, self._spool = grid, bands, tiles, spool

    def put(self, tile: int, hole: NDArray[np.bool_] | None) -> None:
        """Keep the mask of a tile, (bands, height, width) of its core; tiles come in order."""
        if hole is None or not hole.any():
            return
        if self.mode != "bands" and self._bands > 1 and bool((hole != hole[:1]).any()):
            self._unshare(tile)
            self.mode = "bands"
        elif self.mode == "none":
            self.mode = "shared"
        for number in range(mask.blocks(self.mode, self._bands)):
            planes = mask.block_bands(self.mode, self._bands, number)
            payload = mask.encode_mask(np.ascontiguousarray(hole[planes.start : planes.stop]))
            self._spool.put(ChunkKey(Kind.MASK, self._grid, tile, 0, number), payload)

    def _unshare(self, before: int) -> None:
        for number in range(before):
            window = self._tiles.tile(number).window
            payload = self._spool.get(ChunkKey(Kind.MASK, self._grid, number))
            if not payload:
                continue
            shared = mask.decode_mask(payload, (1, window.height, window.width))
            for block in range(mask.blocks("bands", self._bands)):
                count = len(mask.block_bands("bands", self._bands, block))
                repeated = np.ascontiguousarray(np.broadcast_to(shared, (count, *shared.shape[1:])))
                self._spool.put(ChunkKey(Kind.MASK, self._grid, number, 0, block), mask.encode_mask(repeated))
