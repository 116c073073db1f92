"""The page in a real browser: what a reader sees and does, on a laptop, a phone, in the dark and on paper."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[browser]'")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
PATIENCE = 120_000  # milliseconds; a machine may have much else to do
LAPTOP, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: install Chromium or Google Chrome")

#: Smallest contrast of a text with what is behind it, and which text that is (WCAG 2.2, relative luminance).
CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const pixel = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = pixel(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  let worst = [99, ''];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest('.skip')) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(pixel(element.closest('svg') ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < worst[0]) worst = [ratio, `${element.tagName} ${element.className} ${element.textContent}`];
  }
  return worst;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        running = tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a report. At the end the console must hold nothing and the network must not have been asked."""
    contexts, said, asked = [], [], []

    def opened(file: Path, **more: Any) -> Any:
        context = browser.new_context(**{"viewport": LAPTOP, "offline": True, **more})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda problem: said.append(str(problem)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not said
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked


def entry(tab: Any, matrix: int, row: int, column: int) -> Any:
    return tab.locator("figure.matrix").nth(matrix).locator(f'td[data-r="{row}"][data-c="{column}"]')


def test_the_page_shows_every_section_matrix_chart_and_image(show: Callable[..., Any], page: Path) -> None:
    tab = show(page)
    assert tab.title() == "run: scenedistill report", "a class name has not run as a script"
    links = tab.locator("nav a")
    assert links.count() == tab.locator("main > section").count() == 12
    assert tab.locator("figure.matrix").count() == 3 and tab.locator("svg.chart").count() >= 7
    assert tab.evaluate("[...document.images].every((image) => image.src.startsWith('data:image/webp'))")
    tab.evaluate("[...document.images].forEach((image) => { image.loading = 'eager'; })")
    tab.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert tab.locator("#gradcam img").count() > 8 and tab.locator("#pairs img").count() > 3


def test_the_matrix_shows_the_values_and_images_of_an_entry(show: Callable[..., Any], page: Path) -> None:
    tab = show(page)
    counts = tab.evaluate("data.matrices[0].networks[data.matrices[0].second].seeds.map((one) => one.counts)")
    whole: dict[tuple[int, int], int] = {}
    for seed in counts:
        for row, column, count in seed:
            whole[row, column] = whole.get((row, column), 0) + count
    (row, column), count = max((item for item in whole.items() if item[0][0] != item[0][1]), key=lambda item: item[1])
    classes = tab.evaluate("data.matrices[0].classes")
    entry(tab, 1, row, column).hover()
    tip = tab.locator("#tip").inner_text()
    total = sum(number for (r, _), number in whole.items() if r == row)
    assert tip.splitlines() == [
        f"true: {classes[row]}",
        f"predicted: {classes[column]}",
        f"{count} of {total} images, {100 * count / total:.1f} %",
    ]
    entry(tab, 1, row, column).click()
    dialog = tab.locator("dialog[open]")
    assert dialog.locator("h2").inner_text() == f"{classes[row]} taken for {classes[column]}"
    assert dialog.locator("h3").inner_text().startswith(f"table1_printed, dkd: {count} image")
    assert dialog.locator("img").count() == min(count, len(counts) * 12)
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    entry(tab, 2, row, column).click()
    assert tab.locator("dialog[open] h3").count() == 2, "both networks' images behind a difference"


def test_the_matrix_works_with_the_keyboard(show: Callable[..., Any], page: Path) -> None:
    tab = show(page)
    entry(tab, 0, 0, 0).focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    at = tab.evaluate("[document.activeElement.dataset.r, document.activeElement.dataset.c]")
    assert at == ["1", "1"] and tab.locator("#tip").is_visible()
    tab.keyboard.press("Enter")
    assert tab.locator("dialog[open] h2").inner_text().endswith(", rightly named")
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.dataset.r") == "1", "back where it was opened"


def test_networks_and_seeds_can_be_chosen(show: Callable[..., Any], page: Path, grid_page: Path) -> None:
    tab = show(page)
    boxes = tab.locator("#matrix select")
    first = tab.locator("figure.matrix h3")
    assert first.all_inner_texts()[:2] == ["table1_printed, plain", "table1_printed, dkd"]
    boxes.nth(1).select_option(label="table1_printed, teacher")
    assert first.all_inner_texts()[0] == "table1_printed, teacher"
    boxes.nth(3).select_option(label="seed 1")
    sums = tab.locator("figure.matrix").first.locator('td[data-r="0"]').evaluate_all(
        "(cells) => cells.map((cell) => parseInt(cell.dataset.tip.split('\\n')[2]))"
    )  # fmt: skip
    assert sum(sums) == 8, "the test images of one class and one seed"
    tab = show(grid_page)
    tab.locator("#matrix select").nth(2).select_option(label="table1_printed, kd_hot")
    notes = tab.locator("figure.matrix .note").all_inner_texts()
    assert all(", seed 0. " in note for note in notes[:2]), "the seed that both have"
    tab.locator("#matrix select").nth(0).select_option(label="tiny, 50 % training")
    assert tab.locator("figure.matrix h3").all_inner_texts()[:2] == ["table1_printed, plain", "table1_printed, dkd"]
    assert (
        tab.locator("#matrix select").nth(0).evaluate("(box) => box.selectedOptions[0].text") == "tiny, 50 % training"
    )


def test_tables_are_sorted_by_their_values(show: Callable[..., Any], page: Path) -> None:
    tab = show(page)
    table = tab.locator('[data-name="results"]')

    def column() -> list[float]:
        return [float(text.split(" ")[0]) for text in table.locator("tbody tr td:nth-child(4)").all_inner_texts()]

    heading = table.get_by_role("button", name="OA (%)")
    heading.click()
    assert column() == sorted(column()) and table.locator("th[aria-sort=ascending]").count() == 1
    heading.click()
    assert column() == sorted(column(), reverse=True) and table.locator("th[aria-sort=descending]").count() == 1
    table.get_by_role("button", name="training").click()
    words = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert words == ["dkd", "plain", "teacher"]


def test_tables_can_be_downloaded(show: Callable[..., Any], page: Path) -> None:
    tab = show(page)

    def download(name: str, ending: str) -> str:
        box = tab.locator(f'[data-name="{name}"]')
        box.evaluate("(element) => element.closest('details')?.setAttribute('open', '')")
        with tab.expect_download() as waiting:
            box.locator(f'[data-format="{ending}"]').click()
        assert waiting.value.suggested_filename == f"{name}.{ending}"
        return Path(waiting.value.path()).read_bytes().decode("utf-8")

    rows = list(csv.DictReader(download("results", "csv").splitlines()))
    assert [row["training"] for row in rows] == ["teacher", "plain", "dkd"]
    assert all(float(row["OA (%)"]) and float(row["OA (%) std"]) >= 0 for row in rows)
    names = [row["class"] for row in csv.DictReader(download("classes", "csv").splitlines())]
    assert '</script><script>document.title="x"</script>' in names and 'a "b" & <i>c</i>' in names
    tex = download("classes", "tex")
    assert r"\textless{}/script\textgreater{}" in tex and r'a "b" \& ' in tex
    assert all(line.endswith(r"\\") for line in tex.splitlines() if "&" in line)
    assert tex.splitlines()[0] == r"\begin{tabular}{lrrrr}" and r"$\pm$" in tex
    markdown = download("results", "md").splitlines()
    assert markdown[1].startswith("| --- | --- | ---: |") and len(markdown) == 5
    assert all(line.count("|") == markdown[0].count("|") for line in markdown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable(scheme: str, show: Callable[..., Any], page: Path) -> None:
    tab = show(page, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    ratio, where = tab.evaluate(CONTRAST)
    assert ratio >= 4.5, where


def test_the_dark_theme_is_remembered(show: Callable[..., Any], page: Path) -> None:
    tab = show(page, color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    before = tab.evaluate(colour)
    tab.get_by_role("button", name="Dark page").click()
    dark = tab.evaluate(colour)
    assert dark != before and tab.get_by_role("button", name="Light page").is_visible()
    tab.reload()
    assert tab.evaluate(colour) == dark
    assert show(page, color_scheme="dark").evaluate(colour) == dark, "what the system wishes is taken at first"


@pytest.mark.parametrize("which", ["page", "grid_page"])
def test_a_phone_scrolls_only_up_and_down(which: str, show: Callable[..., Any], request: pytest.FixtureRequest) -> None:
    tab = show(request.getfixturevalue(which), viewport=PHONE)
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not tab.locator("nav li").first.is_visible(), "the contents are folded"
    tab.get_by_text("Contents").click()
    tab.get_by_role("link", name="Cost").click()
    assert tab.locator("#cost").evaluate("(part) => Math.abs(part.getBoundingClientRect().top) < innerHeight")


def test_a_click_in_the_legend_highlights_a_series(show: Callable[..., Any], page: Path) -> None:
    tab = show(page)
    key = tab.locator("#curves .legend button").nth(1)
    key.click()
    assert key.get_attribute("aria-pressed") == "true"
    dimmed = tab.locator("#curves .dim").evaluate_all("(parts) => parts.map((part) => part.dataset.series)")
    assert set(dimmed) == {"teacher", "dkd"}
    key.click()
    assert tab.locator("#curves .dim").count() == 0
    tab.locator("#curves circle").first.hover()
    assert re.fullmatch(r"teacher, epoch 1: [\d.]+ %", tab.locator("#tip").inner_text())


def test_the_page_prints_in_light_colours_and_in_full(show: Callable[..., Any], page: Path) -> None:
    tab = show(page, color_scheme="dark")
    tab.evaluate(
        "addEventListener('beforeprint', () => "
        "{ window.folded = document.querySelectorAll('details:not([open])').length })"
    )
    printed = tab.pdf(format="A4")
    assert printed.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", printed)) >= 4
    assert tab.evaluate("window.folded") == 0, "what is folded is printed too"
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.locator("nav").is_visible() and not tab.locator("#theme").is_visible()
