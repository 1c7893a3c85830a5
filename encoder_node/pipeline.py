"""Scene -> stream: statistics, step, then row of tiles by row of tiles through the network and the entropy coder to
the spool.

Memory holds one strip, one tile's activations and the chunk index, whatever the scene's height.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from downlink import limits
from downlink.errors import SceneError
from downlink.lattice import Resolution, join, lattices, resolution_of
from downlink.quality import default_peak
from downlink.reference import Reference, alike
from downlink.repeat import Repetition
from downlink.scene import Scene, validate
from encoder_node.encoder import PlaneEncoder
from encoder_node.exact import encode_exact
from encoder_node.lattice_encoder import LatticeEncoder
from encoder_node.source import Source
from encoder_node.spool import EncodedScene, Spool
from encoder_node.survey import Survey
from encoder_node.target import Estimate, Target, rate_slope, search_step, secant, step_of_quality
from encoder_node.tiles import LatticeReader, NotRepeated, sample_windows
from encoder_node.weights import check_names

TILE = 256
SMALL_PX = 640
"""Scenes with sides up to this are cut into fewer tiles of up to TILE_PX_MAX instead: a sliver beyond a tile's edge
costs chunks of its own, and sees nothing beside it. Not where importance differs from tile to tile."""
REFERENCE_WORTH = 0.01
"""Share of a lattice's bits that a reference must save: it binds two scenes together."""
RATE_ROUNDS = 4
"""How often a scene is encoded again whose rate came out otherwise than the sample tiles promised."""
MANIFEST_BYTES = 256
"""About what a manifest takes."""

Progress = Callable[[int, int], None]


def readers_of(source: Source, resolutions: Sequence[Resolution], side: int | None = None) -> list[LatticeReader]:
    """The lattices of a scene as they are cut and read: in tiles of this side, or of what fits."""
    return [
        LatticeReader(source, lattice, number, side or tile_side(lattice.height, lattice.width))
        for number, lattice in enumerate(lattices(source.scene, resolutions))
    ]


def tile_side(height: int, width: int) -> int:
    """Pixels along the tiles of a lattice: the smallest of those from TILE on that leaves fewest of them."""
    if max(height, width) > SMALL_PX:
        return TILE
    sides = range(TILE, limits.TILE_PX_MAX + 1, limits.TILE_PX_MULTIPLE)
    return min(sides, key=lambda side: -(-height // side) * -(-width // side))


def _steps(target: Target, scene: Scene, encoders: list[LatticeEncoder]) -> list[float]:
    """One step per lattice. Searched targets share one step in DN over the whole scene: equal error everywhere."""
    if not target.rate and target.psnr_db is None:
        quality = float(target.settings["quality"])
        return [step_of_quality(quality, encoder.reader.grid.dtype) for encoder in encoders]

    peak = default_peak(scene)

    def estimate(step: float) -> Estimate:
        parts = [encoder.estimate(step) for encoder in encoders]
        bits = sum(part[0] for part in parts) + 8 * MANIFEST_BYTES
        return Estimate(bits / scene.samples, sum(part[1] for part in parts) / scene.samples, peak)

    step = search_step(target, step_of_quality(46.0, scene.grids[0].dtype), estimate, scene.samples)
    return [step] * len(encoders)


def _against(encoders: list[LatticeEncoder], steps: list[float], reference: Reference) -> list[LatticeEncoder]:
    """Encoders of which some code their lattice against a reference, where that is cheaper; empty if none is."""
    if not alike([one.reader.lattice for one in encoders], reference.manifest.lattices()):
        return []
    chosen = []
    for one, step, known in zip(encoders, steps, reference.lattices, strict=True):
        other = one.against(known, step)
        if other is not None:
            bits, alone = one.expense(step)
            if other.expense(step)[1] > alone - REFERENCE_WORTH * bits:
                other = None
        chosen.append(other or one)
    if all(one.foresight is None for one in chosen):
        return []
    for one in chosen:
        one.referring = True
    return chosen


def resolutions_of(source: Source) -> tuple[Resolution, ...]:
    """Which grids of a scene lie on each other and which bands repeat their pixels, from sample windows (checked again
    on every strip that is read)."""
    scene = source.scene
    joined = join(scene)
    if joined:
        return joined
    found = []
    for number, grid in enumerate(scene.grids):
        repetition = Repetition(len(grid.bands))
        for window in sample_windows(grid):
            repetition.add(source.read(number, window), window.row, window.col)
        found.append(resolution_of([repetition.found(band) for band in range(len(grid.bands))]))
    return tuple(found) if any(resolution.repeats for resolution in found) else ()


def encode_scene(
    source: Source,
    encoder: PlaneEncoder,
    target: Target,
    spool_dir: Path | None = None,
    progress: Progress | None = None,
    reference: Reference | None = None,
    survey: Survey | None = None,
) -> EncodedScene:
    """Encode a scene. `progress(done, total)` counts tiles. A `reference` is used if that takes fewer bits, and if its
    lattices are the scene's. A `survey` is shown all tiles, and what it has seen stands in the manifest. Raises
    SceneError for input that cannot be taken."""
    validate(source.scene)
    if target.max_error is not None:
        return encode_exact(source, target.max_error, target.settings, spool_dir, progress, survey)
    check_names(target.weights, [band for grid in source.scene.grids for band in grid.bands])
    resolutions = resolutions_of(source)
    try:
        return _encode(source, encoder, target, resolutions, spool_dir, progress, reference, survey)
    except NotRepeated:  # sample windows had promised more than the whole scene keeps
        return _encode(source, encoder, target, (), spool_dir, progress, reference, survey)


def _encode(
    source: Source,
    encoder: PlaneEncoder,
    target: Target,
    resolutions: tuple[Resolution, ...],
    spool_dir: Path | None,
    progress: Progress | None,
    reference: Reference | None,
    survey: Survey | None,
) -> EncodedScene:
    scene = source.scene
    importance = None if target.importance is None else target.importance.on(scene.grids[0])
    readers = readers_of(source, resolutions, TILE if importance else None)
    if survey is not None:
        survey.begin(readers)
    encoders = [LatticeEncoder(reader, encoder, target.weights, importance) for reader in readers]
    steps = _steps(target, scene, encoders)
    chosen = [] if reference is None else _against(encoders, steps, reference)
    if chosen:
        encoders, steps = chosen, _steps(target, scene, chosen)
        if survey is not None:
            survey.begin([one.reader for one in chosen])
    based_on = bytes.fromhex(reference.scene_id) if chosen and reference is not None else b""
    done, total = 0, sum(len(reader.tiles) for reader in readers)

    def advance() -> None:
        nonlocal done
        done = min(done + 1, total)
        if progress is not None:
            progress(done, total)

    def encoded() -> EncodedScene:
        spool = Spool(spool_dir)
        try:
            codings = tuple(one.encode(step, spool, advance) for one, step in zip(encoders, steps, strict=True))
            bundle = encoder.bundle
            cover = None if survey is None else survey.cover
            settings = target.settings
            return EncodedScene(spool, scene, codings, bundle.id, bundle.name, settings, resolutions, based_on, cover)
        except BaseException:
            spool.close()
            raise

    found = encoded()
    before: tuple[float, float] | None = None
    for _ in range(RATE_ROUNDS):
        if target.met_by(found.stream_bytes, scene.samples):
            break
        rate = 8 * found.stream_bytes / scene.samples
        now = math.log2(steps[0]), math.log2(rate / target.sample_bits(scene.samples))
        octaves = now[1] / secant(before, now, rate_slope(rate))
        before = now
        steps = [min(max(step * 2**octaves, limits.STEP_MIN), limits.STEP_MAX) for step in steps]
        found.close()
        found = encoded()
    if target.stream_bytes is not None and found.stream_bytes > target.stream_bytes:
        found.close()
        raise SceneError(
            f"the scene takes {found.stream_bytes} bytes at the coarsest step tried, {target.stream_bytes} were "
            "allowed; allow more, or cut the scene"
        )
    return found
