"""Initial weights of a network, for its record; a changed file under the same name is detected."""

from __future__ import annotations

from typing import Any

from scenedistill.core.disk import file_hash
from scenedistill.core.errors import UserError
from scenedistill.models.weights.files import local_file
from scenedistill.models.weights.take import WeightAccount
from scenedistill.training.runs import Stage


def start_hash(weights: str, model: str) -> str | None:
    """Hash the local file that `weights` refers to; None where there is none."""
    path = None if weights == "none" else local_file(weights, model)
    return file_hash(path) if path and path.is_file() else None


def start_record(weights: str, account: WeightAccount | None, file: str | None) -> dict[str, Any]:
    """Return the record entries of the initial weights: what was loaded, and the hash of the file if there is one."""
    taken = {"weights_taken": str(account) if account else weights}
    return {**taken, "weights_file_hash": file} if file else taken


def check_start(stage: Stage, weights: str, file: str | None) -> None:
    """Check that a finished stage started from a file of the same content; its settings hold only the file name.

    Raises:
        UserError: the file had other content.
    """
    if file and stage.record.get("weights_file_hash", file) != file:
        raise UserError(
            f"{stage.folder} was started from another file than {weights}, and what follows was made with that one. "
            "Give another run folder with --out."
        )
