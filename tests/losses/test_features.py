"""Losses on single images' features against loops, hand-computed numbers and other implementations."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from scenedistill.losses.base import TeacherStatistics
from scenedistill.losses.features import AttentionTransfer, Hint, PooledHint, SimpleRecipe
from scenedistill.losses.registry import LOSSES
from scenedistill.models.output import FeatureDims, SceneOutput, StageAttention

MakeOutput = Callable[..., SceneOutput]
LABELS = torch.tensor([0, 1, 2, 1, 0])


def of_maps(maps: list[Tensor]) -> SceneOutput:
    """What a network with these stage features `[B, C, H, W]` reports, as far as the losses here look at it."""
    stages = []
    for feature in maps:
        flat = torch.full_like(feature[:, :1], 0.5)
        stages.append(StageAttention(flat[:, :, 0, 0], flat, feature.square().mean(1), feature.mean((2, 3))))
    return SceneOutput(torch.zeros(len(maps[0]), 3), torch.zeros(len(maps[0]), 1), tuple(stages), tuple(maps))


def random_maps(widths: tuple[int, ...], sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(5, width, size, size, generator=draw, dtype=torch.float64)
        for width, size in zip(widths, sizes, strict=True)
    ]


def of_energies(*rows: list[float]) -> SceneOutput:
    """A network of one stage whose energy maps are one row of pixels each."""
    energy = torch.tensor(rows)[:, None, :]
    none = torch.zeros(len(rows), 1)
    return SceneOutput(none, none, (StageAttention(none, energy[:, None], energy, none),))


def unchanged(dims: FeatureDims) -> TeacherStatistics:
    """Statistics of a teacher whose features are standardised already."""
    zeros, ones = ([make(width) for width in dims.stages] for make in (torch.zeros, torch.ones))
    return TeacherStatistics(torch.zeros(dims.embedding), tuple(zeros), tuple(ones))


HINTS: list[tuple[type[Hint | PooledHint], Callable[[SceneOutput], Tensor]]] = [
    (Hint, lambda output: output.features[0]),
    (PooledHint, lambda output: output.attention[0].descriptor[:, :, None, None]),
]


@pytest.mark.parametrize(("kind", "maps"), HINTS)
def test_hint_equals_a_loop(
    kind: type[Hint | PooledHint],
    maps: Callable[[SceneOutput], Tensor],
    output: MakeOutput,
    student_dims: FeatureDims,
    teacher_dims: FeatureDims,
) -> None:
    torch.manual_seed(0)
    if kind is PooledHint:  # one stage of its several
        student_dims, teacher_dims = (dims._replace(stages=dims.stages[:1]) for dims in (student_dims, teacher_dims))
    loss = kind(student_dims, teacher_dims).double()  # of two stages the second from the end is the first
    loss.prepare(unchanged(teacher_dims))
    sizes = (4, 2)[: len(student_dims.stages)]
    student, teacher = output(student_dims, sizes=sizes), output(teacher_dims, sizes=sizes, seed=1)
    # a position of an image a row
    ours, theirs = (maps(net).permute(0, 2, 3, 1).flatten(0, 2).tolist() for net in (student, teacher))
    convolution = next(module for module in loss.modules() if isinstance(module, nn.Conv2d))
    expected = 0.0
    for channel, row in enumerate(convolution.weight[:, :, 0, 0].tolist()):
        guided = [sum(w * value for w, value in zip(row, position, strict=True)) for position in ours]
        mean = sum(guided) / len(guided)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in guided) / len(guided) + 1e-5)
        for value, target in zip(guided, theirs, strict=True):
            expected += ((value - mean) / deviation - target[channel]) ** 2 / (3 * len(guided))
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)
    assert loss.needs_features == (kind is Hint) and loss.needs_attention == (kind is PooledHint)
    assert not loss.relational


@pytest.mark.parametrize("kind", [Hint, PooledHint])
def test_hint_equals_a_value_computed_by_hand(kind: type[Hint | PooledHint]) -> None:
    dims = FeatureDims(3, 1, (1,))
    loss = kind(dims, FeatureDims(3, 1, (2,))).eval()  # its norm, fresh, changes nothing then
    loss.prepare(unchanged(FeatureDims(3, 1, (2,))))
    nn.init.constant_(next(loss.parameters()), 2.0)
    student, teacher = of_maps([torch.full((1, 1, 2, 2), 3.0)]), of_maps([torch.full((1, 2, 4, 4), 4.0)])
    assert loss(student, teacher, LABELS[:1]).item() == pytest.approx((2 * 3 - 4) ** 2, rel=1e-3)


def test_the_pooled_hint_is_at_most_that_on_whole_maps() -> None:
    ours, theirs = random_maps((2,), (4,), seed=0), random_maps((3,), (4,), seed=1)
    torch.manual_seed(0)
    dims = FeatureDims(3, 1, (2,)), FeatureDims(3, 1, (3,))
    whole, pooled = Hint(*dims).double().eval(), PooledHint(*dims).double().eval()
    for loss in (whole, pooled):
        loss.prepare(unchanged(dims[1]))
    pooled.regressors[0].load_state_dict(whole.regressor.state_dict())
    assert pooled(of_maps(ours), of_maps(theirs), LABELS) < whole(of_maps(ours), of_maps(theirs), LABELS)
    even = [of_maps([maps[0].mean((2, 3), keepdim=True).expand(-1, -1, 4, 4)]) for maps in (ours, theirs)]
    torch.testing.assert_close(pooled(*even, LABELS), whole(*even, LABELS))


def test_the_pooled_hint_is_the_mean_over_the_stages(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    loss = PooledHint(student_dims, teacher_dims).double().eval()
    loss.prepare(unchanged(teacher_dims))
    parts = []
    for i in range(2):
        narrow, wide = (dims._replace(stages=dims.stages[i : i + 1]) for dims in (student_dims, teacher_dims))
        single = PooledHint(narrow, wide).double().eval()
        single.prepare(unchanged(wide))
        single.regressors[0].load_state_dict(loss.regressors[i].state_dict())
        parts.append(single(*(net._replace(attention=net.attention[i : i + 1]) for net in (student, teacher)), LABELS))
    torch.testing.assert_close(loss(student, teacher, LABELS), torch.stack(parts).mean())


@pytest.mark.parametrize("name", ["fitnet", "fitnet_pooled", "reviewkd"])
def test_statistics_standardise_the_teachers_features(
    name: str, output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    torch.manual_seed(0)
    plain, prepared = (LOSSES[name](student_dims, teacher_dims).double().eval() for _ in range(2))
    prepared.load_state_dict(plain.state_dict())
    plain.prepare(unchanged(teacher_dims))
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    means = tuple(torch.full((width,), 3.0) for width in teacher_dims.stages)
    stds = tuple(torch.full((width,), 2.0) for width in teacher_dims.stages)
    pair = torch.tensor([[3 - 2**0.5], [3 + 2**0.5]]).expand(2, teacher_dims.embedding)  # mean 3, deviation 2
    prepared.prepare(TeacherStatistics(pair.mean(0), means, stds, pair))

    def moved(value: Tensor) -> Tensor:
        return 2 * value + 3

    shifted = SceneOutput(
        teacher.logits,
        moved(teacher.embedding),
        tuple(stage._replace(descriptor=moved(stage.descriptor)) for stage in teacher.attention),
        tuple(map(moved, teacher.features)),
    )
    torch.testing.assert_close(prepared(student, shifted, LABELS), plain(student, teacher, LABELS), rtol=1e-6, atol=0)


def test_the_simple_recipe_leaves_out_channels_that_hardly_vary(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    loss = SimpleRecipe(student_dims, teacher_dims, logits=0.0).double()
    embeddings = torch.randn(20, teacher_dims.embedding)
    embeddings[:, 2] *= 0.001
    loss.prepare(TeacherStatistics(embeddings.mean(0), (), (), embeddings))
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    spiky = teacher._replace(embedding=teacher.embedding.index_fill(1, torch.tensor([2]), 0.0))
    spiky.embedding[0, 2] = 100.0
    torch.testing.assert_close(loss(student, spiky, LABELS), loss(student, teacher, LABELS))
    spiky.embedding[0, 1] = 100.0
    assert not torch.isclose(loss(student, spiky, LABELS), loss(student, teacher, LABELS))


def test_hint_uses_the_given_stage(student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    def widths(student: FeatureDims, teacher: FeatureDims, **options: float) -> tuple[int, int]:
        regressor = Hint(student, teacher, **options).regressor
        theirs, ours = next(regressor.parameters()).shape[:2]
        return ours, theirs

    four = FeatureDims(3, 4, (11, 12, 13, 14))
    assert widths(four, four) == (13, 13)
    assert widths(four, teacher_dims) == (13, 3)
    assert widths(student_dims, four, stage=1) == (5, 14)
    assert widths(student_dims, four, stage=4.0) == (2, 13)  # the student has two stages
    with pytest.raises(ValueError, match="stage is 0; expected 1"):
        Hint(four, four, stage=0)


def test_attention_transfer_equals_a_loop(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    expected = 0.0
    for ours, theirs in zip(student.attention, teacher.attention, strict=True):
        for s, t in zip(ours.energy.flatten(1).tolist(), theirs.energy.flatten(1).tolist(), strict=True):
            length_s, length_t = math.hypot(*s), math.hypot(*t)
            expected += sum((a / length_s - b / length_t) ** 2 for a, b in zip(s, t, strict=True)) / (5 * len(s))
    loss = AttentionTransfer(student_dims, teacher_dims)
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-9)
    assert not loss.relational and loss.needs_attention


def test_attention_transfer_equals_a_value_computed_by_hand() -> None:
    dims = FeatureDims(3, 1, (1,))
    loss = AttentionTransfer(dims, dims)
    # of unit length: 0.6, 0.8 against 0.8, 0.6; over two positions
    assert loss(of_energies([3.0, 4.0]), of_energies([40.0, 30.0]), LABELS[:1]).item() == pytest.approx(0.04)
    assert loss(of_energies([1.0, 0.0]), of_energies([0.0, 7.0]), LABELS[:1]).item() == pytest.approx(1.0)
    # the teacher's four pixels are averaged to the student's two first: 3, 4
    assert loss(of_energies([4.0, 3.0]), of_energies([2.0, 4.0, 3.0, 5.0]), LABELS[:1]).item() == pytest.approx(0.04)


def test_attention_transfer_equals_torchdistill(mid_level: ModuleType) -> None:
    ours, theirs = random_maps((2, 5), (4, 2), seed=0), random_maps((3, 7), (4, 2), seed=1)
    paths = [{"path": str(i), "io": "output"} for i in range(2)]
    pairs = {f"pair{i}": {"student": paths[i], "teacher": paths[i]} for i in range(2)}

    def modules(maps: list[Tensor]) -> dict[str, dict[str, Tensor]]:
        return {str(i): {"output": feature} for i, feature in enumerate(maps)}

    loss = AttentionTransfer(FeatureDims(3, 1, (2, 5)), FeatureDims(3, 1, (3, 7)))
    expected = mid_level.ATLoss(pairs, mode="code")(modules(ours), modules(theirs))
    torch.testing.assert_close(loss(of_maps(ours), of_maps(theirs), LABELS), expected)
    # equation 2 of the paper has the distance itself; of one image and one stage of 16 positions:
    one, other = [ours[0][:1]], [theirs[0][:1]]
    distance = mid_level.ATLoss({"pair0": pairs["pair0"]}, mode="paper")(modules(one), modules(other))
    torch.testing.assert_close(16 * loss(of_maps(one), of_maps(other), LABELS[:1]), distance**2)


def test_simple_recipe_equals_a_loop(output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    torch.manual_seed(0)
    loss = SimpleRecipe(student_dims, teacher_dims, features=0.7, logits=0.3, power=3.0).double()
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    projected = [
        [sum(w * u for w, u in zip(row, image, strict=True)) for image in student.embedding.tolist()]
        for row in loss.projector.get_parameter("weight").tolist()
    ]
    total = 0.0
    for ours, theirs in zip(projected, teacher.embedding.T.tolist(), strict=True):  # channel by channel
        values = []
        for channel in (ours, theirs):
            mean = sum(channel) / 5
            deviation = math.sqrt(sum((value - mean) ** 2 for value in channel) / 5 + 1e-4)
            values.append([(value - mean) / deviation for value in channel])
        total += sum(abs(a - b) ** 3 for a, b in zip(*values, strict=True))
    s, t = (net.logits.exp() / net.logits.exp().sum(1, keepdim=True) for net in (student, teacher))
    expected = 0.7 * math.log(total) + 0.3 * float((t * (t / s).log()).sum()) / 5
    assert loss(student, teacher, LABELS).item() == pytest.approx(expected, rel=1e-8)
    assert loss.relational


def test_simple_recipe_equals_a_value_computed_by_hand() -> None:
    dims = FeatureDims(2, 1, ())
    loss = SimpleRecipe(dims, dims)
    nn.init.ones_(loss.projector.get_parameter("weight"))
    # of two images normalised values are 1 and -1; the student's the other way round: 2 log(2^4 + 2^4)
    student = SceneOutput(torch.zeros(2, 2), torch.tensor([[0.0], [20.0]]), ())
    teacher = SceneOutput(torch.zeros(2, 2), torch.tensor([[7.0], [-5.0]]), ())
    assert loss(student, teacher, LABELS[:2]).item() == pytest.approx(2 * math.log(32), rel=1e-4)


def test_simple_recipe_equals_torchdistill(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims, mid_level: ModuleType
) -> None:
    theirs = mid_level.SRDLoss(*("feature", "output") * 2, *("logits", "output") * 2, exponent=4.0)
    torch.manual_seed(0)
    loss = SimpleRecipe(student_dims, teacher_dims).double()
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    norm = nn.BatchNorm1d(teacher_dims.embedding, eps=1e-4, affine=False).double()
    linear = nn.Linear(student_dims.embedding, teacher_dims.embedding).double()
    linear.weight = loss.projector.get_parameter("weight")  # and a bias of its own, which the norm takes away

    def modules(feature: Tensor, logits: Tensor) -> dict[str, dict[str, Tensor]]:
        return {"feature": {"output": norm(feature)}, "logits": {"output": logits}}

    expected = theirs(modules(linear(student.embedding), student.logits), modules(teacher.embedding, teacher.logits))
    torch.testing.assert_close(loss(student, teacher, LABELS), expected)


def test_simple_recipe_without_a_part_and_on_one_image(
    output: MakeOutput, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    student, teacher = output(student_dims), output(teacher_dims, seed=1)
    assert not list(SimpleRecipe(student_dims, teacher_dims, features=0.0).parameters())  # nothing idle: DDP would stop
    for parts in ({"features": 0.0}, {"logits": 0.0}):
        assert SimpleRecipe(student_dims, teacher_dims, **parts).double()(student, teacher, LABELS).isfinite()
    alone = SimpleRecipe(student_dims, teacher_dims, logits=0.0).double()
    one = output(student_dims, 1).map(lambda t: t.requires_grad_())
    alone(one, output(teacher_dims, 1, seed=1), LABELS[:1]).backward()
    assert one.embedding.grad is not None and (one.embedding.grad == 0).all()
    gradient = alone.projector.get_parameter("weight").grad
    assert gradient is not None and (gradient == 0).all()
