"""Classify many images: decoded in threads, resumable, bad files named, the results as tables and contact sheets."""

from __future__ import annotations

import csv
import json
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
from scenedistill.data.names import as_cell, as_path_cell
from scenedistill.data.raster.holes import Constant, constants_text
from scenedistill.inference.contact_sheet import Shown, draw_sheets
from scenedistill.inference.inputs import find_inputs
from scenedistill.inference.journal import Entry, Journal
from scenedistill.inference.model import Predicted, SceneModel

#: Batches that the network may lag behind the decoders.
AHEAD = 2
ROUND = 6  # decimals of a probability
#: Holds the paths it is of, and may have taken hours: a call that writes none leaves it.
EMBEDDINGS = "embeddings.npz"


@dataclass(frozen=True)
class ImagesResult:
    """What became of the images.

    Attributes:
        images: number of images with a prediction.
        skipped: the others, each with the reason.
        before: how many of both were done by an interrupted call before.
        twice: images named more than once, which were predicted once.
        counts: number of images of each class that was named, the largest first.
        seconds: of decoding and network together, for what was done in this call.
        files: everything that was written.
        notes: what somebody who looks at the results must know of the images.
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
    *,
    batch_size: int = 64,
    embeddings: bool = False,
    sheet: Literal["class", "doubtful", "none"] = "class",
    sheet_pages: int = 20,
    value_range: tuple[float, float] | None = None,
    workers: int | None = None,
    restart: bool = False,
    console: Console | None = None,
) -> ImagesResult:
    """Classify images and write what was found.

    In `out`: `predictions.csv` and `predictions.jsonl`, a line for each image in the order of the inputs;
    `embeddings.npz` with the arrays `paths` [N] and `embeddings` float32 [N, D] if asked for; `contact_sheet_01.png`
    and further pages; `skipped.csv` if a file could not be read. They hold the images of this call and nothing else;
    pages and `skipped.csv` of an earlier call, which `predict.files.json` names, go. Only its `embeddings.npz` stays,
    with its own paths in it.

    What is done is kept in `out` as it comes. After an interruption, the same call does only what is missing, and what
    has changed on the disk meanwhile.

    Args:
        model: from `open_model`.
        inputs: images, folders (searched to the bottom) and patterns, see `find_inputs`; none of them as a raster.
        out: folder; made when absent.
        batch_size: images of one pass, 1 or more.
        embeddings: keep them.
        sheet: order of the contact sheet: class after class, or the least sure first; or no sheet.
        sheet_pages: at most so many pages.
        value_range: what becomes black and white in images deeper than 8 bits, see `read_image`.
        workers: decoding threads; the cores this process may use when not given.
        restart: throw away what an interrupted call has done.
        console: for the progress bar; none when not given.

    Raises:
        UserError: nothing to predict, or another process writes to the folder.
    """
    if batch_size < 1 or sheet_pages < 1:
        raise UserError(f"batch_size is {batch_size} and sheet_pages {sheet_pages}; expected 1 or more.")
    out = Path(out)
    found = find_inputs(inputs, raster=False, leave_out=out)
    out.mkdir(parents=True, exist_ok=True)
    files = {shown_path(path): path for path in found.images}
    settings = {
        "network": file_hash(model.source) if model.source.is_file() else str(model.source.resolve()),
        "precision": str(getattr(model, "precision", "")),
        "value_range": value_range,
        "embeddings": embeddings,
    }
    constants: dict[Path, Constant] = {}
    width = model.predict([]).embedding.shape[1] if embeddings else None
    with Journal(out, settings, width).opened(anew=restart) as journal:
        todo = {name: path for name, path in files.items() if not _is_done(journal, name, path)}
        started = time.monotonic()
        for batch in _predicted(model, todo, batch_size, value_range, workers, console, constants):
            journal.add(batch.entries, batch.predicted.embedding if embeddings and batch.predicted else None)
        seconds = time.monotonic() - started
        results = _write(model.card.classes, list(files), journal, out, embeddings)
        sheets: list[Path] = []
        if sheet != "none":
            shown = [
                Shown(files[name], "/".join(files[name].parts[-2:]), label, sure) for name, label, sure in results.named
            ]
            classes, bands = model.card.classes, model.card.bands
            sheets = draw_sheets(
                shown, classes, out, bands=bands, order=sheet, pages=sheet_pages, value_range=value_range
            )
        note = replaced(out, "predict", [*results.files, *sheets], keep=[EMBEDDINGS])
        journal.remove()
    return ImagesResult(
        images=len(results.named),
        skipped=tuple(results.skipped),
        before=len(files) - len(todo),
        twice=found.twice,
        counts=dict(Counter(model.card.classes[label] for _, label, _ in results.named).most_common()),
        seconds=seconds,
        files=(*results.files, *sheets, note),
        notes=tuple(filter(None, [constants_text(constants)])),
    )


@dataclass
class _Batch:
    """Images on their way: those to be classified, and those that cannot be read."""

    entries: list[Entry] = field(default_factory=list)
    scenes: list[np.ndarray] = field(default_factory=list)
    predicted: Predicted | None = None

    def finish(self, predicted: Predicted | None) -> _Batch:
        """Give each image that was classified its probabilities."""
        rows = iter(() if predicted is None else predicted.probabilities.astype(np.float64).round(ROUND).tolist())
        self.entries = [
            entry if entry.reason is not None else Entry(entry.path, entry.stamp, tuple(next(rows)))
            for entry in self.entries
        ]
        self.predicted = predicted
        return self


@dataclass
class _Results:
    named: list[tuple[str, int, float]] = field(default_factory=list)  # path, class number, confidence
    skipped: list[tuple[str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def _is_done(journal: Journal, name: str, path: Path) -> bool:
    """Whether an interrupted call has dealt with this very file."""
    return name in journal.places and journal.get(name).stamp == _stamp(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _predicted(
    model: SceneModel,
    files: dict[str, Path],
    batch_size: int,
    value_range: tuple[float, float] | None,
    workers: int | None,
    console: Console | None,
    constants: dict[Path, Constant],
) -> Iterator[_Batch]:
    """Batches in order, each finished; decoding, network and what the caller does with a batch go on side by side."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=console is None or not files)
    waiting: deque[tuple[_Batch, Future[Predicted] | None]] = deque()
    with ExitStack() as open_things:
        open_things.enter_context(bar)
        task = bar.add_task("predicting", total=len(files))
        network = open_things.enter_context(ThreadPoolExecutor(1, thread_name_prefix="network"))

        def finished() -> _Batch:
            batch, answer = waiting.popleft()
            batch.finish(answer.result() if answer else None)
            bar.advance(task, len(batch.entries))
            return batch

        for batch in _decoded(model, files, batch_size, value_range, workers, constants):
            scenes, batch.scenes = batch.scenes, []
            waiting.append((batch, network.submit(model.predict, np.stack(scenes)) if scenes else None))
            while len(waiting) > AHEAD:
                yield finished()
        while waiting:
            yield finished()


def _decoded(
    model: SceneModel,
    files: dict[str, Path],
    batch_size: int,
    value_range: tuple[float, float] | None,
    workers: int | None,
    constants: dict[Path, Constant],
) -> Iterator[_Batch]:
    stamps = [_stamp(path) for path in files.values()]  # before reading: a file that changes later is read again

    def read(path: str) -> np.ndarray:
        return read_scene(Path(path), model.stored_size, model.card.bands, value_range=value_range, constants=constants)

    scenes = decode_all([str(path) for path in files.values()], read, workers=workers, progress=False)
    batch = _Batch()
    with closing(scenes):
        for name, stamp, scene in zip(files, stamps, scenes, strict=True):
            if isinstance(scene, str):
                batch.entries.append(Entry(name, stamp, reason=scene))
            else:
                batch.entries.append(Entry(name, stamp))
                batch.scenes.append(scene)
            if len(batch.scenes) == batch_size or len(batch.entries) == 8 * batch_size:
                yield batch
                batch = _Batch()
    if batch.entries:
        yield batch


def _write(classes: Sequence[str], names: Sequence[str], journal: Journal, out: Path, embeddings: bool) -> _Results:
    """The tables, each whole or not at all, in the order of the inputs."""
    results, rows = _Results(), list[int]()
    table, lines = out / "predictions.csv", out / "predictions.jsonl"
    parts = [file.with_name(f"{file.name}.part") for file in (table, lines)]
    with (
        parts[0].open("w", encoding="utf-8", newline="") as csv_file,
        parts[1].open("w", encoding="utf-8") as json_file,
    ):
        writer = csv.writer(csv_file)
        cells = [as_cell(name) for name in classes]
        writer.writerow(["path", "class", "confidence", *(f"p_{name}" for name in classes)])
        for name in names:
            entry = journal.get(name)
            if entry.reason is not None:
                results.skipped.append((name, entry.reason))
                continue
            label = max(range(len(classes)), key=entry.probabilities.__getitem__)
            sure = entry.probabilities[label]
            results.named.append((name, label, sure))
            rows.append(entry.row)
            writer.writerow(
                [as_path_cell(name), cells[label], *(f"{value:.{ROUND}f}" for value in (sure, *entry.probabilities))]
            )
            chances = dict(zip(classes, entry.probabilities, strict=True))
            found = {"path": name, "class": classes[label], "confidence": sure, "probabilities": chances}
            json_file.write(json.dumps(found, ensure_ascii=False) + "\n")
    for part, file in zip(parts, (table, lines), strict=True):
        part.replace(file)
    results.files += [table, lines]
    kept, bad = out / EMBEDDINGS, out / "skipped.csv"
    if embeddings:
        paths = np.array([name for name, _, _ in results.named], dtype=np.str_)
        vectors = journal.embeddings()
        whole = vectors if rows == list(range(len(vectors))) else vectors[rows]
        np.savez(kept, paths=paths, embeddings=whole)
        results.files.append(kept)
    if results.skipped:
        with bad.open("w", encoding="utf-8", newline="") as bad_file:
            rows_of_bad = ((as_path_cell(path), as_cell(reason)) for path, reason in results.skipped)
            csv.writer(bad_file).writerows([("path", "reason"), *rows_of_bad])
        results.files.append(bad)
    return results
