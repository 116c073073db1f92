"""Files of a finished training: names, loading and integrity checks."""

from __future__ import annotations

import os
from pathlib import Path

from scenedistill.core.disk import file_hash
from scenedistill.core.errors import Damaged, UserError
from scenedistill.models.files import NetCard, load_net, weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.training.runs import Stage, read_stage

#: Files in the folder of a finished training: the network after its last epoch, and after its best one where asked for.
WEIGHTS, BEST_WEIGHTS = "weights.safetensors", "best.safetensors"


def open_net(stage: Stage) -> tuple[SceneNet, NetCard]:
    """Load the network of a finished training and compare it with the hash in its record.

    Raises:
        Damaged: the weights are damaged or those of another training.
    """
    net, card = load_net(stage.folder / WEIGHTS)
    if weights_hash(net) != stage.record.get("weights_hash", weights_hash(net)):
        raise Damaged(
            f"{stage.folder / WEIGHTS} is damaged, or another training's. Give the same command to train it again."
        )
    return net, card


def log_hashes(stage: Stage, folder: Path | None) -> dict[str, str]:
    """Compute the checksums of a training's log files, by the path of each file from the stage's folder."""
    files = sorted((folder or stage.folder).glob("logs/attempt_*/metrics.csv"))
    return {Path(os.path.relpath(file, stage.folder)).as_posix(): file_hash(file) for file in files}


def stage_damage(stage: Stage) -> str:
    """Describe the damage to the files of a finished training; empty where there is none."""
    if problem := stage.damage():
        return problem
    try:  # an older folder has no checksums of files, but the hash of its network
        kept = stage.record.get("weights_hash")
        if read_stage(stage.folder).get("files") or not kept:
            return ""
        return "" if weights_hash(load_net(stage.folder / WEIGHTS)[0]) == kept else f"{WEIGHTS} is damaged"
    except UserError as problem:
        return str(problem)
