"""What a network of a run started from, for its record; another file under the same name is noticed."""

from __future__ import annotations

from typing import Any

from scenedistill.core.disk import file_hash
from scenedistill.core.errors import UserError
from scenedistill.models.weights.files import local_file
from scenedistill.models.weights.take import WeightAccount
from scenedistill.training.runs import Stage


def start_hash(weights: str, model: str) -> str | None:
    """Of the local file that `weights` means, where there is one."""
    path = None if weights == "none" else local_file(weights, model)
    return file_hash(path) if path and path.is_file() else None


def start_record(weights: str, account: WeightAccount | None, file: str | None) -> dict[str, Any]:
    """What a stage's record says of the start: what was taken, and the hash of the file where there was one."""
    taken = {"weights_taken": str(account) if account else weights}
    return {**taken, "weights_file_hash": file} if file else taken


def check_start(stage: Stage, weights: str, file: str | None) -> None:
    """Refuse a finished stage that was started from a file of another content: the settings hold its name alone.

    Raises:
        UserError: it was.
    """
    if file and stage.record.get("weights_file_hash", file) != file:
        raise UserError(
            f"{stage.folder} was started from another file than {weights}, and what follows was made with that one. "
            "Give another run folder with --out."
        )
