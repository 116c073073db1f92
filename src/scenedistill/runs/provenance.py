"""Metadata in the file of a network: training data, method and accuracy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from scenedistill import __version__
from scenedistill.core.disk import read_json
from scenedistill.core.errors import UserError
from scenedistill.core.yaml_files import read_yaml
from scenedistill.data.known.catalogue import lookup, normalise
from scenedistill.data.known.dataset_info import DatasetInfo
from scenedistill.models.files import NetCard
from scenedistill.models.network import SceneNet
from scenedistill.runs.network import Network
from scenedistill.training.runs import started_from

#: Keys of a file's metadata: the card, as in every `weights.safetensors`, and the provenance.
CARD, ABOUT = "scenedistill", "about"


def find_provenance(weights: Path) -> Mapping[str, Any]:
    """Return the provenance of the network in a safetensors file: from the file itself if it was exported, else from
    its run; empty if there is none."""
    with safe_open(weights, "pt") as file:
        own = (file.metadata() or {}).get(ABOUT)
    return json.loads(own) if own else training_provenance(Network.at(weights.parent))


def training_provenance(training: Network) -> dict[str, Any]:
    """Collect the provenance of a network from its run; unknown keys are left out.

    Returns:
        JSON values of `oa` (on the test split, 0..1), `test_images`, `split_hash`, `train_ratio`, `seed`, `data`,
        `licence`, `reference`, `doi`, `method`, `started_from` (pretrained weights, if any), `teacher`, `teacher_oa`,
        `weights_hash`, `precision` and `scenedistill`.
    """
    if not training.settings:
        return {}
    tested, data = training.tested, training.settings.get("data", {})
    name = data_name(training)
    info = _catalogue_entry(name, training.classes)
    teacher, start = training.teacher, started_from(training.settings)
    found = {
        "oa": tested.get("oa"),
        "test_images": tested.get("images"),
        "split_hash": data.get("split"),
        "train_ratio": _ratio(training),
        "seed": training.settings.get("seed"),
        "data": name,
        "licence": info.licence if info else None,
        "reference": info.reference if info else None,
        "doi": info.doi if info else None,
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
    """Return the mean and standard deviation of each band with which the network normalises images in 0..1."""
    return {name: [round(float(value), 6) for value in getattr(net, name).flatten()] for name in ("mean", "std")}


def with_stored_size(card: NetCard, training: Network) -> NetCard:
    """Add the run's stored size to the card of an older file that lacks it."""
    size = training.settings.get("data", {}).get("stored_size")
    return replace(card, stored_size=size) if card.stored_size is None and size else card


def as_metadata(card: NetCard, about: Mapping[str, Any]) -> dict[str, str]:
    """Return the two metadata entries of a file as JSON text."""
    return {CARD: json.dumps(asdict(card), ensure_ascii=False), ABOUT: json.dumps(about, ensure_ascii=False)}


def read_provenance(metadata: Mapping[str, str], path: Path) -> tuple[NetCard, dict[str, Any]]:
    """Read the card and the provenance from a file's metadata.

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


def data_name(training: Network) -> str | None:
    """Return the name of the data set that a network was trained on; None if unknown."""
    if name := training.record.get("images", {}).get("name"):
        return str(name)
    run = training.run_folder  # an older run has it only in its summary
    return read_json(run / "summary.json").get("data") if run else None


def _ratio(training: Network) -> float | None:
    """Return the training ratio; None where a split file was given or the ratio is unknown."""
    if "split" in training.record:
        return dict(training.record["split"]).get("train_ratio")
    if training.run_folder is None:
        return None
    try:  # an older run has it only there
        settings = read_yaml(training.run_folder / "settings.yaml", unchanged=True)["data"]
    except (UserError, KeyError):  # damaged or changed: may differ from what the run did
        return None
    return None if settings.get("split_file") else settings.get("train_ratio")


def _catalogue_entry(name: str | None, classes: Sequence[str]) -> DatasetInfo | None:
    """Look up the catalogue entry of a name; None where fewer than half of the classes match: any name is possible."""
    try:
        info = lookup(name or "")
    except UserError:
        return None
    wanted = {normalise(one) for one in classes}
    known = {normalise(one) for one in (*info.counts, *info.class_aliases)}
    return info if 2 * len(wanted & known) >= len(wanted) else None
