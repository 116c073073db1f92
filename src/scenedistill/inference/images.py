"""Classify many image files in a resumable run, and write tables, embeddings and contact sheets."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scenedistill.core.disk import file_hash, shown_path
from scenedistill.core.errors import UserError
from scenedistill.core.own_files import replaced
from scenedistill.core.terminal import counted
from scenedistill.data.cache.decoding import decode_all
from scenedistill.data.images.read import read_scene
from scenedistill.data.raster.holes import Constant, constants_text
from scenedistill.inference.contact_sheet import Shown, draw_sheets
from scenedistill.inference.image_tables import EMBEDDINGS, ROUND, write_tables
from scenedistill.inference.inputs import find_inputs
from scenedistill.inference.journal import Entry, Journal
from scenedistill.inference.model import Predicted, SceneModel

#: Number of decoded batches that may wait for the network.
AHEAD = 2


@dataclass(frozen=True)
class ImagesConfig:
    """Settings of `predict_images`.

    Attributes:
        batch_size: number of images per forward pass, 1 or more.
        embeddings: whether to write the embeddings.
        sheet: order of the contact sheets, see `contact_sheet.Order`; `none` for no sheets.
        sheet_pages: maximum number of pages, 1 or more.
        value_range: values that become black and white in images of more than 8 bits, see `read_image`.
        workers: number of decoding threads; by default the number of cores available to this process.
        restart: discard the predictions of an interrupted call.
    """

    batch_size: int = 64
    embeddings: bool = False
    sheet: Literal["class", "doubtful", "none"] = "class"
    sheet_pages: int = 20
    value_range: tuple[float, float] | None = None
    workers: int | None = None
    restart: bool = False


@dataclass(frozen=True)
class ImagesResult:
    """Summary of a call of `predict_images`.

    Attributes:
        images: number of images with a prediction.
        skipped: path and reason of each image that cannot be read.
        before: number of images, predicted or skipped, that an earlier interrupted call had finished.
        twice: number of repeated inputs; an image given more than once is predicted once.
        counts: number of images of each predicted class, the largest first.
        seconds: duration of decoding and prediction in this call.
        files: all files written.
        notes: warnings about the images, such as a likely nodata value.
    """

    images: int
    skipped: tuple[tuple[str, str], ...]
    before: int
    twice: int
    counts: dict[str, int]
    seconds: float
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        done = self.images + len(self.skipped) - self.before
        speed = f", {done / self.seconds:,.0f} images/s" if done and self.seconds > 0.5 else ""
        lines = [f"{counted(self.images, 'image')} predicted{speed}"]
        if self.before:
            lines[0] += f"; {self.before:,} of them were done before the interruption"
        if self.counts:
            most = [f"{name} {count:,}" for name, count in list(self.counts.items())[:6]]
            more = f" and {len(self.counts) - 6} more classes" if len(self.counts) > 6 else ""
            lines.append(f"  {', '.join(most)}{more}")
        if self.twice:
            lines.append(f"  {self.twice:,} named more than once, predicted once")
        lines += [f"  {note}" for note in self.notes]
        if self.skipped:
            lines.append(f"  skipped {len(self.skipped):,}, which cannot be read:")
            lines += [f"    {path}: {reason}" for path, reason in self.skipped[:10]]
            if len(self.skipped) > 10:
                lines.append(f"    and {len(self.skipped) - 10:,} more, all in skipped.csv")
        return "\n".join(lines)


def predict_images(
    model: SceneModel,
    inputs: Sequence[Path | str],
    out: Path | str,
    config: ImagesConfig | None = None,
    *,
    console: Console | None = None,
) -> ImagesResult:
    """Classify images and write the results.

    The output folder receives `predictions.csv` and `predictions.jsonl` with one line per image in the order of the
    inputs; optionally `embeddings.npz` with the arrays `paths` `[N]` and `embeddings`, float32 `[N, D]`;
    `contact_sheet_01.png` and further pages; and `skipped.csv` if a file cannot be read. These files describe the
    images of this call only: contact sheets and `skipped.csv` of an earlier call, listed in its `predict.files.json`,
    are deleted. An earlier `embeddings.npz` is kept, as it contains its own paths.

    Predictions are saved in `out` as they are made. After an interruption, the same call predicts only the images that
    are missing or have changed on disk.

    Args:
        model: network from `open_model`.
        inputs: images, folders (searched recursively) and patterns, see `find_inputs`; none is read as a raster.
        out: output folder; created if absent.
        config: settings; the defaults if None.
        console: console of the progress bar; by default no bar is shown.

    Returns:
        A summary, and the files written.

    Raises:
        UserError: there is nothing to predict, a number is below 1, or another process writes to the folder.
    """
    config, out = config or ImagesConfig(), Path(out)
    for name in ("batch_size", "sheet_pages", "workers"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"{name} is {value}; expected 1 or more.")
    found = find_inputs(inputs, raster=False, leave_out=out)
    out.mkdir(parents=True, exist_ok=True)
    files = {shown_path(path): path for path in found.images}
    settings = {
        "network": file_hash(model.source) if model.source.is_file() else str(model.source.resolve()),
        "precision": str(getattr(model, "precision", "")),
        "value_range": config.value_range,
        "embeddings": config.embeddings,
    }
    constants: dict[Path, Constant] = {}
    with Journal(out, settings).opened(restart=config.restart) as journal:
        if journal.lost and console is not None:
            console.print(f"{journal.lost}: all images are predicted again.", markup=False, highlight=False)
        todo = {name: path for name, path in files.items() if not _is_done(journal, name, path)}
        started = time.monotonic()
        for batch in _predicted(model, todo, config, console, constants):
            journal.add(batch.entries, batch.predicted.embedding if config.embeddings and batch.predicted else None)
        seconds = time.monotonic() - started
        width = model.predict([]).embedding.shape[1] if config.embeddings else None
        results = write_tables(model.card.classes, list(files), journal, out, width)
        sheets: list[Path] = []
        if config.sheet != "none":
            shown = [
                Shown(files[name], "/".join(files[name].parts[-2:]), label, confidence)
                for name, label, confidence in results.predicted
            ]
            classes, bands = model.card.classes, model.card.bands
            sheets = draw_sheets(
                shown,
                classes,
                out,
                bands=bands,
                order=config.sheet,
                pages=config.sheet_pages,
                value_range=config.value_range,
            )
        note = replaced(out, "predict", [*results.files, *sheets], keep=[EMBEDDINGS])
        journal.remove()
    return ImagesResult(
        images=len(results.predicted),
        skipped=tuple(results.skipped),
        before=len(files) - len(todo),
        twice=found.twice,
        counts=dict(Counter(model.card.classes[label] for _, label, _ in results.predicted).most_common()),
        seconds=seconds,
        files=(*results.files, *sheets, note),
        notes=tuple(filter(None, [constants_text(constants)])),
    )


@dataclass
class _Batch:
    """Batch of images in the pipeline: the decoded ones, and the ones that cannot be read."""

    entries: list[Entry] = field(default_factory=list)
    scenes: list[np.ndarray] = field(default_factory=list)
    predicted: Predicted | None = None

    def finish(self, predicted: Predicted | None) -> _Batch:
        """Add the probabilities of the decoded images to their entries."""
        rows = iter(() if predicted is None else predicted.probabilities.astype(np.float64).round(ROUND).tolist())
        self.entries = [
            entry if entry.reason is not None else Entry(entry.path, entry.stamp, tuple(next(rows)))
            for entry in self.entries
        ]
        self.predicted = predicted
        return self


def _is_done(journal: Journal, name: str, path: Path) -> bool:
    """Return whether an interrupted call has finished this file, and the file is unchanged."""
    entry = journal.get(name)
    return entry is not None and entry.stamp == _stamp(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _predicted(
    model: SceneModel,
    files: dict[str, Path],
    config: ImagesConfig,
    console: Console | None,
    constants: dict[Path, Constant],
) -> Iterator[_Batch]:
    """Yield finished batches in order; decoding, prediction and the caller run concurrently."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=console is None or not files)
    waiting: deque[tuple[_Batch, Future[Predicted] | None]] = deque()
    with ExitStack() as stack:
        stack.enter_context(bar)
        task = bar.add_task("predicting", total=len(files))
        network = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="network"))

        def finished() -> _Batch:
            batch, future = waiting.popleft()
            batch.finish(future.result() if future else None)
            bar.advance(task, len(batch.entries))
            return batch

        for batch in _decoded(model, files, config, constants):
            scenes, batch.scenes = batch.scenes, []
            waiting.append((batch, network.submit(model.predict, np.stack(scenes)) if scenes else None))
            while len(waiting) > AHEAD:
                yield finished()
        while waiting:
            yield finished()


def _decoded(
    model: SceneModel, files: dict[str, Path], config: ImagesConfig, constants: dict[Path, Constant]
) -> Iterator[_Batch]:
    stamps = [_stamp(path) for path in files.values()]  # before reading: a file that changes later is read again

    def read(path: str) -> np.ndarray:
        bands, value_range = model.card.bands, config.value_range
        return read_scene(Path(path), model.stored_size, bands, value_range=value_range, constants=constants)

    scenes = decode_all([str(path) for path in files.values()], read, workers=config.workers, progress=False)
    batch = _Batch()
    with closing(scenes):
        for name, stamp, scene in zip(files, stamps, scenes, strict=True):
            if isinstance(scene, str):
                batch.entries.append(Entry(name, stamp, reason=scene))
            else:
                batch.entries.append(Entry(name, stamp))
                batch.scenes.append(scene)
            if len(batch.scenes) == config.batch_size or len(batch.entries) == 8 * config.batch_size:
                yield batch
                batch = _Batch()
    if batch.entries:
        yield batch
