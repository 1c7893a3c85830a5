"""A row of the laboratory: one TOML file, its trials as `[[variants]]` that override some of it.

    name = "sparse"
    claims = [{ says = "…", figure = "bits", more = "plain", less = "l1" }]
    [network]
    code = 64
    [[variants]]
    name = "l1"
    penalties = { l1 = 0.02 }

Unknown keys are refused wherever they stand.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from training.config import ConfigError, Schedule

FOLDER = Path(__file__).parents[1] / "configs" / "lab"


class Patches(Struct, frozen=True, forbid_unknown_fields=True):
    """What is cut from the places."""

    side: int = 4
    """Pixels along a side."""
    per_place: int = 96
    """Patches drawn from a place, so that large scenes do not dominate."""
    most: int = 6000
    """Training patches in all (few of them: a network can know them by heart)."""
    batch: int = 128


class Network(Struct, frozen=True, forbid_unknown_fields=True):
    """What `architectures.build` makes."""

    architecture: Literal["dense", "convolutional"] = "dense"
    widths: tuple[int, ...] = ()
    """Hidden units (or channels) of each stage before the code; none and no activation: a linear autoencoder."""
    code: int = 8
    """Numbers per patch (dense), or channels of the code (convolutional: every stage halves the sides)."""
    activation: Literal["none", "relu", "sigmoid"] = "relu"
    """After hidden stages."""
    code_activation: Literal["none", "relu", "sigmoid"] = "none"
    output: Literal["none", "sigmoid"] = "none"
    tied: bool = False
    """Whether a stage's decoder uses its encoder's weights, transposed."""
    variational: bool = False
    """Whether the encoder gives a mean and a variance, and the decoder sees a sample."""


class Claim(Struct, frozen=True, forbid_unknown_fields=True):
    """What the row is to show: `figure` of variant `more` is above that of variant `less`, seed by seed."""

    says: str
    figure: str
    more: str
    less: str


class Trial(Struct, frozen=True, forbid_unknown_fields=True):
    """One thing to train. Every row is a trial with variants."""

    name: str
    title: str = ""
    text: str = ""
    """What the row asks, in the page."""
    task: str = "reconstruct"
    """A module of training/lab/tasks, or `reconstruct` (training/lab/trial.py)."""
    share: float = 1.0
    """Of the budget, beside the other trials' shares."""
    seed: int = 1
    patches: Patches = Patches()
    network: Network = Network()
    loss: Literal["mse", "bce"] = "mse"
    corruptions: dict[str, float] = {}
    """What is done to the input but not to the target: training/lab/corruptions.py, each with its amount."""
    penalties: dict[str, float] = {}
    """What is added to the loss: training/lab/penalties/NAME.py, each with its weight."""
    greedy: float = 0.0
    """Share of the run in which stages are trained one after the other, each on what the one before gives."""
    find_rate: bool = False
    """Begin with the learning rate that the finder finds (training/loop.py), not with the schedule's."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of products in forward and backward; weights and sums stay float32."""
    closed_form: bool = False
    """No training: the principal components of the training patches become the weights."""
    options: dict[str, Any] = {}
    """What only the row's own task knows."""
    figures: tuple[str, ...] = ("reconstruction",)
    """Measured after training: functions of training/lab/figures.py, or of the task."""
    pictures: tuple[str, ...] = ()
    """Drawn for the first seed: functions of training/lab/pictures.py."""
    columns: tuple[str, ...] = ()
    """Figures in the table; all, if there are none."""
    claims: tuple[Claim, ...] = ()
    schedule: Schedule = Schedule(
        steps=1_000_000, minutes=0.2, learning_rate=5e-3, warmup_steps=20, validate_every=200, patience=0, average=0.98
    )


class Row(Struct, frozen=True):
    """A config file: what is common to its trials, and the trials."""

    base: Trial
    variants: dict[str, Trial]


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}
    return over


def read_row(path: Path) -> Row:
    """A row and its variants (one called like the row if it names none). ConfigError with the offending key."""
    try:
        tree = msgspec.toml.decode(path.read_bytes())
        variants = tree.pop("variants", [])
        tree["schedule"] = msgspec.to_builtins(Trial(name="").schedule) | tree.get("schedule", {})
        base = msgspec.convert(tree, Trial, strict=True)
        trials = {one["name"]: msgspec.convert(_merged(tree, one | {"name": base.name}), Trial) for one in variants}
    except KeyError as error:
        raise ConfigError(f"{path}: a variant has no {error}; give each a name") from error
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: {error}") from error
    row = Row(base, trials or {base.name: base})
    for claim in base.claims:
        missing = {claim.more, claim.less} - row.variants.keys()
        if missing:
            raise ConfigError(f"{path}: a claim names {', '.join(missing)}; variants are {', '.join(row.variants)}")
    return row


@cache
def sources() -> str:
    """A hash of the code that results come from: networks, tasks, figures, loop."""
    here = Path(__file__).parent
    shown = ("cli.py", "page.py", "pictures.py", "export.py")
    files = [path for path in sorted(here.rglob("*.py")) if path.name not in shown] + [here.parent / "loop.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def digest(trial: Trial, *more: object) -> str:
    """What a result is kept under: changes with any setting and any code that it depends on."""
    words = {"title", "text", "claims", "columns", "pictures", "share"}
    facts = {key: value for key, value in msgspec.to_builtins(trial).items() if key not in words}
    return hashlib.sha256(msgspec.json.encode([sources(), facts, *map(str, more)], order="sorted")).hexdigest()[:16]
