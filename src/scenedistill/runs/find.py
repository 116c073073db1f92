"""Where in a run's folder the network lies that somebody means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenedistill.core.errors import UserError
from scenedistill.training.runs import ASIDE, RECORD, read_stage

WEIGHTS = "weights.safetensors"
ENDINGS = (".safetensors", ".onnx", ".pt2")
#: What `export` calls its files, the one that is opened first where a folder holds several.
EXPORTED = ("model.safetensors", "model.onnx", "model.int8.onnx", "model.pt2")


@dataclass(frozen=True)
class Training:
    """One finished training of a run, and what lies around it.

    Attributes:
        folder: its stage folder, which holds `weights.safetensors`.
        settings: what its outcome depends on, as its `stage.json` says.
        record: what became of it.
    """

    folder: Path
    settings: Mapping[str, Any] = field(repr=False)
    record: Mapping[str, Any] = field(repr=False)

    @property
    def weights(self) -> Path:
        """The network's file."""
        return self.folder / WEIGHTS

    @property
    def method(self) -> str | None:
        """How a student was trained, such as `plain` or `dkd`; None for a teacher."""
        student = self.settings.get("student")
        return str(student["method"]) if student else None

    @property
    def tested(self) -> Mapping[str, Any]:
        """Figures on the test split; empty when not tested yet."""
        return dict(read_stage(self.folder / "evaluation").get("record", {}))

    @property
    def split(self) -> Path | None:
        """The split file of its seed."""
        return self._above("split.csv")

    @property
    def run(self) -> Path | None:
        """The run's folder."""
        settings = self._above("settings.yaml")
        return settings.parent if settings else None

    @property
    def teacher(self) -> Training | None:
        """The training of its teacher, where the run still holds it."""
        split, wanted = self.split, self.settings.get("teacher")
        if split is None or not isinstance(wanted, str):
            return None
        folders = [split.parent / "teacher", *sorted(split.parent.glob(f"teacher{ASIDE}*"))]
        return next((of(folder) for folder in folders if read_stage(folder).get("fingerprint") == wanted), None)

    def _above(self, name: str) -> Path | None:
        near = self.folder.resolve().parents[:4]
        return next((folder / name for folder in near if (folder / name).is_file()), None)


def find_model(path: Path) -> Path:
    """The file of the network that a path means: a file itself, a run's distilled student, a training's network, or the
    student of a folder of exports.

    Raises:
        UserError: nothing there, a file of another kind, or several candidates.
    """
    if path.is_file():
        if path.suffix not in ENDINGS:
            raise UserError(f"{path} is no network: expected a run's folder or a file ending in {', '.join(ENDINGS)}.")
        return path
    exported = next((path / name for name in EXPORTED if (path / name).is_file()), None)
    return exported or find_training(path).weights


def find_training(path: Path) -> Training:
    """The training that a folder means: itself, or the only finished distilled student below it.

    Raises:
        UserError: nothing there, or several candidates.
    """
    if not path.is_dir():
        raise UserError(f"There is nothing at {path}. Give a run's folder or the file of a network.")
    if (path / WEIGHTS).is_file():
        return of(path)
    kept = trainings_below(path)
    students = [training for training in kept if training.method not in (None, "plain")]
    if len(students) == 1:
        return students[0]
    what = f"{len(students)} distilled students" if students else "no distilled student"
    choice = students or kept
    if not choice:
        raise UserError(f"{path} holds no trained network. Expected the folder of a finished run.")
    listed = "".join(f"\n  {training.folder}" for training in choice)
    raise UserError(f"{path} holds {what}. Give one of these instead:{listed}")


def trainings_below(path: Path) -> list[Training]:
    """The finished trainings in a folder, without those that were moved aside."""
    found = [of(record.parent) for record in sorted(path.rglob(RECORD)) if (record.parent / WEIGHTS).is_file()]
    return [training for training in found if ASIDE not in str(training.folder.relative_to(path))]


def of(folder: Path) -> Training:
    """The training of a folder."""
    content = read_stage(folder)
    return Training(folder, content.get("settings", {}), content.get("record", {}))
