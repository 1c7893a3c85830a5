"""The soak itself: a short one comes out clean, and its books notice whatever is wrong with an archive."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="pip install 'latent-downlink[ground]'")
pytest.importorskip("cryptography", reason="pip install 'latent-downlink[dev]'")

from tests.chaos.rig import SEED, long_only
from tests.chaos.soak import Report, reconcile, run

pytestmark = pytest.mark.chaos


@long_only
def test_a_short_soak_is_clean_and_its_books_would_notice_if_not(tmp_path: Path) -> None:
    report = run(tmp_path, 0.2, 2, SEED)
    assert report.clean, report
    assert report.scenes >= 2
    archive = tmp_path / "archive"
    streams = {path.stem: path for path in (archive / "streams").iterdir()}
    names = sorted(streams)
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in streams.items()}

    def books(promised: set[str] | None = None, submitted: dict[str, str] | None = None) -> Report:
        found = Report(0, 0, 0)
        reconcile(archive, hashes if submitted is None else submitted, promised or set(names), found)
        return found

    assert books().clean
    assert books({*names, "f" * 64}).lost == ["f" * 64]
    assert books(submitted={}).unexpected == names
    content = streams[names[0]].read_bytes()
    streams[names[0]].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert books().corrupt == [names[0]]
    streams[names[0]].unlink()
    assert books().lost == [names[0]]
    streams[names[0]].write_bytes(content)
    [picture, *_] = (archive / "scenes" / names[1]).glob("*.tif")
    aside = picture.rename(tmp_path / "aside.tif")
    assert books().undecoded == [names[1]]
    aside.rename(picture)
    collection = archive / "scenes" / "collection.json"
    listed = json.loads(collection.read_text())
    listed["links"] += [link for link in listed["links"] if names[0] in link["href"]]
    collection.write_text(json.dumps(listed))
    assert books().duplicates == [names[0]]
