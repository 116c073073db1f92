"""torchdistill's loop: its DistillationBox with KDLoss, configured as its sample of KD on ImageNet."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import RandomSampler

from .loop import KD_WEIGHT, TEMPERATURE, Loop, LoopSettings, Switches
from .textbook import fast_folder, plain_folder


class TorchdistillLoop(Loop):
    """Loop with sixteen workers and pinned memory, as in its sample, torchvision's transforms and fp32.

    torchdistill 1.1.5 has no mixed precision of its own (that is left to accelerate, whose current releases are
    incompatible) and no longer keeps the teacher's outputs; earlier releases kept one for each image, whatever the
    view. So the tuned loop changes only what a user can set outside the DistillationBox.
    """

    name = "torchdistill"
    own_workers = 16
    switched_on = "fused SGD, uint8 tensor transforms (v2)"

    def __init__(self, settings: LoopSettings, switches: Switches | None = None) -> None:
        super().__init__(settings, switches)
        logging.getLogger("torchdistill").setLevel(logging.WARNING)
        from torchdistill.core.distillation import get_distillation_box

        folder = fast_folder(settings) if self.switches.tuned else plain_folder(settings)
        self._config = self._configure()
        self._box = get_distillation_box(
            self.compiled(self.teacher),
            self.compiled(self.student),
            {"scenes": folder},
            self._config,
            settings.device,
            None,
            False,  # not distributed
            1.0,  # factor of the learning rate
        )
        self.optimizer = self._box.optimizer
        self._box.train_data_loader = None

    def batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """See `Loop.batches`."""
        self._box.setup_data_loaders(self._config)
        loader, self._box.train_data_loader = self._box.train_data_loader, None
        return _Epochs(self._box, loader)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """See `Loop.loss`."""
        return self._box.forward_process(images, labels, {})

    def update(self, loss: Tensor) -> None:
        """See `Loop.update`."""
        self._box.post_forward_process(loss=loss)

    def _configure(self) -> dict[str, Any]:
        """Return the train section of the sample's YAML file, with the loss and the optimiser of the comparison."""
        given, tuned = self.given, self.switches.tuned
        logits = {f"{who}_module_{what}": at for who in ("student", "teacher") for what, at in LOGITS.items()}
        distillation = {**logits, "temperature": TEMPERATURE, "alpha": 1.0, "beta": KD_WEIGHT, "reduction": "batchmean"}
        return {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "scenes",
                "sampler": {"class_or_func": RandomSampler},
                "kwargs": {
                    "batch_size": given.batch_size,
                    "num_workers": self.workers,
                    "pin_memory": given.device.type == "cuda",
                    "drop_last": tuned,  # a smaller last batch would be compiled again
                    "persistent_workers": tuned and self.workers > 0,
                },
            },
            "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": True},
            "optimizer": {
                "key": "SGD",
                "kwargs": {
                    "lr": given.lr,
                    "momentum": 0.9,
                    "nesterov": True,
                    "weight_decay": given.weight_decay,
                    "fused": tuned or None,
                },
            },
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {
                    "sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": distillation}, "weight": 1.0}}
                },
            },
        }


LOGITS = {"path": ".", "io": "output"}  # the output of the whole network


class _Epochs:
    """The box's loader, with the box's work before and after an epoch and without the third, empty item of a batch."""

    def __init__(self, box: Any, loader: Iterable[tuple[Tensor, Tensor, object]]) -> None:
        self._box, self._loader, self._epoch = box, loader, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._box.pre_epoch_process(epoch=self._epoch)
        for images, labels, _ in self._loader:
            yield images, labels
        self._box.post_epoch_process(metrics=None)
        self._epoch += 1
