"""What a run found: a table on the terminal, `summary.json` and `summary.md`."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Mapping, Sequence

from rich.table import Table

from scenedistill.experiments.lab import Lab
from scenedistill.experiments.results import Result, Row, hardware, to_json, versions
from scenedistill.experiments.tables import result_table
from scenedistill.training.runs import write_json


def summarise(lab: Lab, rows: Sequence[Row], *, name: str, command: str, splits: Mapping[str, str]) -> Result:
    """Write and print what the rows say.

    Args:
        lab: of the run; `summary.json` and `summary.md` go into its folder.
        rows: one for each trained network.
        name: of the experiment.
        command: what repeats it.
        splits: seed to split hash.

    Returns:
        The result. Its wall seconds are those of training and testing, over all tries.
    """
    config = lab.config
    result = Result(
        experiment=name,
        command=command or "scenedistill.run(...)",
        date=datetime.date.today().isoformat(),
        hardware=hardware(),
        versions=versions(),
        data=lab.data_name,
        pixels=config.image_size,
        train_ratio=None if config.data.split_file else config.data.train_ratio,
        split_hash=dict(splits) if len(splits) > 1 else next(iter(splits.values())),
        epochs={"teacher": config.teacher.fit.epochs, "student": config.student.fit.epochs},
        wall_seconds=sum(_seconds(row) for row in rows),
        rows=tuple(rows),
    )
    if lab.lead:
        write_json(lab.out / "summary.json", to_json(result))
        text = f"# {name}\n\n`{result.command}`\n\n{result_table(result)}\n"
        (lab.out / "summary.md").write_text(text, encoding="utf-8")
        lab.console.print(terminal_table(result))
    return result


def terminal_table(result: Result) -> Table:
    """Mean over the seeds of each network's figures."""
    seeds = len({row.seed for row in result.rows})
    table = Table(title=f"{result.data}, {result.pixels} px, {seeds} seed{'s' * (seeds != 1)}")
    for heading in ("network", "trained", "OA %", "AA %", "kappa", "gain", "parameters", "ms / image"):
        table.add_column(heading, justify="left" if heading in ("network", "trained") else "right")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in result.rows:
        groups.setdefault((row.student or row.teacher or "", row.variant), []).append(row)
    plain = {(row.student, row.seed): row.oa for row in result.rows if row.variant == "plain"}
    for (network, variant), members in groups.items():
        gains = [row.oa - plain[row.student, row.seed] for row in members if variant not in ("teacher", "plain")]
        table.add_row(
            network,
            variant,
            _mean([100 * row.oa for row in members], 2),
            _mean([100 * row.aa for row in members if row.aa is not None], 2),
            _mean([row.kappa for row in members if row.kappa is not None], 4),
            f"{100 * statistics.mean(gains):+.2f}" if gains else "",
            f"{(members[0].parameters or 0) / 1e6:.2f} M",
            _mean([row.milliseconds for row in members if row.milliseconds is not None], 1),
        )
    return table


def _mean(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _seconds(row: Row) -> float:
    return sum(float(row.more.get(key) or 0) for key in ("train_seconds", "test_seconds"))
