"""Finding the network that a path refers to."""

from __future__ import annotations

from pathlib import Path

from scenedistill.core.errors import UserError
from scenedistill.runs.network import PLAIN, WEIGHTS, Network
from scenedistill.training.runs import ASIDE, RECORD

ENDINGS = (".safetensors", ".onnx", ".pt2")
#: File names of `export`, in the order in which they are looked for in a folder.
EXPORTED = ("model.safetensors", "model.onnx", "model.int8.onnx", "model.pt2")


def find_model(path: Path) -> Path:
    """Find the file of the network that a path refers to: the file itself, a run's distilled student, the network of a
    training, or the student in a folder of exports.

    Raises:
        UserError: nothing there, a file of another kind, or several candidates.
    """
    if path.is_file():
        if path.suffix not in ENDINGS:
            raise UserError(f"{path} is no network: expected a run's folder or a file ending in {', '.join(ENDINGS)}.")
        return path
    exported = next((path / name for name in EXPORTED if (path / name).is_file()), None)
    return exported or find_network(path).weights


def find_network(path: Path) -> Network:
    """Find the trained network that a folder refers to: its own, or the only distilled student below it.

    Raises:
        UserError: nothing there, or several candidates.
    """
    if not path.is_dir():
        raise UserError(f"There is nothing at {path}. Give a run's folder or the file of a network.")
    if (path / WEIGHTS).is_file():
        return Network.at(path)
    trained = networks_below(path)
    students = [network for network in trained if network.method not in (None, PLAIN)]
    if len(students) == 1:
        return students[0]
    what = f"{len(students)} distilled students" if students else "no distilled student"
    choice = students or trained
    if not choice:
        raise UserError(f"{path} holds no trained network. Expected the folder of a finished run.")
    listed = "".join(f"\n  {network.folder}" for network in choice)
    raise UserError(f"{path} holds {what}. Give one of these instead:{listed}")


def networks_below(path: Path) -> list[Network]:
    """List the trained networks below a folder, without those that were moved aside."""
    folders = [record.parent for record in sorted(path.rglob(RECORD)) if (record.parent / WEIGHTS).is_file()]
    return [Network.at(folder) for folder in folders if ASIDE not in str(folder.relative_to(path))]
