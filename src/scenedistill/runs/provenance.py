"""What a network's file says of itself beside its weights: where it was trained, how, and how good it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from scenedistill import __version__
from scenedistill.core.disk import read_json
from scenedistill.core.errors import UserError
from scenedistill.core.yaml_files import read_yaml
from scenedistill.data.known.catalogue import CATALOG, lookup, normalise
from scenedistill.data.known.dataset_info import DatasetFacts
from scenedistill.models.files import NetCard
from scenedistill.models.network import SceneNet
from scenedistill.runs.find import Training, of
from scenedistill.training.runs import started_from

#: Keys of a file's metadata: the card, as in every `weights.safetensors`, and what is known beside it.
CARD, ABOUT = "scenedistill", "about"


def find_about(weights: Path) -> Mapping[str, Any]:
    """What is known of the network of a safetensors file: from the file itself when it was exported, else from the run
    it lies in; empty when there is none."""
    with safe_open(weights, "pt") as file:
        own = (file.metadata() or {}).get(ABOUT)
    return json.loads(own) if own else about_training(of(weights.parent))


def about_training(training: Training) -> dict[str, Any]:
    """What a run says of one of its networks; a key is left out where the run does not say.

    Returns:
        Of `oa` (on the test split, 0..1), `test_images`, `split_hash`, `train_ratio`, `seed`, `data`, `data_guessed`
        (true where only the class names tell), `licence`, `reference`, `doi`, `method`, `started_from` (the pretrained
        weights, where there were some), `teacher`, `teacher_oa`, `weights_hash`, `precision` and `scenedistill`: plain
        JSON values.
    """
    if not training.settings:
        return {}
    tested, data = training.tested, training.settings.get("data", {})
    name, facts, guessed = _data(training, data.get("classes", ()))
    teacher, start = training.teacher, started_from(training.settings)
    found = {
        "oa": tested.get("oa"),
        "test_images": tested.get("images"),
        "split_hash": data.get("split"),
        "train_ratio": _ratio(training),
        "seed": training.settings.get("seed"),
        "data": name,
        "data_guessed": guessed or None,
        "licence": facts.licence if facts else None,
        "reference": facts.reference if facts else None,
        "doi": facts.doi if facts else None,
        "method": training.method,
        "started_from": None if start == "none" else start,
        "teacher": training.record.get("teacher") or (teacher.record.get("name") if teacher else None),
        "teacher_oa": teacher.tested.get("oa") if teacher else None,
        "weights_hash": training.record.get("weights_hash"),
        "precision": training.settings.get("precision"),
        "scenedistill": __version__,
    }
    return {key: value for key, value in found.items() if value is not None}


def normalisation(net: SceneNet) -> dict[str, list[float]]:
    """Mean and standard deviation of each band, of images in 0..1, with which the network normalises."""
    return {name: [round(float(value), 6) for value in getattr(net, name).flatten()] for name in ("mean", "std")}


def completed(card: NetCard, training: Training) -> NetCard:
    """The card with the stored size that the run has used, where an older file does not say it."""
    size = training.settings.get("data", {}).get("stored_size")
    return replace(card, stored_size=size) if card.stored_size is None and size else card


def as_metadata(card: NetCard, about: Mapping[str, Any]) -> dict[str, str]:
    """The two entries of a file's metadata."""
    return {CARD: json.dumps(asdict(card), ensure_ascii=False), ABOUT: json.dumps(about, ensure_ascii=False)}


def read_about(metadata: Mapping[str, str], path: Path) -> tuple[NetCard, dict[str, Any]]:
    """The card and what else a file's metadata says.

    Raises:
        UserError: the file was not made by `export`.
    """
    try:
        fields = json.loads(metadata[CARD])
        card = NetCard(**{**fields, "classes": tuple(fields["classes"])})
        return card, dict(json.loads(metadata.get(ABOUT) or "{}"))
    except (KeyError, ValueError, TypeError) as problem:
        raise UserError(
            f"{path} does not say which classes it knows. Give a file that `scenedistill export` made."
        ) from problem


def run_settings(training: Training) -> dict[str, Any]:
    """The `data` section of the run's settings."""
    if training.run is None:
        return {}
    try:
        section = read_yaml(training.run / "settings.yaml", unchanged=True).get("data")
    except UserError:  # damaged, or changed: what it says is not what the run did
        return {}
    return section if isinstance(section, dict) else {}


def _ratio(training: Training) -> float | None:
    """Share of the images that trained; None where a split file was given."""
    if "split" in training.record:
        return dict(training.record["split"]).get("train_ratio")
    run = run_settings(training)  # an older run says it there alone
    return None if run.get("split_file") else run.get("train_ratio")


def _data(training: Training, classes: tuple[str, ...]) -> tuple[str | None, DatasetFacts | None, bool]:
    """Name of the images it was trained on, their catalogue entry, and whether both are only a guess.

    The run's own word counts. Where it has none, a catalogue entry with all of these class names is the guess.
    """
    wanted = {normalise(one) for one in classes}
    try:
        assert training.run is not None
        name = str(read_json(training.run / "summary.json")["data"])
    except (AssertionError, KeyError):
        for facts in CATALOG.values():
            if wanted and wanted <= _known(facts) and len(wanted) >= 0.6 * len(facts.counts):
                return facts.name, facts, True
        return None, None, False
    with contextlib.suppress(UserError):  # not in the catalogue
        if 2 * len(wanted & _known(lookup(name))) >= len(wanted):  # any folder may be called so
            return name, lookup(name), False
    return name, None, False


def _known(facts: DatasetFacts) -> set[str]:
    return {normalise(name) for name in (*facts.counts, *facts.class_aliases)}
