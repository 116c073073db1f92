"""Add a new loss in three places: a class, a line in the registry, and a test against a slow reference.

python examples/new_loss.py

In a fork of scenedistill the class is a file in losses/, the line stands in losses/registry.py and the test in tests/.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from scenedistill.losses import LOSSES, DistillationLoss, build_losses
from scenedistill.models import FeatureDims, SceneNet, SceneOutput, build_student


# 1. The class: a function of two outputs and the labels.
class Ranking(DistillationLoss):
    """Margin by which the student breaks the order of the teacher's two best classes, mean over the batch.

    Args:
        student: widths of the student.
        teacher: widths of the teacher.
        margin: least difference of the two logits, >= 0.
    """

    def __init__(self, student: FeatureDims, teacher: FeatureDims, *, margin: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.margin = margin

    def compute(self, student: SceneOutput, teacher: SceneOutput, labels: Tensor) -> Tensor:
        """See `DistillationLoss.compute`: tensors are float32, and the teacher's have no gradient."""
        best, second = student.logits.gather(1, teacher.logits.topk(2).indices).unbind(1)
        return F.relu(self.margin - (best - second)).mean()


# 2. The line in the registry. From here on settings, grids and the report accept it: --student.losses '{ranking: 0.5}'
LOSSES["ranking"] = Ranking


# 3. The test: a loop written from the definition.
def slow_ranking(student: Tensor, teacher: Tensor, margin: float) -> float:
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        order = sorted(range(len(theirs)), key=lambda k: -theirs[k])
        total += max(0.0, margin - (ours[order[0]] - ours[order[1]]))
    return total / len(student)


def outputs_of(net: SceneNet) -> SceneOutput:
    output: SceneOutput = net(torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return output


torch.manual_seed(0)
student, teacher = (build_student(name, 5, image_size=64) for name in ("table1_printed", "table1_resnet"))
loss = build_losses({"ranking": 1.0}, student.dims, teacher.dims, {"ranking": {"margin": 0.5}})["ranking"]
ours, theirs = outputs_of(student), outputs_of(teacher)
value = loss(ours, theirs, torch.zeros(8, dtype=torch.long))
value.backward()
gradient = student.head.weight.grad
assert gradient is not None
expected = slow_ranking(ours.logits, theirs.logits, margin=0.5)
assert abs(value.item() - expected) < 1e-5, (value.item(), expected)
print(f"ranking loss {value.item():.4f}, by the loop {expected:.4f}; the student's head has a gradient of norm "
      f"{float(gradient.norm()):.3f}")  # fmt: skip
