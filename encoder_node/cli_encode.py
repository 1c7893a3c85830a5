"""`encoder-node encode` and `submit`: a scene becomes a stream, in a file or in the outbox."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from downlink.errors import DownlinkError, SceneError, StreamError
from encoder_node.durable import shown, whole_file
from encoder_node.options import (
    bytes_of,
    land_cover_option,
    layers_of,
    layers_option,
    model_of,
    outbox_folder,
    outbox_mb,
    priority_option,
    reference_option,
    skip_clouds_option,
    target_of,
    target_options,
)

if TYPE_CHECKING:
    from downlink.reference import Reference
    from encoder_node.encoder import PlaneEncoder
    from encoder_node.outbox import Entry, Outbox
    from encoder_node.source import Source
    from encoder_node.spool import EncodedScene
    from encoder_node.survey import Survey
    from encoder_node.target import Target

    Known = Callable[[Source, PlaneEncoder], contextlib.AbstractContextManager[Reference | None]]


@click.command()
@click.argument("scene", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@target_options
@skip_clouds_option
@land_cover_option
@click.option(
    "--reference", type=click.Path(path_type=Path, exists=True), metavar="REF.dl|DIR",
    help="Code what differs from this stream of the same place, if that is less; of a folder, from its newest.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def encode(
    scene: Path, out: Path, model: str | None, threads: int, reference: Path | None, as_json: bool, **_: object
) -> None:
    """Encode SCENE into the stream file OUT.

    SCENE is a GeoTIFF, a JPEG 2000, a Sentinel-2 .SAFE product, an .npy array (bands, height, width), or a raw file
    with a JSON side-car. OUT appears whole or not at all.

    \b
    encoder-node encode scene.tif scene.dl
    encoder-node encode scene.tif scene.dl --bits-per-sample 0.5
    encoder-node encode S2A_MSIL2A_20260101.SAFE scene.dl --psnr 48 --json
    encoder-node encode scene.tif scene.dl --bits-per-sample 0.1 --importance burnt-areas.geojson
    encoder-node encode tuesday.tif tuesday.dl --reference monday.dl
    """
    from encoder_node.reference_files import reference_of

    began = time.monotonic()
    target = target_of()
    if not out.parent.is_dir():
        raise SceneError(f"{shown(out.parent)} is not a folder; make it first")
    _check_out(scene, out)
    known = None if reference is None else partial(reference_of, reference)
    with _encoded(scene, model_of(model), target, threads, out.parent, known) as encoded:
        with whole_file(out) as file:
            encoded.write(file)
        facts = _facts(encoded, began) | {"path": shown(out)}
    if as_json:
        print(json.dumps(facts))
    else:
        print(
            f"{facts['path']}: {facts['bytes']} bytes, {facts['ratio']:.1f}:1, "
            f"{facts['bits_per_sample']:.3f} bits/sample, {facts['encode_s']:.1f} s"
        )


@click.command()
@click.argument("scenes", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SCENE...")
@outbox_folder
@target_options
@priority_option
@skip_clouds_option
@land_cover_option
@reference_option
@layers_option
@outbox_mb
@click.option("--unless-delivered", is_flag=True, help="Do nothing about a scene that the ground has had already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per scene.")
def submit(
    scenes: tuple[Path, ...],
    outbox: Path,
    model: str | None,
    threads: int,
    priority: int | None,
    reference: str | None,
    layers: int | None,
    outbox_mb: float | None,
    unless_delivered: bool,
    as_json: bool,
    **_: object,
) -> None:
    """Encode each SCENE and keep it in the outbox until the ground has it.

    A scene's id is printed when the scene is safe on disk: from then on it is not lost, whatever happens to this
    machine's power. The same scene submitted twice is one scene, of the higher priority of the two. One that was
    delivered before is queued once more: the ground answers at once if it still has it. A .dl file made by `encode` is
    queued as it is.

    A full outbox refuses new scenes, with exit code 75; it never drops one that it has taken. What the ground asks of
    scenes that are not encoded yet (`decoder-node ask target`) counts unless something else is typed here.

    \b
    encoder-node submit a.tif b.tif --outbox /var/lib/encoder-node
    encoder-node submit fire.tif --outbox /var/lib/encoder-node --priority 10 --quality 60
    encoder-node submit *.tif --outbox /var/lib/encoder-node --priority anomaly
    encoder-node submit tuesday.tif --outbox /var/lib/encoder-node --reference last
    encoder-node submit scene.dl --outbox /var/lib/encoder-node
    """
    from encoder_node.outbox import Outbox
    from encoder_node.reference_outbox import ReferenceGone

    failures = []
    with Outbox(outbox, create=True, bytes_max=bytes_of(outbox_mb), reserve=True) as box:
        asked = box.target()
        target, layers, bundle = target_of(asked), layers_of(layers, asked), model_of(model, outbox)
        again = not unless_delivered
        known = box.references.of if reference == "last" else None
        if known is not None:
            box.references.bind()  # from now on delivered scenes are retained
        for scene in scenes:
            began = time.monotonic()
            try:
                box.check_room()  # before the work
                if scene.suffix == ".dl":
                    entry, facts = _submit_stream(box, scene, priority, again, layers)
                else:
                    keep = partial(_keep, box, priority=priority, again=again, layers=layers, began=began)
                    try:
                        with _encoded(scene, bundle, target, threads, outbox, known) as encoded:
                            entry, facts = keep(encoded)
                    except (ReferenceGone, StreamError):  # the reference was replaced meanwhile, or is damaged on disk
                        if known is None:
                            raise
                        with _encoded(scene, bundle, target, threads, outbox) as encoded:
                            entry, facts = keep(encoded)
            except (DownlinkError, OSError) as error:
                if len(scenes) == 1:
                    raise
                failures.append(scene)
                click.echo(f"Error: {shown(scene)}: {error}", err=True)
                continue
            print(json.dumps({**facts, **entry.row(), "path": shown(scene)}) if as_json else entry.scene_id, flush=True)
    if failures:
        raise SceneError(f"{len(failures)} of {len(scenes)} scenes were not submitted")


def _check_out(scene: Path, out: Path) -> None:
    """Refuse an OUT that would put the stream in the place of what it is made from."""
    if out.is_dir():
        raise SceneError(f"{shown(out)} is a folder; name a file in it, e.g. {shown(out / scene.stem)}.dl")
    if out.exists() and scene.exists() and out.samefile(scene):
        raise SceneError(f"{shown(out)} is the same file as the scene, which would be lost; name another OUT")
    there, target = scene.resolve(), out.resolve()
    for folder in (there, *there.parents):
        if folder.suffix.upper() == ".SAFE" and target.is_relative_to(folder):
            raise SceneError(f"{shown(out)} lies inside the product {shown(folder)}; name an OUT outside of it")
    beside = target.parent == there.parent and out.name.startswith(scene.stem)  # its side-car or header, perhaps
    if out.exists() and out.suffix != ".dl" and (beside or (scene.is_dir() and target.is_relative_to(there))):
        raise SceneError(f"{shown(out)} looks like a part of the scene and would be lost; name another OUT")


@contextlib.contextmanager
def _encoded(
    scene: Path, model: str, target: Target, threads: int, spool: Path, known: Known | None = None
) -> Iterator[EncodedScene]:
    """A scene, encoded, against the reference that is `known` for it, if there is one; its chunks wait in a temporary
    file in `spool`."""
    from encoder_node.source import open_source

    source: Source = open_source(scene)
    try:
        for note in source.notes:
            click.echo(f"Note: {shown(scene)}: {note}", err=True)
        given, survey, found = click.get_current_context().params, None, {}
        if given["land_cover"] or given["skip_clouds"] is not None:
            from encoder_node.survey import Survey, released_head

            survey = Survey(released_head())
        if survey is not None and given["skip_clouds"] is not None:
            from encoder_node.clouds import CloudFree

            source = free = CloudFree(source, given["skip_clouds"], survey, exactly=target.max_error is not None)
            found = free.skipped
        with _encode(source, model, target, threads, spool, known, survey if given["land_cover"] else None) as encoded:
            if survey is not None:
                encoded.annotate({"cloud_percent": round(survey.cloud_percent, 1), **found})
            yield encoded
    finally:
        source.close()


@contextlib.contextmanager
def _encode(
    source: Source, model: str, target: Target, threads: int, spool: Path, known: Known | None, survey: Survey | None
) -> Iterator[EncodedScene]:
    """By method `exact`, or through a bundle's network."""
    with _progress(source.scene.name) as progress:
        if target.max_error is not None:
            from encoder_node.exact import encode_exact

            with encode_exact(source, target.max_error, target.settings, spool, progress, survey) as encoded:
                yield encoded
            return
        from downlink.bundle import find
        from encoder_node.encoder import PlaneEncoder
        from encoder_node.pipeline import encode_scene

        encoder = PlaneEncoder(find(model), threads, click.get_current_context().params["effort"])
        with (
            contextlib.nullcontext() if known is None else known(source, encoder) as reference,
            encode_scene(source, encoder, target, spool, progress, reference, survey) as encoded,
        ):
            yield encoded


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, if somebody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield advance


def _keep(
    box: Outbox, encoded: EncodedScene, *, priority: int | None, again: bool, layers: int | None, began: float
) -> tuple[Entry, dict[str, Any]]:
    """Queue an encoded scene."""
    from encoder_node.anomaly import Urgency, urgency_of

    urgency = Urgency(priority or 0)
    if priority is None:
        urgency = urgency_of(encoded.manifest, encoded.lengths)
        encoded.annotate({} if urgency.alert is None else {"alert": urgency.alert})
    entry = box.submit(
        encoded.manifest_bytes, encoded.chunks(), priority=urgency.priority, again=again, layers=layers,
        ahead=urgency.ahead, anchored=True,
    )  # fmt: skip
    return entry, _facts(encoded, began)


def _submit_stream(
    box: Outbox, path: Path, priority: int | None, again: bool, layers: int | None
) -> tuple[Entry, dict[str, Any]]:
    """Queue a stream file as it is."""
    from downlink.stream import StreamReader
    from encoder_node.anomaly import Urgency, urgency_of

    with path.open("rb") as file:
        reader = StreamReader(file)
        urgency = urgency_of(reader.manifest, reader.lengths) if priority is None else Urgency(priority)
        entry = box.submit(
            reader.manifest_bytes, reader.chunks(), priority=urgency.priority, again=again, layers=layers,
            ahead=urgency.ahead,
        )  # fmt: skip
        return entry, {"raw_bytes": reader.manifest.scene.raw_bytes}


def _facts(encoded: EncodedScene, began: float) -> dict[str, Any]:
    import resource

    from downlink.accelerator import native

    scene = encoded.manifest.scene
    size = encoded.stream_bytes
    return {
        "scene_id": encoded.scene_id,
        "name": scene.name,
        "bytes": size,
        "raw_bytes": scene.raw_bytes,
        "ratio": scene.raw_bytes / size,
        "bits_per_sample": 8 * size / scene.samples,
        "model": encoded.manifest.bundle_name,
        "settings": encoded.manifest.settings,
        "reference": encoded.manifest.reference.hex() or None,
        "native": native(),
        "encode_s": round(time.monotonic() - began, 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
