"""Writing the folder of a run: locking a stage, checking whether it is done, and finishing it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from scenedistill.core.disk import clear_parts, read_json, write_json
from scenedistill.core.errors import UserError
from scenedistill.core.yaml_files import write_yaml
from scenedistill.data.batches import ScenePart
from scenedistill.data.cache.build import SceneCache
from scenedistill.data.splits.draw import Split
from scenedistill.data.splits.files import write_split
from scenedistill.experiments.stages.files import BEST_WEIGHTS, WEIGHTS, log_hashes, stage_damage
from scenedistill.models.files import NetCard, save_net, weights_hash
from scenedistill.models.network import SceneNet
from scenedistill.training.best import Best
from scenedistill.training.runs import Stage


@dataclass
class RunFolder:
    """Folder of the stages of a run.

    Attributes:
        path: path of the folder.
        console: console for the messages.
        lead: whether this is the first process of the run, the only one that writes.
        before_first_stage: functions called as soon as a stage is locked, to write shared files; not earlier, because
            the folder may belong to another run.
    """

    path: Path
    console: Console
    lead: bool
    before_first_stage: list[Callable[[], None]] = field(default_factory=list)

    def make(self) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.lead and not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as problem:
            reason = "it is a file" if self.path.is_file() else problem.strerror
            raise UserError(f"{self.path} cannot be the run's folder: {reason}. Give another with --out.") from problem

    def write_seed(self, seed: int, settings: str, split: Split, cache: SceneCache) -> None:
        """Write the settings and a seed's split; print a warning if the finished stages used images of the same names
        with other content.

        `images.json` holds the `content_hash` of the images; for a folder that an earlier version has begun, their
        `pixel_hash`, for which all pixels are read once more.
        """
        folder = self.path / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        for place in (self.path, folder):
            clear_parts(place, 3600)  # grids have several writers
        write_yaml(self.path / "settings.yaml", settings)
        write_split(split, cache.index, folder / "split.csv")
        rows = np.concatenate([split.train, split.val, split.test])
        name = f"{split.hash}, {cache.size} pixels, {cache.bands} bands"
        known, part = read_json(folder / "images.json"), ScenePart(cache, rows)
        key, found = f"{name}, by checksum", part.content_hash()
        same = known[key] == found if key in known else name not in known or known[name] == part.pixel_hash()
        if not same:
            self.console.print(
                f"  these are not the images that {folder} was begun with (changed files, or another decoder); "
                "finished trainings stay as they are; to train all of them again, give another run folder with --out",
                markup=False,
            )
        if same and key not in known:
            write_json(folder / "images.json", {**known, key: found}, checksum=True)

    @contextmanager
    def hold(self, stage: Stage) -> Iterator[None]:
        """Lock a stage against other runs; the first process of a run locks it for all.

        Raises:
            UserError: another process holds the lock, or the folder of the stage was removed meanwhile.
        """
        with stage.locked() if self.lead else nullcontext():
            while self.lead and self.before_first_stage:
                self.before_first_stage.pop(0)()
            try:
                yield
            except FileNotFoundError as problem:
                if stage.folder.exists():
                    raise
                raise UserError(
                    f"{stage.folder} was removed or moved while it was worked on. Give the same command again: missing "
                    "results are computed again."
                ) from problem

    def hold_seed(self, seed: int) -> AbstractContextManager[None]:
        """Lock all stages of a seed against other runs."""
        return Stage(self.path / f"seed{seed}", {}).locked() if self.lead else nullcontext()

    def name_of(self, stage: Stage) -> Path:
        """Return the path of a stage below the folder."""
        return stage.folder.relative_to(self.path)

    def done(self, stage: Stage) -> bool:
        """Return whether the stage can be skipped; if not, prepare its folder.

        A stage with a damaged or missing file is not done.
        """
        name, damaged = self.name_of(stage), stage.damaged
        if not self.lead:
            stage.wait(begun=True)  # the first process may move folders
            return stage.done and not stage_damage(stage)
        if moved := stage.begin():
            reason = "its stage.json is damaged" if damaged else "other settings than before"
            self.console.print(f"  {name}: {reason}; the old one is now {moved.name}", markup=False)
        if stage.done and (problem := stage_damage(stage)):
            self.console.print(f"  {name}: {problem}; it is done again", markup=False)
            self.reopen(stage)
        if stage.done:
            self.console.print(f"  {name}: done before with the same settings", markup=False)
        return stage.done

    def reopen(self, stage: Stage) -> None:
        """Mark a finished stage as unfinished, and delete its test."""
        if self.lead:
            shutil.rmtree(stage.folder / "evaluation", ignore_errors=True)
            stage.reopen()

    def finish(
        self,
        stage: Stage,
        net: SceneNet,
        card: NetCard,
        record: Mapping[str, Any],
        best: Best | None = None,
        logs: Path | None = None,
    ) -> Stage:
        """Save the network, and its best epoch if given, and mark the stage as done; every process returns after
        that."""
        if not self.lead:
            stage.wait()
            return stage
        save_net(net, card, stage.folder / WEIGHTS)
        finished = {**record, "name": card.name, "weights_hash": weights_hash(net), "logs": log_hashes(stage, logs)}
        if best:
            net.load_state_dict(best.tensors)
            save_net(net, card, stage.folder / BEST_WEIGHTS)
            finished["best"] = {"epoch": best.epoch, "val_oa": best.val_oa}
        stage.finish(finished, [WEIGHTS, BEST_WEIGHTS] if best else [WEIGHTS])
        (stage.folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)  # optimiser state, no longer needed
        return stage
