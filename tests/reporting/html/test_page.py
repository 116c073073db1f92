"""The report as a file: whole, by itself, safe, small, and made also where something is missing."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scenedistill.commands import report as report_command
from scenedistill.core.errors import UserError
from scenedistill.metrics.outputs import load_outputs, save_outputs
from scenedistill.reporting.html import page as page_module
from scenedistill.reporting.html.config import ReportConfig
from scenedistill.reporting.html.page import write_report

PLAINLY = ReportConfig(gradcam_images=0, map_images=0)
CLOSELY = ReportConfig(gradcam_images=8, map_images=12, device="cpu")


class Reader(HTMLParser):
    """What an HTML parser finds: elements with attributes, headings, the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self.words.setdefault(self._open[-1], []).append(data)


def read(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[str]:
    return [word for word in read(page).words["h2"] if word.strip()]


def test_a_run_has_every_section(page: Path) -> None:
    assert headings(page) == [
        "In short",
        "What was run",
        "Results",
        "Comparison with all others",
        "Gain of each class",
        "Confusion matrices",
        "Most confused pairs",
        "Where the networks look",
        "Map of the embeddings",
        "Learning curves",
        "Parts of the loss",
        "Calibration",
        "Cost",
    ]
    text = page.read_text(encoding="utf-8")
    assert "scenedistill run scenes.csv --out run" in text and "image_size: 32" in text and "torch 2." in text


def test_a_grid_has_all_cells_tuning_and_failures(grid_page: Path) -> None:
    assert headings(grid_page)[-2:] == ["Tuning", "What is missing"]
    text = grid_page.read_text(encoding="utf-8")
    for words in (
        "tiny, 25 % training",
        "tiny, 50 % training",
        "kd_hot",
        "the loss is not finite at step 3 &lt;nan&gt;",
    ):
        assert words in text
    content = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert [cell["title"] for cell in content["matrices"]] == ["tiny, 25 % training", "tiny, 50 % training"]
    for cell in content["matrices"]:
        assert [cell["networks"][cell[place]]["label"] for place in ("first", "second")] == ["plain", "dkd"]


def test_the_page_loads_nothing_from_the_internet_and_names_no_folder(page: Path, made: Any) -> None:
    found = read(page)
    for tag, attributes in found.elements:
        for name in ("src", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
        if tag in ("link", "iframe", "object", "embed", "base"):
            pytest.fail(f"the page has a {tag}")
        if "href" in attributes and tag != "a":
            pytest.fail(f"{tag} leads to {attributes['href']}")
    style = "".join(found.words["style"])
    assert "@import" not in style and "url(" not in style
    script = "".join(found.words["script"])
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|import\(|innerHTML|eval\(", script)
    text = page.read_text(encoding="utf-8")
    assert str(made.manifest.parent) not in text and "default-src 'none'" in text


def test_class_names_are_escaped(page: Path, grid_page: Path) -> None:
    """Names that are HTML make no element, wherever they stand: in tables, charts, legends or the script's data."""
    for file in (page, grid_page):
        text = file.read_text(encoding="utf-8")
        assert '<script>document.title="x"' not in text and "<i>c</i>" not in text
        assert "&lt;/script&gt;&lt;script&gt;document.title=" in text and "\\u003c/script\\u003e" in text
        assert len([tag for tag, _ in Reader(text).elements if tag == "script"]) == 2
        assert "forêt" in text


def test_every_picture_is_described_and_every_heading_in_its_place(page: Path) -> None:
    found = read(page)
    for tag, attributes in found.elements:
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
        if tag in ("nav", "dialog"):
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(names) == len(set(names)), "every id once"


def test_without_its_images_the_report_says_so_in_one_line(copied: Path, tmp_path: Path) -> None:
    for path in copied.rglob("stage.json"):
        stage = json.loads(path.read_text(encoding="utf-8"))
        del stage["checksum"]
        if path.parent.name != "evaluation":
            stage["record"]["images"]["root"] = str(tmp_path / "moved away")
        path.write_text(json.dumps(stage), encoding="utf-8")
    out = write_report(copied, tmp_path / "deep" / "page.html")
    assert out == tmp_path / "deep" / "page.html"
    text = out.read_text(encoding="utf-8")
    (line,) = re.findall(r'<p class="warn">(.*?)</p>', text)
    assert line.startswith("Images, Grad-CAM and the map of embeddings are left out: there is no moved away.")
    assert "--data" in line
    assert "Where the networks look" not in headings(out) and "Most confused pairs" in headings(out)
    assert "data:image/webp" not in text and out.stat().st_size < 400_000


def test_a_run_without_stored_outputs_still_has_a_report(copied: Path) -> None:
    for path in (*copied.rglob("outputs.npz"), *copied.rglob("metrics.csv"), copied / "summary.json"):
        path.unlink()
    out = write_report(copied)
    assert out == copied / "report.html"
    found = headings(out)
    assert {"Results", "Gain of each class", "Confusion matrices", "Cost", "What is missing"} <= set(found)
    assert not {"Calibration", "Most confused pairs", "Learning curves", "Parts of the loss"} & set(found)


@pytest.mark.parametrize("left", ["teacher", "table1_printed/plain", "table1_printed/dkd"])
def test_a_run_with_one_kind_of_network_has_a_report(left: str, copied: Path) -> None:
    for stage in copied.rglob("stage.json"):
        if stage.parent.name != "evaluation" and stage.parent.relative_to(copied).as_posix()[6:] != left:
            stage.unlink()
    out = write_report(copied, config=PLAINLY)
    assert {"In short", "Results", "Confusion matrices", "Calibration"} <= set(headings(out))


def test_the_small_images_keep_within_the_page(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_report(made.run, tmp_path / "whole.html", data=made.manifest, config=PLAINLY).stat().st_size
    bare = write_report(made.run, tmp_path / "bare.html", data=tmp_path, config=PLAINLY).stat().st_size
    limit = (whole + bare) // 2
    # the limit of real pages is reached with thousands of images
    monkeypatch.setattr(page_module, "LARGEST", limit)
    small = write_report(made.run, tmp_path / "small.html", data=made.manifest, config=PLAINLY).stat().st_size
    assert bare < small <= limit + 3000 < whole < 15_000_000


def test_long_lists_of_images_are_cut(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def longest(page: Path) -> int:
        found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
        assert found
        networks = json.loads(found[1])["matrices"][0]["networks"]
        lists = [images for network in networks for one in network["seeds"] for images in one["behind"].values()]
        return max(map(len, lists), default=0)

    assert longest(write_report(made.run, tmp_path / "long.html", data=made.manifest, config=PLAINLY)) > 3
    monkeypatch.setattr(page_module, "LISTS", 0)  # as it is when thousands of images have filled the page
    assert longest(write_report(made.run, tmp_path / "cut.html", data=made.manifest, config=PLAINLY)) == 0


def test_the_networks_examined_closely_can_be_chosen(grid_folder: Path, tmp_path: Path) -> None:
    chosen = dataclasses.replace(PLAINLY, cell="tiny-50", student="table1_printed", method="kd_hot")
    text = write_report(grid_folder, tmp_path / "page.html", config=chosen).read_text(encoding="utf-8")
    assert "OA of the kd_hot student" in text
    assert "Looked at closely below: tiny, 50 % training, student table1_printed, plain and kd_hot." in text
    for wrong, words in (
        ({"cell": "tiny-20"}, "--cell is tiny-20.*There are: tiny-25, tiny-50"),
        ({"student": "x"}, "--student is x.*table1_printed"),
        ({"method": "x"}, "--method is x.*kd_hot, dkd"),
        ({"map_images": -1}, "0 or more"),
    ):
        with pytest.raises(UserError, match=words):
            write_report(grid_folder, tmp_path / "page.html", config=dataclasses.replace(PLAINLY, **wrong))
    with pytest.raises(UserError, match="is a folder"):
        write_report(grid_folder, tmp_path, config=PLAINLY)


def test_the_command_writes_the_page_and_the_figures(made: Any, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    arguments = [str(made.run), "--out", str(out), "--data", str(made.manifest)]
    settings = report_command.parser().parse_args([*arguments, "--gradcam_images", "0", "--map_images", "0"])
    said = io.StringIO()
    report_command.command(settings, Console(file=said, width=300), "")
    assert f"Report: {out} (0." in said.getvalue() and out.is_file() and "Figures" not in said.getvalue()
    more = ["--gradcam_images", "0", "--map_images", "0", "--figures", str(tmp_path / "figures"), "--as", "png"]
    report_command.command(report_command.parser().parse_args([*arguments, *more]), Console(file=said, width=300), "")
    assert f"Figures: {tmp_path / 'figures'}" in said.getvalue() and (tmp_path / "figures" / "curves.png").is_file()
    settings = report_command.parser().parse_args([str(made.run), "--data", "{tiny: a/b}", "--cell", "AID-20"])
    assert settings.data == {"tiny": "a/b"} and settings.cell == "AID-20" and settings.gradcam_images == 300


def test_matrices_of_the_examined_networks_stay_when_the_page_is_full(
    grid_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "LISTS", 0)  # as above
    text = write_report(grid_folder, tmp_path / "page.html", config=PLAINLY).read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found and [cell["title"] for cell in json.loads(found[1])["matrices"]] == ["tiny, 25 % training"]
    assert "no room for confusion matrices but those of tiny, 25 % training" in text


def test_the_page_says_what_it_leaves_out_and_how_a_method_was_chosen(copied: Path, made: Any, tmp_path: Path) -> None:
    for name in ("sp", "kd"):
        shutil.copytree(copied / "seed0" / "table1_printed" / "dkd", copied / "seed0" / "table1_printed" / name)
    for seed in ("seed0", "seed1"):
        shutil.rmtree(copied / seed / "table1_printed" / "dkd")
    stage = copied / "seed1" / "table1_printed" / "plain" / "stage.json"
    record = json.loads(stage.read_text(encoding="utf-8"))
    record["settings"]["precision"] = "bf16"
    del record["checksum"]
    stage.write_text(json.dumps(record), encoding="utf-8")
    text = write_report(copied, tmp_path / "page.html", config=PLAINLY).read_text(encoding="utf-8")
    assert "is shown because its mean OA on the test images is the highest of 2 methods" in text
    assert "or another teacher: seed1/table1_printed/plain." in text
    chosen = dataclasses.replace(PLAINLY, method="sp")
    assert "is shown because" not in write_report(copied, tmp_path / "page.html", config=chosen).read_text("utf-8")


def test_test_results_on_different_images_leave_the_pictures_out(copied: Path, made: Any, tmp_path: Path) -> None:
    outputs = copied / "seed0" / "table1_printed" / "plain" / "evaluation" / "outputs.npz"
    kept = load_outputs(outputs)
    save_outputs(kept.logits, kept.labels, kept.rows + 1, outputs)
    config = dataclasses.replace(CLOSELY, map_images=0)
    text = write_report(copied, tmp_path / "page.html", data=made.manifest, config=config).read_text(encoding="utf-8")
    assert "Grad-CAM or the map of embeddings: &#39;plain&#39; was tested on other images" in text


@pytest.mark.slow
def test_the_figures_for_a_paper_are_those_of_the_page(made: Any, tmp_path: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam: pip install -e '.[report]'")
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install -e '.[report]'")
    out, folder = tmp_path / "page.html", tmp_path / "deep" / "figures"
    write_report(made.run, out, data=made.manifest, figures=folder, ending="svg", config=CLOSELY)
    names = {path.stem for path in folder.iterdir()}
    matrices = {"confusion-teacher", "confusion-plain", "confusion-dkd", "confusion-difference", "class-gains"}
    others = {"comparison", "gradcam", "embeddings", "curves", "loss-teacher", "loss-dkd", "reliability"}
    assert names - {"confused-pairs"} == matrices | others, "a network that errs nowhere confuses nothing"
    assert all(path.read_text(encoding="utf-8").startswith("<?xml") for path in folder.iterdir())
    write_report(made.run, out, data=tmp_path, figures=tmp_path / "few", ending="png", config=PLAINLY)
    few = {path.stem for path in (tmp_path / "few").glob("*.png")}
    assert few == names - {"gradcam", "embeddings", "confused-pairs"}
    with pytest.raises(UserError, match=r"--figures .* is a file"):
        write_report(made.run, out, figures=out)
    with pytest.raises(UserError, match="--as is gif; expected one of pdf, svg, png"):
        write_report(made.run, out, figures=folder, ending="gif")
