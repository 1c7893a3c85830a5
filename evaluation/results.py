"""The README's results, from committed figures: `make report`.

    python -m evaluation.results                          README.md and docs/pictures/ anew from the record
    python -m evaluation.results --take REPORT PROFILE    the record anew from what `downlink evaluate --report` and
                                                          `downlink profile --json` wrote, then the above

The record is `evaluation/records/release/{report,profile}.json`: all of a report's figures but its single rows. What
stands between the README's markers is made here and nowhere else; a test compares the two.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from evaluation import figures, profile_figure
from evaluation.profile_table import sentences

ROOT: Final = Path(__file__).parents[1]
RECORD: Final = Path(__file__).parent / "records" / "release"
PICTURES: Final = ROOT / "docs" / "pictures"
BEGIN: Final = (
    "<!-- results: begin. Made by `make report` from evaluation/records/release/; change nothing by hand. -->"
)
END: Final = "<!-- results: end -->"
_DROPPED: Final = ("rows", "pictures", "bands")


def take(report: dict[str, Any], profile: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What of a report and a profile is committed, by file name."""
    kept = {key: value for key, value in report.items() if key not in _DROPPED}
    kept["bounds"] = {key: value for key, value in report["bounds"].items() if key not in _DROPPED}
    return {"report.json": kept, "profile.json": profile}


def text(report: dict[str, Any], profile: dict[str, Any]) -> str:
    """What stands between the markers."""
    return "\n\n".join(
        filter(None, (_rates(report), _bounds(report), _speeds(report), _profile(profile), _method(report)))
    )


def _rates(report: dict[str, Any]) -> str:
    summary = report["summary"]
    reference, levels = summary["bd_rate_of"], list(summary["scenes_at"])
    heads = ["codec", *(f"bits/sample at {level} dB" for level in levels), f"BD-rate of `{reference}` against it"]
    rows = []
    best = {
        level: min((bits for bits in summary["bits_per_sample_at"][level].values() if bits is not None), default=None)
        for level in levels
    }
    for codec in summary["codecs"]:
        found = summary["bd_rate"].get(codec)
        bits = [summary["bits_per_sample_at"][level][codec] for level in levels]
        cells = [
            "–" if value is None else f"**{value:.3f}**" if value == best[level] else f"{value:.3f}"
            for value, level in zip(bits, levels, strict=True)
        ]
        rows.append([_named(codec), *cells, "" if found is None else _signed(found["percent"])])
    counts = ", ".join(str(count) for count in summary["scenes_at"].values())
    overlaps = [found["overlap_db"] for found in summary["bd_rate"].values() if found["overlap_db"]]
    spread = f"{min(low for low, _ in overlaps):.0f} to {max(high for _, high in overlaps):.0f} dB" if overlaps else ""
    which = (
        "the `test` split of the project's corpus, of sources that the model never saw, except BigEarthNet and the "
        "bark-beetle plots, whose neighbours it did"
        if report.get("split") == "test"
        else "a part of the project's corpus"
    )
    single = "; ".join(
        f"against {codec} from {_signed(min(found['percents']))} to {_signed(max(found['percents']))}"
        for codec, found in summary["bd_rate"].items()
        if codec in ("j2k", "j2k-klt") and found["percents"]
    )
    return (
        f"{len(report['scenes'])} real Sentinel-2 scenes ({which}), real bytes of real files, everything counted, one "
        f"thread (`make measure`, {report['date']}):\n\n{_table(heads, rows)}\n\n"
        f"PSNR against 10000, over all valid samples; bits are means over the scenes that all codecs reach it on "
        f"({counts} of {summary['scenes']}); BD-rates over what both cover, {spread}. –: on fewer than half of the "
        f"scenes. On single scenes BD-rates differ: {single}.\n\n"
        f"![Quality against bits per sample](docs/pictures/quality.svg)"
    )


def _named(codec: str) -> str:
    known = {
        "j2k": "JPEG 2000, all bands in one codestream",
        "j2k-klt": "JPEG 2000 behind a spectral KLT",
        "htj2k": "HTJ2K (OpenJPH)",
        "jpegxl": "JPEG XL, effort 7 (perceptual)",
        "jpegxl-e3": "JPEG XL, effort 3 (perceptual)",
        "jpegls": "JPEG-LS, near-lossless",
        "lerc": "LERC",
        "jpegxl-lossless": "JPEG XL, effort 7",
        "jpegxl-lossless-e3": "JPEG XL, effort 3",
        "zstd": "zstd behind row differences",
        "aec": "CCSDS 121 (libaec)",
        "pcodec": "pcodec",
    }
    return known.get(codec, f"`{codec}`")


def _bounds(report: dict[str, Any]) -> str:
    bounds = {bound: one for bound, one in report["bounds"]["summary"]["bounds"].items() if one["scenes"]}
    if not bounds:
        return ""
    codecs = list(next(iter(bounds.values()))["codecs"])
    heads = ["bits/sample", *("lossless" if bound == "0" else f"within ±{bound}" for bound in bounds)]
    values = [[one["codecs"][codec]["bits_per_sample"] for one in bounds.values()] for codec in codecs]
    best = [min(column) for column in zip(*values, strict=True)]
    rows = [
        [
            f"`{codec}`" if codec == codecs[0] else _named(codec).removesuffix(", near-lossless"),
            *(f"**{v:.2f}**" if v == b else f"{v:.2f}" for v, b in zip(line, best, strict=True)),
        ]
        for codec, line in zip(codecs, values, strict=True)
    ]
    broken = [one for one in report["bounds"]["summary"]["broken"] if one["codec"] == codecs[0]]
    kept = "every bound held on every sample" if not broken else f"BROKEN on {len(broken)} scenes"
    said = f"Lossless and with a bound on every sample's error (`--max-error`), on the same scenes; {kept}:"
    return f"{said}\n\n{_table(heads, rows)}"


def _speeds(report: dict[str, Any]) -> str:
    speed = report["speed"] or {}
    if "1" not in speed:
        return ""
    rows = []
    for codec, one in speed["1"]["codecs"].items():
        if one["kind"] == "lossy":
            rates = [f"{one[half]['median']:.1f} ({one[half]['low']:.1f}–{one[half]['high']:.1f})" for half in _HALVES]
            rows.append([_named(codec.removesuffix(" (lossy)")), f"{one['bits_per_sample']:.2f}", *rates])
    shape = " x ".join(map(str, speed["shapes"]["lossy"]))
    heads = ["Msamples/s, one thread", "bits/sample", "encode", "decode"]
    peers = report["learned"].get("peers", ())
    rows += [
        [
            f"{one['name']} (architecture, no weights)",
            "–",
            *(f"{one[f'{half}_msamples_per_s']['median']:.1f}" for half in _HALVES),
        ]
        for one in peers
    ]
    return (
        f"Speed at equal PSNR, all in turn in one run on {shape} samples (`{speed['scene']}`, mirrored where it is "
        f"smaller; median, least and most):\n\n"
        f"{_table(heads, rows)}\n\n![Bits against speed](docs/pictures/speed.svg)"
    )


_HALVES: Final = ("encode", "decode")


def _profile(profile: dict[str, Any]) -> str:
    largest = max((one for one in profile["speed"] if one["threads"] == 1), key=lambda one: one["size_px"])
    first, last = profile["memory"][0], profile["memory"][-1]
    said = [
        f"- `downlink profile` on {profile['environment']['processor']}, one core: "
        f"{largest['msamples_per_s']['median']:.1f} million samples a second on {profile['bands']} bands of "
        f"{largest['size_px']} x {largest['size_px']} px.",
        f"- Peak memory {last['peak_rss_mb']:.0f} MB for a scene of {last['scene_mb']:.0f} MB, "
        f"{first['peak_rss_mb']:.0f} MB for one of {first['scene_mb']:.0f} MB.",
        *(f"- {line}" for line in sentences(profile)),
    ]
    return "What the encoder costs on board:\n\n" + "\n".join(said) + "\n\n![What it costs](docs/pictures/profile.svg)"


def _method(report: dict[str, Any]) -> str:
    return (
        "`docs/measuring.md` says how each figure comes about and what it does not say. Speeds are of a shared virtual "
        f"machine ({report['environment']['processors']} cores)."
    )


def _signed(percent: float | None) -> str:
    return "–" if percent is None else f"{percent:+.1f} %".replace("-", "−")


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pictures(report: dict[str, Any], profile: dict[str, Any]) -> dict[str, bytes]:
    """Files of docs/pictures/, by name."""
    made = {"profile.svg": profile_figure.draw(profile, "svg")}
    reference, equal = report["summary"]["bd_rate_of"], report["equal_bits"]
    if equal and len(equal["levels"]) > 1:
        made["quality.svg"] = figures.quality(equal, reference, "quality").encode()
    if "1" in (report["speed"] or {}):
        made["speed.svg"] = figures.speed(report["speed"]["1"], reference, "speed").encode()
    return made


def spliced(readme: str, block: str) -> str:
    """A README with its results replaced."""
    before, begun, rest = readme.partition("<!-- results: begin")
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError("README.md has lost its markers <!-- results: begin … --> and <!-- results: end -->")
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--take", nargs=2, type=Path, metavar=("REPORT", "PROFILE"), help="renew the record from these")
    options = parser.parse_args()
    if options.take:
        taken = take(*(json.loads(path.read_text()) for path in options.take))
        RECORD.mkdir(parents=True, exist_ok=True)
        for name, content in taken.items():
            (RECORD / name).write_text(json.dumps(content, indent=1) + "\n")
    try:
        report, profile = (json.loads((RECORD / name).read_text()) for name in ("report.json", "profile.json"))
        readme = ROOT / "README.md"
        readme.write_text(spliced(readme.read_text(), text(report, profile)))
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    PICTURES.mkdir(exist_ok=True)
    for name, content in pictures(report, profile).items():
        (PICTURES / name).write_bytes(content)
        print(f"made: {(PICTURES / name).relative_to(ROOT)}")
    print("made: README.md, between its markers")


if __name__ == "__main__":
    main()
