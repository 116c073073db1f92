"""Tables of the report: their entries with sort keys, and the statistics over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scenedistill.core.text import interval_text, spread
from scenedistill.experiments.results.pairs import Gain, own_heading, own_methods, paired_gain
from scenedistill.runs.network import TEACHER, Network
from scenedistill.runs.run import Cell
from scenedistill.training.runs import started_from


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: text to show.
        sort: sort key; the text when None.
        spread: standard deviation, a column of its own in the CSV file.
        link: URL that the text links to.
    """

    text: str
    sort: float | None = None
    spread: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and downloaded.

    Attributes:
        key: name of the files to download.
        caption: title above the table.
        head: column headings.
        rows: rows, each as long as `head`; columns in which every entry has a sort key are right-aligned.
        note: text below the table.
        folded: collapsed at first.
    """

    key: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""
    folded: bool = False
    kind: str = "table"

    @property
    def figures(self) -> list[bool]:
        """Whether each column is numeric, with a sort key in every entry."""
        return [all(row[i].sort is not None for row in self.rows) for i in range(len(self.head))]


def text_entry(text: object) -> Entry:
    """Return an entry of text."""
    return Entry(str(text))


def number_entry(value: float | None, form: str = "{:.2f}") -> Entry:
    """Return an entry of one number; a dash if there is none."""
    return Entry("-", -math.inf) if value is None or not math.isfinite(value) else Entry(form.format(value), value)


def mean_entry(values: Sequence[float | None], form: str = "{:.2f}", factor: float = 1.0) -> Entry:
    """Return mean ± sample standard deviation of the known values, with their number if some are missing."""
    known = [factor * value for value in values if value is not None]
    if len(known) < 2:
        return number_entry(known[0] if known else None, form)
    return Entry(spread(known, form, len(values)), statistics.fmean(known), statistics.stdev(known))


def gain_over(cell: Cell, networks: Sequence[Network], baseline: str) -> Gain | None:
    """Return the gain in OA over the same student's baseline, paired by seed; None for teachers and the baseline."""
    if networks[0].label in (TEACHER, baseline):
        return None
    theirs = [cell.one(networks[0].student, baseline, network.seed) for network in networks]
    return paired_gain(_oa(networks), _oa([network for network in theirs if network]))


def _oa(networks: Sequence[Network]) -> dict[int, float]:
    return {network.seed: 100 * network.tested["oa"] for network in networks}


def results_table(cell: Cell, baseline: str) -> Table:
    """Return the table of OA, AA, kappa and macro F1 over seeds, with the gain over the baseline paired by seed."""
    rows = []
    own = own_methods([label for _, label in cell.groups() if label != TEACHER], baseline)
    for (name, label), networks in cell.groups().items():
        gain = gain_over(cell, networks, baseline)
        rows.append(
            (
                text_entry(name),
                text_entry(label),
                number_entry(len(networks), "{:.0f}"),
                mean_entry([n.tested["oa"] for n in networks], factor=100),
                number_entry(gain.mean if gain else None, "{:+.2f}"),
                _interval_entry(gain, len(networks)),
                *(_lead_entry(method, cell, networks, baseline) for method in own),
                mean_entry([n.tested.get("aa") for n in networks], factor=100),
                mean_entry([n.tested.get("kappa") for n in networks], "{:.3f}"),
                mean_entry([n.tested.get("macro_f1") for n in networks], factor=100),
            )
        )
    head = ("network", "training", "seeds", "OA (%)", "gain (points)", "95 % interval of the gain")
    return Table(
        key=_key("results", cell),
        caption="Accuracy on the test images",
        head=(*head, *map(own_heading, own), "AA (%)", "kappa", "macro F1 (%)"),
        rows=tuple(rows),
        note="± is the sample standard deviation over seeds. The gain is the OA over the "
        f"{baseline} student of the same name, paired by seed over the seeds that both have; its interval is that of "
        "Student's t, which is wide for few seeds. An interval that includes 0 does not show a gain."
        + " Brackets hold such intervals too."
        * bool(own),
    )


def _lead_entry(own: str, cell: Cell, networks: Sequence[Network], baseline: str) -> Entry:
    """Return the gain of our method `own` over that of `networks`, on the seeds that both have."""
    if networks[0].label in (TEACHER, baseline, own):
        return number_entry(None)
    ours = [cell.one(networks[0].student, own, network.seed) for network in networks]
    gain = paired_gain(_oa([network for network in ours if network]), _oa(networks))
    return Entry(gain.text, gain.mean) if gain else number_entry(None)


def _interval_entry(gain: Gain | None, seeds: int) -> Entry:
    if gain is None or gain.low is None or gain.high is None:
        return number_entry(None)
    fewer = f" (n = {gain.n})" if gain.n < seeds else ""
    return Entry(f"{interval_text(gain.low, gain.high)}{fewer}", gain.low)


def seeds_table(cell: Cell) -> Table:
    """Return the table of the OA of each seed."""
    seeds = cell.seeds()
    rows = []
    for (name, label), networks in cell.groups().items():
        by_seed = {n.seed: 100 * n.tested["oa"] for n in networks}
        rows.append((text_entry(name), text_entry(label), *(number_entry(by_seed.get(seed)) for seed in seeds)))
    head = ("network", "training", *(f"seed {seed}" for seed in seeds))
    return Table(_key("seeds", cell), "OA of each seed, in percent", head, tuple(rows), folded=True)


def cost_table(cell: Cell) -> Table:
    """Return the table of each network's size, operations, time (median over seeds) and OA."""
    rows, places = [], set[str]()
    for (name, label), networks in cell.groups().items():
        costs = [n.tested["cost"] for n in networks if n.tested.get("cost")]
        if not costs:
            continue
        places.update(f"{c['device']}, batch {c['batch_size']}, {c['threads']} threads" for c in costs)
        first = costs[0]
        rows.append(
            (
                text_entry(name),
                text_entry(label),
                mean_entry([n.tested["oa"] for n in networks], factor=100),
                number_entry(first["parameters"] / 1e6),
                number_entry(first["bytes"] / 2**20, "{:.1f}"),
                number_entry(first["operations"] / 1e9, "{:.3f}"),
                number_entry(statistics.median(cost["milliseconds"] for cost in costs)),
                _range_entry([c["milliseconds_low"] for c in costs], [c["milliseconds_high"] for c in costs]),
                mean_entry([n.record.get("seconds") for n in networks], "{:.1f}", 1 / 60),
                text_entry(started_from(networks[0].settings).replace("none", "nothing")),
            )
        )
    head = ("network", "training", "OA (%)", "parameters (M)", "size (MiB)", "operations (G)", "ms per image")
    return Table(
        key=_key("cost", cell),
        caption="Cost",
        head=(*head, "quartiles (ms)", "training (min)", "started from"),
        rows=tuple(rows),
        note="Operations are multiply-accumulates for one image. The time is for one image at a time after a warm-up; "
        "it is meaningful only if nothing else ran on the machine. Timed on: "
        f"{'; '.join(sorted(places))}.",
    )


def _range_entry(low: Sequence[float], high: Sequence[float]) -> Entry:
    return Entry(f"{min(low):.2f} to {max(high):.2f}", min(low))


def class_table(cell: Cell, chosen: Mapping[str, Sequence[Network]]) -> Table:
    """Return the table of each class's accuracy by group of networks, and the last group's gain over the one before."""
    names = list(chosen)
    rows = []
    for name in cell.classes:
        entries = [
            mean_entry([n.tested["per_class"].get(name) for n in chosen[group]], "{:.1f}", 100) for group in names
        ]
        gain = class_gain(name, chosen[names[-2]], chosen[names[-1]])
        rows.append((text_entry(name), *entries, mean_entry(gain, "{:+.1f}") if gain else number_entry(None)))
    return Table(
        key=_key("classes", cell),
        caption="Accuracy of each class, in percent",
        head=("class", *names, f"gain: {names[-1]} over {names[-2]} (points)"),
        rows=tuple(rows),
        folded=True,
    )


def class_gain(name: str, before: Sequence[Network], after: Sequence[Network]) -> list[float]:
    """Return the points of a class's accuracy gained, for each seed that both have."""
    first = {n.seed: n.tested["per_class"].get(name) for n in before}
    found = [(first.get(n.seed), n.tested["per_class"].get(name)) for n in after]
    return [100 * (b - a) for a, b in found if a is not None and b is not None]


def published_tables(cells: Sequence[tuple[str, float]]) -> list[Table]:
    """Return a table of published accuracies for each data set and ratio that has any."""
    from scenedistill.experiments.results.published import CAUTION, notes, published, published_rows

    tables = []
    for data, ratio in dict.fromkeys(cells):
        if results := published(data, ratio):
            head, lines = published_rows(results)
            figure = head.index("OA (%)")
            rows = []
            for line, result in zip(lines, results, strict=True):
                entries = [text_entry(text) for text in line]
                entries[figure] = Entry(line[figure], 100 * result.oa)
                entries[-1] = Entry(line[-1], link=result.url)
                rows.append(tuple(entries))
            said = " ".join(note.replace("\n- ", " ").removeprefix("- ") for note in notes(results))
            caption = f"Published by others: {data}, {100 * ratio:g} % training ({len(rows)} figures)"
            key = f"published-{data}-{100 * ratio:g}"
            tables.append(Table(key, caption, tuple(head), tuple(rows), note=f"{CAUTION} {said}", folded=True))
    return tables


def _key(name: str, cell: Cell) -> str:
    return f"{name}-{cell.key.replace('/', '-')}" if cell.key else name
