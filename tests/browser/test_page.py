"""The page in a real browser (`make browser`): real nodes behind it, a scene that arrives, an operator who asks.

Needs Debian's chromium, or one that CHROMIUM names, and playwright. Screenshots go to the folder SCREENSHOTS names
(default: browser-output/). One story, told in order: the tests of this file build on each other.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
WANTED = os.environ.get("BROWSER") == "yes"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)"),
]
if not WANTED:
    pytest.skip("`make browser` runs it", allow_module_level=True)
rasterio = pytest.importorskip("rasterio")
playwright = pytest.importorskip("playwright.sync_api")

from tests import nodes, scenes  # noqa: E402  # after the skips

SHOTS = Path(os.environ.get("SCREENSHOTS", "browser-output"))
TOKEN = "browser-test-token"
# WebGL without a graphics card; no sandbox, because tests may run as root
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WAIT_MS = 90_000


@dataclass
class Station:
    """A ground with its page, an edge, and a browser that looks."""

    folder: Path
    url: str
    listen: str
    page: Any
    problems: list[str]
    edge: nodes.Node | None = None

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"))

    def map_pixels(self) -> bytes:
        content: bytes = self.page.locator("#map canvas.maplibregl-canvas").screenshot()
        return content


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("station")
    (folder / "token").write_text(TOKEN + "\n")
    options = ("--page", "127.0.0.1:0", "--page-token", str(folder / "token"), "--partial-after", "1")
    ground, listen = nodes.serve(folder, workers=1, options=options)
    url = ground.wait_for("page")["url"].rstrip("/")
    problems: list[str] = []
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        station = Station(folder, url, listen, page, problems)
        try:
            yield station
        finally:
            browser.close()
            if station.edge is not None:
                station.edge.terminate()
            ground.terminate()


def submit(station: Station, name: str, *options: str) -> str:
    """A scene of 4 bands near Berlin, lossless: no model is needed."""
    pixels = scenes.pixels(seed=len(name), bands=4, height=480, width=480, nodata=None)
    path = station.folder / f"{name}.tif"
    profile = {"driver": "GTiff", "count": 4, "height": 480, "width": 480, "dtype": "uint16", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=rasterio.Affine(*scenes.PLACE), **profile) as dataset:
        dataset.write(pixels)
        for band, called in enumerate(("B02", "B03", "B04", "B08"), 1):
            dataset.set_band_description(band, called)
    command = ("submit", path, "--outbox", station.folder / "outbox", "--max-error", "0", *options)
    done = nodes.run("encoder_node", *command)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def until(what: Callable[[], bool], within_s: float = 90.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def test_an_empty_station_says_what_to_do(station: Station) -> None:
    station.page.goto(station.url)
    station.page.locator("#nodes").get_by_text("No node has been in touch").wait_for()
    station.page.locator("#beat.on").wait_for()
    station.shot("1-empty")


def test_a_scene_is_seen_arriving(station: Station) -> None:
    submit(station, "first")
    station.edge = nodes.send(station.folder, station.listen, "--rate-kbps", "900")
    page = station.page
    page.locator("#flight article").first.wait_for()  # by an event: nobody has loaded the page again
    shown = []
    while not shown or (shown[-1] < 100 and len(shown) < 400):
        found = page.locator("#flight article header b")
        if not found.count():
            break
        shown.append(int(found.first.inner_text().split()[0]))
        if len(set(shown)) == 3:
            station.shot("2-arriving")
        page.wait_for_timeout(150)
    assert len(set(shown)) >= 3, f"progress did not move: {shown}"
    assert shown == sorted(shown)
    page.locator("#nodes .node.on").wait_for()


def test_the_map_shows_it_when_it_is_decoded(station: Station) -> None:
    page = station.page
    before = station.map_pixels()
    until(lambda: bool(page.evaluate("Number(document.getElementById('map').dataset.ready) >= 1")))
    page.locator("#latest .card img").first.wait_for()
    page.wait_for_timeout(2500)  # tiles fade in
    assert station.map_pixels() != before
    station.shot("3-on-the-map")


def test_another_composite_is_another_picture(station: Station) -> None:
    page = station.page
    page.locator("#latest .card").first.click()
    until(lambda: bool(page.evaluate("document.getElementById('map').dataset.ready === 'yes'")))
    page.wait_for_timeout(2500)
    natural = station.map_pixels()
    with page.expect_response(lambda answer: "bands=0.3" in answer.url and answer.status == 200):
        page.select_option("#composite", "one")
        page.select_option("#band-0", "0.3")
    page.wait_for_timeout(2500)
    assert station.map_pixels() != natural
    station.shot("4-one-band")
    with page.expect_response(lambda answer: "/bits/" in answer.url and answer.status == 200):
        page.check("#heat")
    page.wait_for_timeout(1500)
    station.shot("5-where-the-bits-went")


def test_a_region_is_asked_for_and_comes(station: Station) -> None:
    page = station.page
    page.goto(f"{station.url}/operator")
    page.fill("input[name=token]", TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()
    scene_id = submit(station, "second", "--layers", "1")
    page.goto(f"{station.url}/scenes?q=second")
    until(lambda: bool(page.reload() and page.locator(".card.s-partial").count()))
    page.locator(".card.s-partial").first.click()
    assert scene_id in page.url
    until(lambda: bool(page.evaluate("document.getElementById('map').dataset.ready === 'yes'")))
    before = page.locator("#state").get_attribute("data-version")
    shown = page.locator("#state").inner_text()
    page.get_by_role("button", name="Refine a region").click()
    box = page.locator("#map").bounding_box()
    x, y = box["x"] + box["width"] / 2 - 130, box["y"] + box["height"] / 2 - 130  # within one tile: the rest waits
    page.mouse.move(x - 60, y - 60)
    page.mouse.down()
    page.mouse.move(x, y, steps=4)
    page.mouse.move(x + 60, y + 60, steps=4)
    page.mouse.up()
    assert page.input_value("#box").count(",") == 3
    station.shot("6-a-region")
    page.locator("#region").get_by_role("button", name="Refine region").click()
    page.locator("#asked .ask-waiting, #asked .ask-done").first.wait_for()
    page.locator("#asked .ask-done").first.wait_for()  # the node has answered
    until(lambda: bool(page.evaluate(f"document.getElementById('state').dataset.version !== '{before}'")))
    assert page.locator("#state").inner_text() != shown
    page.wait_for_timeout(2000)
    station.shot("7-refined")


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (1440, "dark"), (400, "light"), (400, "dark")])
def test_it_fits_its_window(station: Station, width: int, theme: str) -> None:
    page = station.page
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    for name, path in (("live", "/"), ("scenes", "/scenes"), ("history", "/history"), ("requests", "/asks")):
        page.goto(f"{station.url}{path}")
        page.wait_for_timeout(2500)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} px wide in a window of {width}"
        station.shot(f"{name}-{width}-{theme}")


def test_the_keyboard_is_enough(station: Station) -> None:
    page = station.page
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(station.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    before = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") != before
    page.keyboard.press("/")
    page.wait_for_url("**/scenes")
    page.wait_for_load_state()
    page.keyboard.press("/")
    page.keyboard.type("second")
    until(lambda: bool(page.evaluate("document.querySelectorAll('#found .card').length === 1")))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "state"


def test_nothing_was_forbidden_or_broken_meanwhile(station: Station) -> None:
    """No script error, nothing that the content security policy had to stop."""
    assert station.problems == []
