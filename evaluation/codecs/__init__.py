"""The codecs that can be measured, by the names that `downlink evaluate --against` takes.

Each lives in a file of its own and is imported only when asked for. To add one: a class in a file here (`base` says
what it must do), a line in `_CLASSICAL`, and a test that its bytes and errors are what its own decoder says.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from evaluation.codecs.base import Codec, GridCodec

_CLASSICAL: Final = {
    "j2k": ("j2k", "Jpeg2000"),
    "j2k-klt": ("j2k_klt", "Jpeg2000Klt"),
    "htj2k": ("htj2k", "HighThroughputJpeg2000"),
    "jpegxl": ("jpegxl", "JpegXl"),
    "jpegxl-e3": ("jpegxl", "JpegXlFast"),
    "lerc": ("lerc", "Lerc"),
    "jpegxl-lossless": ("jpegxl_lossless", "JpegXlLossless"),
    "jpegls": ("jpegls", "JpegLs"),
    "zstd": ("zstd", "Zstd"),
    "jpegxl-lossless-e3": ("jpegxl_lossless", "JpegXlLosslessFast"),
    "aec": ("aec", "Aec"),
    "pcodec": ("pcodec", "Pcodec"),
}
CLASSICAL: Final = tuple(_CLASSICAL)
LOSSY: Final = ("j2k", "j2k-klt", "htj2k", "jpegxl", "jpegxl-e3", "jpegls", "lerc")
"""Those that a report draws curves of: they lose by design, not because samples were rounded before them."""
BOUNDED: Final = ("jpegxl-lossless", "jpegxl-lossless-e3", "jpegls", "lerc", "zstd", "aec", "pcodec")
"""Those that bound the error of every sample."""


@dataclass(frozen=True)
class CodecSpec:
    """What a process needs to open a codec: a label for tables, and a classical codec's name or a model bundle; neither
    is the exact method."""

    label: str
    classical: str | None = None
    model: str | None = None
    threads: int = 1

    def open(self) -> Codec:
        if self.classical is not None:
            return _classical(self.classical)(self.threads)
        if self.model is None:
            from evaluation.codecs.exact import Exact

            return Exact()
        from evaluation.codecs.ours import LatentDownlink

        return LatentDownlink(self.model, self.threads)


@dataclass(frozen=True)
class Contestant:
    """A codec to be measured. Classical codecs bring their own settings where none are given."""

    spec: CodecSpec
    unit: str
    settings: tuple[float, ...] = ()
    promises: bool = False
    """Whether its settings are bounds on the error that it must keep."""

    def at(self, peak: float) -> tuple[float, ...]:
        """The settings it is measured at on a scene of this peak."""
        classical = self.spec.classical
        return self.settings if classical is None or self.settings else sweep(classical, peak)


def sweep(name: str, peak: float) -> tuple[float, ...]:
    """Settings of a classical codec that spread its curve over 30 to 54 dB, lowest rate first."""
    return _classical(name).sweep(peak)


def _classical(name: str) -> type[GridCodec]:
    module, attribute = _CLASSICAL[name]
    found: type[GridCodec] = getattr(importlib.import_module(f"evaluation.codecs.{module}"), attribute)
    return found


def unit(name: str) -> str:
    """What a classical codec's setting is."""
    return _classical(name).unit
