"""The page in a real browser: what a person does with it, and what they see."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[browser]'")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PATIENCE = 120_000  # milliseconds; a machine may have much else to do
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: install Chromium or Google Chrome")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with a profile of its own."""
    with playwright.sync_playwright() as tools:
        context = tools.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=CHROMIUM, headless=True, args=list(FLAGS)
        )
        context.set_default_timeout(PATIENCE)
        yield context
        context.close()


@pytest.fixture
def tab(browser: Any, page: Any) -> Iterator[Any]:
    """The page, opened. At the end its console must hold no error but those a test expects in `tab.expected`, and no
    other server may have been asked for anything."""
    opened = browser.new_page()
    opened.expected, said, asked = [], [], []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda problem: said.append(str(problem)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page.url)
    opened.wait_for_selector("#limits:not(:empty)")
    yield opened
    opened.close()
    unexpected = [line for line in said if not any(re.search(pattern, line) for pattern in opened.expected)]
    assert not unexpected
    assert all(url.startswith((page.url, "data:")) for url in asked), asked


def picture(name: str = "scene.png", seed: int = 0, height: int = 60, width: int = 90) -> dict[str, Any]:
    """A file for the page."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": memory.getvalue()}


def give(tab: Any, *files: dict[str, Any]) -> None:
    """Choose files and wait until all are dealt with."""
    tab.set_input_files("#file", list(files))
    tab.wait_for_selector("#status", state="hidden")


def test_an_image_is_shown_with_the_predictions_of_both_networks(tab: Any) -> None:
    assert "Student table1_printed, 6 classes" in tab.inner_text("#networks")
    assert "up to 1 MiB and 1 million pixels" in tab.inner_text("#limits")
    give(tab, picture())
    assert tab.inner_text("#result h2") == "scene.png"
    assert re.search(r"90 × 60 pixels · answered in [\d.]+ m?s", tab.inner_text(".facts"))
    cards = tab.locator(".network")
    assert [card.get_attribute("data-role") for card in cards.all()] == ["student", "teacher"]
    assert re.match(r"(Teacher and student agree|They differ): ", tab.inner_text(".verdict"))
    for card in cards.all():
        shares = [float(text.strip("<% ")) for text in card.locator(".bars .share").all_inner_texts() if text]
        bars = [row.bounding_box()["width"] for row in card.locator(".bars li:not([hidden]) .track i").all()]
        assert len(bars) == 5 and shares[:5] == sorted(shares[:5], reverse=True) and bars == sorted(bars, reverse=True)
        widest = card.locator(".track").first.bounding_box()["width"]
        assert bars[0] / widest == pytest.approx(shares[0] / 100, abs=0.02)
        assert re.search(r"Network \d+ ms, reading \d+ ms, Grad-CAM", card.locator(".time").inner_text())
    first = cards.first
    first.locator(".more").click()
    assert len([row for row in first.locator(".bars li").all() if row.is_visible()]) == 6
    assert "<b>river</b>" in first.locator(".bars").inner_text(), "a name is text, whatever it looks like"


def test_the_slider_fades_grad_cam_and_a_class_can_be_chosen(tab: Any) -> None:
    give(tab, picture())
    heats = tab.locator(".heat")
    assert heats.count() == 2 and all(heat.is_visible() for heat in heats.all())
    slider = tab.locator(".opacity")
    slider.fill("0")
    assert [heat.evaluate("heat => getComputedStyle(heat).opacity") for heat in heats.all()] == ["0", "0"]
    plain = tab.locator("figure").first.screenshot()
    slider.focus()
    tab.keyboard.press("End")
    assert tab.inner_text(".slider output") == "100 %"
    assert heats.first.evaluate("heat => getComputedStyle(heat).opacity") == "1"
    covered = tab.locator("figure").first.screenshot()
    assert plain != covered
    second = tab.locator(".network").first.locator(".bars button").nth(1)
    second.click()
    name = second.get_attribute("data-name")
    assert f"evidence for {name};" in tab.inner_text(".evidence") and second.get_attribute("aria-pressed") == "true"
    assert tab.locator("figure").first.screenshot() != covered
    give(tab, picture("next.png", 1))
    assert tab.locator(".opacity").input_value() == "100", "kept for the next image"


def test_results_can_be_saved(tab: Any, tmp_path: Path) -> None:
    give(tab, picture())
    best = tab.inner_text(".network .said strong")
    for name in ("CSV", "JSON"):
        with tab.expect_download() as waiting:
            tab.get_by_role("link", name=name, exact=True).click()
        saved = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved)
        assert saved.name == f"scenedistill-result.{name.lower()}"
    assert json.loads((tmp_path / "scenedistill-result.json").read_text(encoding="utf-8"))[0]["class"] == best


def test_wrong_and_large_files_are_refused_in_a_line(tab: Any) -> None:
    tab.expected = ["status of 415", "status of 422"]
    give(tab, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"nothing to look at here"})
    assert tab.inner_text("#error") == "notes.txt is not a JPEG, PNG, WebP or TIFF image."
    assert not tab.locator("#result").is_visible()
    give(tab, {"name": "large.png", "mimeType": "image/png", "buffer": bytes(2 << 20)})
    assert tab.inner_text("#error") == "large.png is larger than 1 MiB, the limit of this page."
    give(tab, picture("wide.png", height=2, width=600_000) | {"buffer": flat(1200, 1200)})
    assert "wide.png has 1,200 x 1,200 pixels" in tab.inner_text("#error")
    give(tab, picture("fine.png"))
    assert not tab.locator("#error").is_visible() and tab.inner_text("#result h2") == "fine.png"
    assert tab.locator("#history .bad").count() == 3
    tab.locator("#history button").first.click()
    assert "notes.txt is not" in tab.inner_text("#error") and not tab.locator("#result").is_visible()


def flat(height: int, width: int) -> bytes:
    """A PNG of one colour, which takes few bytes."""
    memory = io.BytesIO()
    Image.new("RGB", (width, height)).save(memory, "PNG")
    return memory.getvalue()


def test_an_upload_that_grew_since_is_stopped_by_the_server(tab: Any) -> None:
    """What the page itself checks beforehand is no protection."""
    tab.expected = ["status of 413"]
    said = tab.evaluate("""async () => {
        const answer = await fetch("classify?name=x.png", { method: "POST", body: new Uint8Array(1600000) });
        return [answer.status, (await answer.json()).error];
    }""")
    assert said == [413, "The file is larger than 1 MiB, the limit of this page."]


def test_many_files_come_one_after_another(tab: Any) -> None:
    give(tab, *(picture(f"{number}.png", number) for number in range(4)))
    assert tab.inner_text("#result h2") == "3.png"
    entries = tab.locator("#history button")
    assert [text.split("\n")[0] for text in entries.all_inner_texts()] == ["0.png", "1.png", "2.png", "3.png"]
    entries.nth(1).click()
    assert tab.inner_text("#result h2") == "1.png" and entries.nth(1).get_attribute("aria-current") == "true"


def test_many_requests_at_once_are_answered_or_refused_as_busy(tab: Any) -> None:
    tab.expected = ["status of 503"]
    content = list(picture()["buffer"])
    found = tab.evaluate(
        """async (content) => {
        const ask = async () => {
            const answer = await fetch("classify?name=x.png", { method: "POST", body: new Uint8Array(content) });
            const said = await answer.json();
            return [answer.status, said.error ?? said.networks.student.ranking[0]];
        };
        return Promise.all(Array.from({ length: 6 }, ask));
    }""",
        content,
    )
    assert {status for status, _ in found} <= {200, 503} and 200 in {status for status, _ in found}
    assert len({said for status, said in found if status == 200}) == 1
    assert all(said.startswith("Busy: 1 at work") for status, said in found if status == 503)
    give(tab, picture())
    assert tab.locator("#result").is_visible()


def test_a_dropped_file_is_taken(tab: Any) -> None:
    data = tab.evaluate_handle(
        """(content) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(content)], "dropped.png", { type: "image/png" }));
        return data;
    }""",
        list(picture()["buffer"]),
    )
    tab.dispatch_event("body", "drop", {"dataTransfer": data})
    tab.wait_for_selector("#result:not([hidden])")
    assert tab.inner_text("#result h2") == "dropped.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_has_readable_contrast(tab: Any, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.set_viewport_size({"width": 360, "height": 740})
    give(tab, picture("a very long name of a file that does not fit into a narrow window at all.png"))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for selector in ("#networks", ".said strong", ".share", ".time", "#limits"):
        assert contrast(tab, selector) >= 4.5, selector


def contrast(tab: Any, selector: str) -> float:
    """WCAG contrast of a text and the first ground below it that is painted."""
    colours = tab.locator(selector).first.evaluate("""(element) => {
        const ink = getComputedStyle(element).color;
        const clear = (one) => getComputedStyle(one).backgroundColor === "rgba(0, 0, 0, 0)";
        while (element && clear(element)) element = element.parentElement;
        return [ink, getComputedStyle(element ?? document.body).backgroundColor];
    }""")

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A GeoTIFF of 4 x 3 windows."""
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio: pip install -e '.[use]'")
    path = tmp_path_factory.mktemp("town") / "town.tif"
    tiles = np.random.default_rng(0).integers(0, 256, (3, 3, 4), dtype=np.uint8)
    pixels = np.kron(tiles, np.ones((1, 96, 96), np.uint8))
    place = rasterio.transform.from_origin(500_000, 5_400_000, 2, 2)
    with rasterio.open(
        path, "w", "GTiff", 384, 288, 3, crs="EPSG:32632", transform=place, dtype="uint8", compress="deflate"
    ) as raster:
        raster.write(pixels)
    return {"name": "town.tif", "mimeType": "image/tiff", "buffer": path.read_bytes()}


def drawn(tab: Any) -> str:
    """What is on the canvas, without what lies over it."""
    content: str = tab.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
    return content


def test_a_geotiff_is_a_map_to_move_and_read(tab: Any, town: dict[str, Any]) -> None:
    give(tab, town)
    assert tab.inner_text("#result h2") == "town.tif"
    assert "EPSG:32632 · 12 windows" in tab.inner_text(".facts")
    legend = tab.locator(".legend .name").all_inner_texts()
    canvas = tab.locator("canvas")
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.move(middle[0] + 3, middle[1] + 3)
    readout = tab.inner_text(".readout")
    found = re.fullmatch(r"(.+), ([\d.]+) % · pixel (\d+), (\d+) · ([\d.]+), ([\d.]+)", readout)
    assert found and found[1] in legend, readout
    assert abs(int(found[3]) - 192) < 5 and abs(int(found[4]) - 144) < 5
    assert float(found[5]) == pytest.approx(500_000 + 2 * int(found[3]), abs=2.1)
    assert float(found[6]) == pytest.approx(5_400_000 - 2 * int(found[4]), abs=2.1)
    whole = drawn(tab)
    tab.mouse.wheel(0, -400)
    assert drawn(tab) != whole
    near = tab.inner_text(".readout")
    tab.mouse.move(middle[0] + 30, middle[1] + 3)
    moved = re.search(r"pixel (\d+), ", tab.inner_text(".readout"))
    assert moved and int(moved[1]) - int(found[3]) < 27 * 384 / box["width"], f"zoomed in: {near}"
    tab.mouse.down()
    tab.mouse.move(middle[0] - 60, middle[1] - 40, steps=3)
    tab.mouse.up()
    tab.mouse.move(middle[0] - 59, middle[1] - 40)
    after = re.search(r"pixel (\d+), ", tab.inner_text(".readout"))
    assert after and abs(int(after[1]) - int(moved[1])) <= 1, "the map goes with the pointer"
    canvas.press("0")
    assert drawn(tab) == whole


def test_the_map_fades_and_shows_one_class_alone(tab: Any, town: dict[str, Any]) -> None:
    give(tab, town)
    whole = drawn(tab)
    tab.locator(".opacity").fill("0")
    bare = drawn(tab)
    assert bare != whole
    tab.locator(".opacity").fill("100")
    first = tab.locator(".legend button").first
    everything = drawn(tab)
    tab.locator(".fade").check()
    assert drawn(tab) != everything
    tab.locator(".fade").uncheck()
    first.click()
    assert first.get_attribute("aria-pressed") == "true"
    if tab.locator(".legend button").count() > 1:
        assert drawn(tab) != everything
    first.click()
    assert drawn(tab) == everything
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.locator(".downloads a").all_inner_texts() == ["GeoPackage", "GeoTIFF", "CSV", "JSON"]
