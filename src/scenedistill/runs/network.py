"""A trained network of a run: settings, record, test results and related networks."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scenedistill.core.disk import file_damage
from scenedistill.core.errors import Damaged
from scenedistill.data.names import nfc
from scenedistill.data.splits.draw import split_hash
from scenedistill.metrics.outputs import OUTPUTS, KeptOutputs, load_outputs
from scenedistill.training.runs import ASIDE, read_stage

SEED = re.compile(r"seed(\d+)")
TEACHER, PLAIN = "teacher", "plain"
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Network:
    """A teacher, or a student trained by one method with one seed; it may be unfinished.

    A run is laid out as `RUN/seedN/teacher` and `RUN/seedN/STUDENT/LABEL`, each with a `stage.json`.

    Attributes:
        folder: folder of its stage, with `stage.json`, and `weights.safetensors` once it is trained.
        label: how it was trained: `teacher`, or the name of the student's folder, such as `plain` or `dkd`; in a grid
            the method's label.
        stage: content of its `stage.json`; empty where there is none.
        tuning: whether it is one of a grid's tuning runs, which use no test image.
    """

    folder: Path
    label: str
    stage: dict[str, Any]
    tuning: bool = False

    @classmethod
    def at(cls, folder: Path, *, tuning: bool = False) -> Network:
        """Create the network from a stage's folder."""
        stage = read_stage(folder)
        student = (stage.get("settings") or {}).get("student")
        return cls(folder, folder.resolve().name if student else TEACHER, stage, tuning)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that determine the training."""
        return dict(self.stage.get("settings") or {})

    @property
    def record(self) -> dict[str, Any]:
        """Record of the training."""
        return dict(self.stage.get("record") or {})

    @property
    def weights(self) -> Path:
        """Path of the weights file."""
        return self.folder / WEIGHTS

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return int(self.settings.get("seed", 0))

    @property
    def student(self) -> str | None:
        """The student's name; None for a teacher."""
        student = self.settings.get("student")
        return str(student["name"]) if student else None

    @property
    def method(self) -> str | None:
        """Named set of losses of a student, such as `plain` or `dkd`; None for a teacher."""
        student = self.settings.get("student")
        return str(student["method"]) if student else None

    @property
    def name(self) -> str:
        """Name of the network."""
        return self.student or str(self.record.get("name") or self.settings.get("teacher", {}).get("name", TEACHER))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the scene classes."""
        return tuple(self.settings.get("data", {}).get("classes", ()))

    @property
    def finished(self) -> bool:
        """Whether it is trained and tested; a tuning run is never tested."""
        return bool(self.stage.get("finished")) and ("oa" in self.tested or self.tuning)

    @cached_property
    def tested(self) -> dict[str, Any]:
        """Test results (`oa`, `aa`, `kappa`, `per_class`, `cost`, ...); empty before the test, and where other weights
        were tested."""
        test = read_stage(self.folder / "evaluation")
        if not test.get("finished") or test.get("settings", {}).get("of") != self.stage.get("fingerprint"):
            return {}
        return {**test.get("record", {}), "files": test.get("files", {})}

    @cached_property
    def outputs(self) -> KeptOutputs | None:
        """Logits of each test image; None where they were not stored."""
        with contextlib.suppress(OSError, Damaged):
            return load_outputs(self.folder / "evaluation" / OUTPUTS)
        return None

    @cached_property
    def confusion(self) -> np.ndarray | None:
        """Confusion matrix, counts, int64 `[K, K]`, rows the true class; None where it was not stored or is damaged."""
        path = self.folder / "evaluation" / "test_confusion.csv"
        if (kept := self.tested.get("files", {}).get(path.name)) and file_damage(path, kept):
            return None
        with contextlib.suppress(OSError, ValueError), path.open(encoding="utf-8", newline="") as file:
            counts = np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.int64)
            if counts.shape == (len(self.classes), len(self.classes)):
                return counts
        return None

    @cached_property
    def test_paths(self) -> tuple[str, ...]:
        """Path of each test image below the data folder, in the order of `outputs`; empty where they do not match."""
        if self.split_file is None or self.outputs is None:
            return ()
        paths = _test_paths(self.split_file, self.classes, str(self.settings.get("data", {}).get("split", "")))
        fits = [label for _, label in paths] == self.outputs.labels.tolist()
        return tuple(path for path, _ in paths) if fits else ()

    @property
    def seed_folder(self) -> Path | None:
        """Folder of all networks of its seed; None for a network outside a run."""
        return next((above for above in self.folder.resolve().parents if SEED.fullmatch(above.name)), None)

    @property
    def run_folder(self) -> Path | None:
        """Folder of its run, or of its data set and ratio in a grid."""
        return self.seed_folder.parent if self.seed_folder else None

    @property
    def split_file(self) -> Path | None:
        """Path of the `split.csv` of its seed; None where there is none."""
        file = self.seed_folder / "split.csv" if self.seed_folder else None
        return file if file and file.is_file() else None

    @property
    def teacher(self) -> Network | None:
        """The teacher it was distilled from; None where the run no longer has it."""
        wanted = self.settings.get("teacher")
        if self.seed_folder is None or not isinstance(wanted, str):
            return None
        folders = [self.seed_folder / TEACHER, *sorted(self.seed_folder.glob(f"{TEACHER}{ASIDE}*"))]
        return next((one for one in map(Network.at, folders) if one.stage.get("fingerprint") == wanted), None)

    @property
    def plain(self) -> Network | None:
        """The plain student of the same seed and name, or the network itself if it is plain; of several, one with the
        same setting of DA modules is preferred."""
        if self.method in (None, PLAIN):
            return self if self.method else None
        beside = [Network.at(folder) for folder in sorted(self.folder.resolve().parent.iterdir()) if folder.is_dir()]
        found = [one for one in beside if one.method == PLAIN and one.weights.is_file()]
        own = self.settings["student"]["dual_attention"]

        def rank(one: Network) -> tuple[bool, bool, str]:
            return ASIDE in one.folder.name, one.settings["student"]["dual_attention"] != own, one.folder.name

        return min(found, key=rank, default=None)


def _test_paths(split: Path, classes: Sequence[str], wanted: str) -> list[tuple[str, int]]:
    """Read path and label of each test image, in the order of a `SceneIndex`; empty where the hash of the file is not
    `wanted`, because another run may have replaced it."""
    number = {nfc(name): position for position, name in enumerate(classes)}
    try:
        with split.open(encoding="utf-8", newline="") as file:
            rows = [(row["path"], row["label"], row["split"]) for row in csv.DictReader(file)]
        if wanted != split_hash(rows):
            return []
        found = [(path, number[nfc(label)]) for path, label, part in rows if part == "test"]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return []
    if any(PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts for path, _ in found):
        return []  # the report shows only images below the data folder
    return sorted(found, key=lambda entry: (entry[1], nfc(entry[0]), entry[0]))
