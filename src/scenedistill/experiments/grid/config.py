"""Settings of a grid of experiments, as plain dataclasses, and the student settings of each of its methods."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from scenedistill.config import RunConfig, StudentConfig
from scenedistill.core.cluster import ClusterConfig, check_cluster
from scenedistill.core.errors import UserError
from scenedistill.core.yaml_files import read_yaml
from scenedistill.experiments.checks import check_first_size, check_settings, check_student
from scenedistill.experiments.grid.tuning.config import TuningConfig, check_tuning
from scenedistill.experiments.stages.students import plain_student
from scenedistill.losses.registry import LOSSES, METHODS, build_losses
from scenedistill.models.create import build_network
from scenedistill.models.network import SceneNet

#: Settings of a training that a method of a grid may override.
NUMBERS = ("lr", "fresh_lr_factor", "weight_decay", "warmup_epochs", "clip_norm", "ema_decay", "first_size")
LABEL = re.compile(r"\w[\w.+-]*")
TAKEN = re.compile(r"teacher|evaluation|seed\d+|.*\.previous-.*")  # names of other folders of a run


@dataclass
class MethodConfig:
    """One way to train the student; what is not given is as in `base.student`.

    Attributes:
        method: named set of losses; the method's label when not given.
        losses: weights that replace or extend those of the method, such as `{ss: 0}`; 0 leaves the loss out.
        loss_options: settings of single losses, such as `{kd: {temperature: 2}}`.
        weights: initial weights of the student.
        dual_attention: DA modules after the student's stages.
        knowledge_views: number of distinct views of each image whose teacher outputs are kept.
        mixup: share of the images of a batch that are mixed with another one.
        ask_size: side in pixels at which the teacher sees the student's views.
        symmetries: average the teacher's answers over the eight symmetries of each view.
        also: weights of further teachers.
        unlabelled: train on the images of `base.data.unlabelled` too.
        epochs: epochs of the training.
        fit: further settings of the training, such as `{ema_decay: 0.998, first_size: 0.6}`.
    """

    method: str | None = None
    losses: dict[str, float] = field(default_factory=dict)
    loss_options: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: str | None = None
    dual_attention: bool | None = None
    knowledge_views: int | None = None
    mixup: float | None = None
    ask_size: int | None = None
    symmetries: bool | None = None
    also: list[str] | None = None
    unlabelled: bool | None = None
    epochs: int | None = None
    fit: dict[str, float] = field(default_factory=dict)


@dataclass
class GridConfig:
    """Cells (data set x ratio x student x method), each with every seed.

    Attributes:
        name: name of the experiment.
        datasets: label to the folder of the images (or CSV manifest).
        ratios: training ratios, in (0, 1).
        seeds: one split, teacher and set of students for each.
        students: names of the students.
        weights: initial weights by name of the student; those of `base.student` for students that are not named.
        methods: label to what differs from `base.student`; a label that is a method's name may stand alone.
        baseline: label of the method to which the others are compared, seed by seed.
        tuning: budget for choosing the weight, and perhaps the learning rate, of each method; no tuning when not given.
        cluster: for `--ray true`.
        base: all other settings. Its seeds, students, data.train_ratio and student.method are those of the grid.
    """

    name: str = "grid"
    datasets: dict[str, str] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=lambda: [0.2])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    students: list[str] = field(default_factory=lambda: ["table1_resnet"])
    weights: dict[str, str] = field(default_factory=dict)
    methods: dict[str, MethodConfig] = field(default_factory=lambda: {"plain": MethodConfig(), "dkd": MethodConfig()})
    baseline: str = "plain"
    tuning: TuningConfig | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    base: RunConfig = field(default_factory=RunConfig)

    def blocks(self) -> dict[str, tuple[str, float]]:
        """Map the name of a folder, such as `AID-20`, to its (data set, ratio)."""
        return {f"{data}-{100 * ratio:g}": (data, ratio) for data in self.datasets for ratio in self.ratios}


def student_of(config: GridConfig, student: str, label: str) -> StudentConfig:
    """Return the settings of a student for a method: for `plain` and `dkd` those of `scenedistill run`."""
    method = config.methods[label]
    base = replace(config.base.student, name=student, fit=replace(config.base.student.fit))
    made = replace(
        base,
        method=method.method or label,
        weights=method.weights or config.weights.get(student, config.base.student.weights),
        losses={name: float(weight) for name, weight in method.losses.items()},
        loss_options=method.loss_options,
    )
    for name in ("dual_attention", "knowledge_views", "mixup", "ask_size", "symmetries", "also", "unlabelled"):
        if (chosen := getattr(method, name)) is not None:
            setattr(made, name, chosen)
    if method.epochs is not None:
        made.fit.epochs, made.fit.steps = method.epochs, None
    for name, value in method.fit.items():
        setattr(made.fit, name, value)
    if needs_teacher(made):
        return made
    return plain_student(made) if not made.losses else replace(made, knowledge_views=0)


def needs_teacher(student: StudentConfig) -> bool:
    """Return whether one of the student's losses uses the teacher."""
    return any(LOSSES[name].needs_teacher for name in student.loss_weights())


def grid_home(config: GridConfig, out: Path) -> Path:
    """Return the folder of a grid's own files: `out`, or a sub-folder of the grid's name if `out` has another grid's.

    Raises:
        UserError: the name of the sub-folder is taken or invalid.
    """
    try:
        other = read_yaml(out / "grid.yaml")["name"]
    except (UserError, KeyError):
        return out
    if other == config.name:
        return out
    home = out / config.name
    taken = config.name in ("tuning", "logs", *config.blocks()) or (
        home.exists() and not (home / "grid.yaml").is_file()
    )
    if taken or not LABEL.fullmatch(config.name):
        raise UserError(
            f"{out} holds the grid '{other}', and the results of '{config.name}' would go into a folder of that name "
            "in it, which cannot be. Give another --name or another --out."
        )
    return home


def grid_text(config: GridConfig) -> str:
    """Return the grid as YAML for `scenedistill grid`."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def check_grid(config: GridConfig) -> None:
    """Check a grid before days of work.

    Raises:
        UserError: an empty or invalid setting, an unknown name, or missing data.
    """
    for name in ("datasets", "ratios", "seeds", "students", "methods"):
        if not getattr(config, name):
            example = {"datasets": "{AID: path/to/AID}", "methods": "{plain: {}, dkd: {}}"}.get(name, "a list")
            raise UserError(f"{name} is empty; expected {example}.")
    for what, labels in (("data set", config.datasets), ("method", config.methods)):
        for label in labels:
            if not LABEL.fullmatch(label) or (what == "method" and TAKEN.fullmatch(label)):
                raise UserError(
                    f"A {what} is labelled {label!r}; it names a folder: expected letters, digits and _ . + - only"
                    f"{', and none of teacher, evaluation, seedN and NAME.previous-N' if what == 'method' else ''}."
                )
    for label, folder in config.datasets.items():
        if not Path(folder).exists():
            raise UserError(
                f"datasets.{label}: there is no {folder}. Give the folder of the images with --datasets.{label} FOLDER."
            )
    for ratio in config.ratios:
        if not 0 < ratio < 1:
            raise UserError(f"ratios holds {ratio}; expected fractions between 0 and 1, such as 0.2 for 20 %.")
    if len(config.blocks()) < len(config.datasets) * len(config.ratios):
        raise UserError(f"ratios holds one value twice: {config.ratios}.")
    if config.base.data.split_file and len(config.blocks()) > 1:
        raise UserError("base.data.split_file is one split; expected one data set and one ratio with it.")
    if config.base.student.losses or config.base.student.loss_options:
        raise UserError("base.student.losses and loss_options have no effect in a grid; give them below methods.")
    if config.baseline not in config.methods:
        raise UserError(f"baseline: {unknown('method', config.baseline, config.methods)}")
    check_cluster(config.cluster, "scenedistill grid --help")
    check_settings(
        replace(
            config.base,
            seeds=config.seeds,
            students=config.students,
            also_students=[],
            student=replace(config.base.student, method="dkd", weights="none"),  # checked below by student
        )
    )
    _check_methods(config)
    if config.tuning:
        check_tuning(config.tuning, config.base, _tuned_students(config))


def _tuned_students(config: GridConfig) -> dict[str, StudentConfig]:
    """Return the settings of a student of each tuned method; all students of a method have the same schedule."""
    assert config.tuning
    rates, made = config.tuning.learning_rates, {m: student_of(config, config.students[0], m) for m in config.methods}
    for label, method in config.methods.items():
        if rates and "lr" in method.fit:
            raise UserError(f"methods.{label}.fit.lr and tuning.learning_rates: leave one of the two out.")
    return {label: student for label, student in made.items() if rates or needs_teacher(student)}


def _check_methods(config: GridConfig) -> None:
    for name in config.weights:
        if name not in config.students:
            raise UserError(f"weights: {unknown('student', name, config.students)}")
    built: dict[tuple[str, str], SceneNet] = {}
    for label, method in config.methods.items():
        name = method.method or label
        if name not in METHODS:
            hint = "" if method.method else " Name its losses with method, such as {method: dkd, losses: {ss: 0}}."
            raise UserError(f"methods.{label}: {unknown('method', name, METHODS)}{hint}")
        if method.epochs is not None and method.epochs < 1:
            raise UserError(f"methods.{label}.epochs is {method.epochs}; expected 1 or more.")
        if others := [name for name in method.fit if name not in NUMBERS]:
            hint = f" Write it as methods.{label}.epochs." if "epochs" in others else ""
            raise UserError(f"methods.{label}.fit: {', '.join(others)} is none of {', '.join(NUMBERS)}.{hint}")
        for student in config.students:
            try:
                made = student_of(config, student, label)
                check_student(made, config.base.data.stored_size)
                if (student, made.weights) not in built:
                    built[student, made.weights], _ = build_network(
                        student,
                        2,
                        bands=config.base.data.bands,
                        image_size=config.base.image_size,
                        weights=made.weights,
                        partial=made.partial,
                    )
                net = built[student, made.weights]
                build_losses(made.loss_weights(), net.dims, net.dims, made.loss_options)
                check_first_size("student", net, config.base, made.schedule(1))
            except UserError as problem:
                raise UserError(f"methods.{label}: {problem}") from problem
        if label == "plain" and needs_teacher(made):
            raise UserError("methods.plain uses the teacher; plain is the label of a student trained on labels alone.")


#: Options of a run that a grid has below `base`.
_BASE = "|".join(item.name for item in fields(RunConfig) if item.name not in ("seeds", "students"))


def grid_words(text: str) -> str:
    """Replace the options in an error message of a run by those of `scenedistill grid`."""
    text = text.replace("--data.train_ratio", "--ratios").replace("--student.method", "--methods")
    return re.sub(rf"--(?=(?:{_BASE})\b)", "--base.", text)


def unknown(what: str, name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """Format the message on an unknown name, with the closest known one."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"no {what} is called '{name}'. " + (
        f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
    )
