"""A training run's settings: one frozen struct, read from TOML, every hyper-parameter named with its default and its
why.

Unknown keys are refused, so that a typo never trains silently with a default.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from downlink.errors import DownlinkError


class ConfigError(DownlinkError):
    """A configuration file or override that cannot be used."""


class Corpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where pictures come from and how crops are drawn."""

    splits: tuple[str, ...] = ("train",)
    """`suggested_split` values to train on, when the folder has a manifest.json; otherwise every raster is used."""
    sources: tuple[str, ...] = ()
    """File names begin with one of these; every raster, if there are none. For a bundle of one sensor's chain."""
    bands: tuple[int, ...] = ()
    """Bands to train on, numbered from 1; all, if there are none. Rasters that lack one are left out."""
    validation_sources: tuple[str, ...] = ()
    """File names that begin with one of these are held out for validation: whole sources or places, never random
    patches."""
    validation_share: float = 0.05
    """Share of files held out when no source is named."""
    crop: int = 128
    """Side of a training crop in pixels (core; the encoder also sees its halo)."""
    planes_per_step: int = 48
    """Planes in a batch: crops x planes of each. 48 is 4 crops of 12 bands."""
    balance: float = 0.5
    """A source is drawn in proportion to its pixels to this power: 0 = sources equal, 1 = pixels equal."""


class Augment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What processing chains and sensors do, done to crops at random."""

    resample: float = 0.25
    """Probability that some bands of a crop are replaced by a coarser band brought back up (as 20 m and 60 m bands
    are)."""
    radiometry: float = 0.3
    """Probability of one random gain per band (another sensor's sensitivities)."""
    own_basis: float = 0.25
    """Probability that the spectral basis is a crop's own (a scene no larger than a tile), not its whole picture's."""


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of the plane codec."""

    latents: int = 64
    hyper_latents: int = 8
    hyper_width: int = 48
    prior_widths: tuple[int, ...] = (32, 32, 48, 64)
    """Of each subband's network."""
    prior_features: int = 32
    decoder_width: int = 64
    refinement: float = 0.8
    """Worth of a saved bit when symbols are refined (1 = as in the loss; less leaves more to the decoder)."""
    decoder_blocks: int = 3


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long and how fast."""

    steps: int = 20000
    learning_rate: float = 1.0e-3
    warmup_steps: int = 200
    minutes: float = 0.0
    """Stop after so many minutes of training (0 = by steps alone); the learning rate decays by whichever ends first."""
    settle: float = 0.75
    """Share of the run after which symbols are charged what they themselves make the prior expect, not what a first
    guess did: slower, and exactly what the nodes do."""
    validate_every: int = 500
    patience: int = 20
    """Stop after so many validations without a better one (0 = never)."""
    hyper_factor: float = 10.0
    """Scale indices of hyper-latents are numbers around 10: they must move faster than weights around 0.1."""
    clip_norm: float = 1.0
    average: float = 0.999
    """Decay of the running average of the weights that is validated and exported (0 = none)."""


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything a run needs; saved in its checkpoint."""

    name: str = "universal"
    seed: int = 1
    corpus: Corpus = Corpus()
    augment: Augment = Augment()
    model: Model = Model()
    schedule: Schedule = Schedule()
    trade: float = 8.66
    """Bits per squared step of error: 6 / ln 2 is the slope of a uniform quantiser at high rate."""
    quality_range: tuple[float, float] = (8.0, 64.0)
    """Where most steps are drawn: step = peak * 2^(-quality / 8)."""
    quality_tail: tuple[float, float] = (64.0, 100.0)
    tail_share: float = 0.1
    threads: int = 2


def read_config(path: Path, overrides: tuple[str, ...] = ()) -> Run:
    """Read TOML and apply `section.key=value` overrides (values in TOML syntax).

    Raises ConfigError with the path of the offending key.
    """
    try:
        tree = msgspec.toml.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"override '{override}' has no '='; write section.key=value")
        *sections, leaf = key.strip().split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        try:
            node[leaf] = msgspec.toml.decode(f"v = {text}".encode())["v"]
        except msgspec.DecodeError:
            node[leaf] = text
    try:
        return msgspec.convert(tree, Run)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
