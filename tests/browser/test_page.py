"""The page in a real browser (`make browser`): real nodes behind it, scenes that arrive, an operator who asks.

Needs Debian's chromium, or one that CHROMIUM names, and playwright. Screenshots go to the folder SCREENSHOTS names
(default: browser-output/). One story, told in order: the tests of this file build on each other. Scenes are real where
the corpus lies beside the checkout (../shared/corpus), else made up; nodes have certificates, and so names.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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

from downlink.bundle import Bundle, released  # noqa: E402  # after the skips
from tests import nodes, scenes  # noqa: E402
from tests.certificates import Authority  # noqa: E402

SHOTS = Path(os.environ.get("SCREENSHOTS", "browser-output"))
TOKEN = "browser-test-token"
# WebGL without a graphics card; no sandbox, because tests may run as root
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WAIT_MS = 90_000
CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
REAL = {"first": "sentinel2/CIDCO__T20UPA_20220614_r0_c438.tif",
        "second": "sentinel2/CIDCO__T20UPA_20220614_r438_c438.tif",
        "third": "landsat/gewata__L7_r0_c0.tif"}  # fmt: skip
CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


@dataclass
class Station:
    """A ground with its page, an edge, and a browser that looks."""

    folder: Path
    url: str
    listen: str
    page: Any
    problems: list[str]
    ca: Authority
    edge: nodes.Node | None = None
    ids: dict[str, str] = field(default_factory=dict)
    empty_map: bytes = b""

    def shot(self, name: str, whole: bool = False) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=whole)

    def settle(self) -> None:
        """Until the map, if there is one, shows all that it has asked for."""
        self.page.wait_for_timeout(400)
        drawn = "!document.getElementById('map') || document.getElementById('map').dataset.idle === 'yes'"
        until(lambda: bool(self.page.evaluate(drawn)))

    def ready(self) -> None:
        until(lambda: bool(self.page.evaluate("document.getElementById('map').dataset.ready === 'yes'")))
        self.settle()

    def send(self, node: str, *options: str) -> nodes.Node:
        """An edge of that name."""
        pair = self.ca.node(node)
        tls = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-ca", str(self.ca.cert))
        return nodes.send(self.folder / node, self.listen, *tls, *options)

    def map_pixels(self) -> bytes:
        content: bytes = self.page.locator("#map canvas.maplibregl-canvas").screenshot()
        return content


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("station")
    (folder / "token").write_text(TOKEN + "\n")
    shutil.copytree(str(released("universal")), folder / "models" / "next")
    stated = folder / "models" / "next" / "bundle.json"
    stated.write_text(json.dumps({**json.loads(stated.read_bytes()), "version": "99.9"}))
    (folder / "ca").mkdir()
    ca = Authority(folder / "ca")
    pair = ca.ground()
    tls = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--tls-ca", str(ca.cert))
    options = ("--page", "127.0.0.1:0", "--page-token", str(folder / "token"), "--partial-after", "1")
    ground, listen = nodes.serve(folder, workers=1, options=(*options, *tls, "--models", str(folder / "models")))
    url = ground.wait_for("page")["url"].rstrip("/")
    problems: list[str] = []
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
        station = Station(folder, url, listen, page, problems, ca)
        try:
            yield station
        finally:
            browser.close()
            if station.edge is not None:
                station.edge.terminate()
            ground.terminate()


def submit(station: Station, name: str, node: str, *options: str) -> str:
    """A scene that lies on Earth: a real one, or a lossless one of 4 bands, which needs no model."""
    (station.folder / node).mkdir(exist_ok=True)
    path = station.folder / f"{name}.tif"
    real = CORPUS / REAL[name]
    if real.is_file():
        shutil.copy(real, path)
        options = ("--quality", "60", *options)
    else:
        pixels = scenes.pixels(seed=len(name), bands=4, height=480, width=480, nodata=None)
        profile = {"driver": "GTiff", "count": 4, "height": 480, "width": 480, "dtype": "uint16", "crs": "EPSG:32633"}
        with rasterio.open(path, "w", transform=rasterio.Affine(*scenes.PLACE), **profile) as dataset:
            dataset.write(pixels)
            for band, called in enumerate(("B02", "B03", "B04", "B08"), 1):
                dataset.set_band_description(band, called)
        options = ("--max-error", "0", *options)
    done = nodes.run("encoder_node", "submit", path, "--outbox", station.folder / node / "outbox", *options)
    assert done.returncode == 0, done.stderr
    station.ids[name] = done.stdout.strip()
    return station.ids[name]


def until(what: Callable[[], bool], within_s: float = 90.0) -> None:
    end = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def test_an_empty_station_says_what_to_do(station: Station) -> None:
    station.page.goto(station.url)
    station.page.locator("#nodes").get_by_text("No node has been in touch").wait_for()
    station.page.locator("#beat.on").wait_for()
    station.settle()
    station.empty_map = station.map_pixels()
    station.shot("1-empty")


def test_a_scene_is_seen_arriving(station: Station) -> None:
    submit(station, "first", "sat-1")
    station.edge = station.send("sat-1", "--rate-kbps", "600")
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
    until(lambda: bool(page.evaluate("Number(document.getElementById('map').dataset.ready) >= 1")))
    page.locator("#latest .card img").first.wait_for()
    station.settle()
    assert station.map_pixels() != station.empty_map
    submit(station, "third", "buoy-7")
    assert station.send("buoy-7", "--once").wait() == 0
    until(lambda: bool(page.evaluate("Number(document.getElementById('map').dataset.ready) >= 2")))
    page.locator("#nodes .node.off").get_by_text("buoy-7").wait_for()
    station.settle()
    station.shot("3-on-the-map")


def test_another_composite_is_another_picture(station: Station) -> None:
    page = station.page
    page.locator("#latest .card", has_text="first").click()
    station.ready()
    shown = page.locator("#shown").inner_text()
    natural = station.map_pixels()
    with page.expect_response(lambda answer: "bands=0.3" in answer.url and answer.status == 200):
        page.locator("label", has_text="One band").click()
        page.select_option("#band-0", "0.3")
    station.settle()
    until(lambda: station.map_pixels() != natural)
    assert page.locator("#shown").inner_text() not in ("", shown)
    station.shot("4-one-band")
    with page.expect_response(lambda answer: "/bits/" in answer.url and answer.status == 200):
        page.check("#heat")
    station.settle()
    assert page.locator("#legend").is_visible()
    station.shot("5-where-the-bits-went")


def test_a_wrong_token_opens_nothing(station: Station) -> None:
    page = station.page
    page.goto(f"{station.url}/asks")
    assert page.get_by_role("button", name="Install").count() == 0
    page.get_by_role("link", name="Sign in as operator").click()
    page.fill("input[name=token]", "not-the-token-at-all")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("alert").get_by_text("this is not the token").wait_for()
    assert page.get_by_role("button", name="Sign out").count() == 0
    page.goto(f"{station.url}/asks")
    assert page.get_by_role("button", name="Install").count() == 0
    station.problems[:] = [line for line in station.problems if "403" not in line]  # the browser logs it, as it should


def test_a_region_is_asked_for_and_comes(station: Station) -> None:
    page = station.page
    page.goto(f"{station.url}/operator")
    page.fill("input[name=token]", TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()
    scene_id = submit(station, "second", "sat-1", "--layers", "1")
    page.goto(f"{station.url}/scenes?q=second")
    until(lambda: bool(page.reload() and page.locator(".card.s-partial").count()))
    page.locator(".card.s-partial").first.click()
    assert scene_id in page.url
    station.ready()
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
    station.settle()
    station.shot("7-refined", whole=True)


def test_a_scene_s_priority_is_changed(station: Station) -> None:
    page = station.page
    page.goto(f"{station.url}/scenes/{station.ids['second']}")
    station.ready()
    page.fill("input[name=priority]", "7")
    page.get_by_role("button", name="Change priority").click()
    asked = page.locator("#asked li", has_text="priority 7")
    asked.wait_for()
    page.locator("#asked li.ask-done", has_text="priority 7").wait_for()  # the node has answered


def test_a_model_is_installed_on_a_node_and_rolled_back(station: Station) -> None:
    page = station.page
    bundle = Bundle.read(station.folder / "models" / "next").id.hex()[:12]
    page.goto(f"{station.url}/asks")
    page.select_option("select[name=node]", "sat-1")
    page.select_option("select[name=bundle]", "next")
    page.get_by_role("button", name="Install").click()
    page.locator("#all-asks tr.ask-done", has_text=f"bundle {bundle} is active").wait_for()
    page.select_option("select[name=node]", "sat-1")
    page.get_by_role("button", name="Roll back").click()
    page.locator("#all-asks tr.ask-done", has_text="bundle is active again").wait_for()
    station.shot("8-installed")


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (1440, "dark"), (400, "light"), (400, "dark")])
def test_it_fits_its_window_and_can_be_read(station: Station, width: int, theme: str) -> None:
    page = station.page
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": width, "height": 900})
    for name, path in (
        ("live", "/"), ("scenes", "/scenes"), ("history", "/history"), ("requests", "/asks"),
        ("scene", f"/scenes/{station.ids['second']}"), ("nothing-found", "/scenes?q=nothing-like-it"),
        ("error", "/nowhere"),
    ):  # fmt: skip
        page.goto(f"{station.url}{path}")
        station.settle()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} px wide in a window of {width}"
        assert page.evaluate(CONTRAST) == [], path
        station.shot(f"{name}-{width}-{theme}", whole=name in ("scene", "history", "requests"))
    station.problems[:] = [line for line in station.problems if "404" not in line]  # of /nowhere


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
    assert page.locator("#found .card").get_attribute("href") == f"/scenes/{station.ids['second']}"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "state"


def test_nothing_was_forbidden_or_broken_meanwhile(station: Station) -> None:
    """No script error, nothing that the content security policy had to stop."""
    assert station.problems == []
