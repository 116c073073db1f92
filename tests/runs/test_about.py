"""What an exported file says of its data: what the run has written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from scenedistill.data.known.catalogue import CATALOG
from scenedistill.export.check import FileCheck
from scenedistill.export.model_card import model_card
from scenedistill.models.files import NetCard
from scenedistill.runs.network import Network
from scenedistill.runs.provenance import training_provenance

EUROSAT = CATALOG["eurosat"]


def run_of(folder: Path, data: str | None, classes: tuple[str, ...] = EUROSAT.classes, *, old: bool = False) -> Path:
    """As much of a run as says what it was trained on; its training's folder. An old one says it in its summary."""
    stage = folder / "seed0" / "student" / "dkd"
    stage.mkdir(parents=True)
    settings = {"data": {"classes": list(classes), "split": "0"}, "student": {"method": "dkd"}}
    record = {"images": {"name": data}} if data and not old else {}
    (stage / "stage.json").write_text(json.dumps({"settings": settings, "record": record}))
    (folder / "settings.yaml").write_text("data: {}\n")
    if data and old:
        (folder / "summary.json").write_text(json.dumps({"data": data}))
    return stage


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("data", "licence"),
    [
        ("EuroSAT", EUROSAT.licence),
        ("my photos", None),  # their classes are called the same, by chance or by design
        (None, None),
        ("AID", None),  # a folder of that name with other classes
    ],
)
def test_a_licence_is_given_only_if_name_and_classes_fit_the_catalogue(
    tmp_path: Path, data: str | None, licence: str | None, old: bool
) -> None:
    about = training_provenance(Network.at(run_of(tmp_path, data, old=old)))
    assert (about.get("data"), about.get("licence")) == (data, licence)


def page_of(about: dict[str, object]) -> tuple[dict[str, object], str]:
    """Head and text of the page that goes with an export."""
    card = NetCard("table1_printed", EUROSAT.classes, 3, 64)
    found = FileCheck("model.onnx", 10**6, 100, 0.9, 1.0, 1e-4, 1e-2, 0)
    _, head, text = model_card([found], {}, card, about).split("---\n", 2)
    return yaml.safe_load(head), text


def test_a_page_names_the_data_where_the_run_does(tmp_path: Path) -> None:
    head, text = page_of({**training_provenance(Network.at(run_of(tmp_path / "unknown", None))), "oa": 0.9})
    assert "EuroSAT" not in text and "# table1_printed for remote-sensing scenes" in text
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "unnamed"  # type: ignore[index]
    head, text = page_of(training_provenance(Network.at(run_of(tmp_path / "known", "EuroSAT"))))
    assert "# table1_printed for scenes of EuroSAT" in text


@pytest.mark.parametrize(
    ("about", "licence"),
    [
        ({"licence": "CC BY-NC-ND 4.0"}, "cc-by-nc-nd-4.0"),
        ({"licence": "MIT"}, "mit"),
        ({"licence": "MIT; Sentinel data under the Copernicus terms"}, "other"),
        ({"licence": "CC BY-NC-ND"}, "other"),  # no version, and the hub has none without
        ({}, "other"),
    ],
)
def test_the_hub_reads_a_licence_it_knows(about: dict[str, object], licence: str) -> None:
    assert page_of(about)[0]["license"] == licence


def test_a_name_on_the_page_is_text(tmp_path: Path) -> None:
    names = ("<img src=x onerror=alert(1)>", "a|b", "[link](http://a.b)", "two\n# lines")
    card = NetCard("table1_printed", names, 3, 64)
    about = {key: f"<script>{key}</script> `x`" for key in ("data", "teacher", "method", "licence", "reference", "doi")}
    found = FileCheck("model.onnx", 10**6, 100, 0.9, 1.0, 1e-4, 1e-2, 0)
    about |= {"weights_hash": "<b>", "split_hash": "</td>"}
    _, _, text = model_card([found], {}, card, about).split("---\n", 2)
    outside = "".join(text.split("```")[::2])  # beside the lines of Python
    assert "<" not in outside, outside
    assert r"a\|b, \[link\](http://a.b), two \# lines" in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
