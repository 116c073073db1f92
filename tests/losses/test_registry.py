"""Losses and methods by name."""

from __future__ import annotations

import pytest

from scenedistill.core.errors import UserError
from scenedistill.losses.base import DistillationLoss
from scenedistill.losses.registry import LOSSES, METHODS, build_losses, resolve_weights
from scenedistill.models.output import FeatureDims


def test_every_method_is_made_of_known_losses() -> None:
    assert {name for weights in METHODS.values() for name in weights} <= set(LOSSES)
    assert METHODS["dkd"].keys() == {"ce", "da", "ss"}  # the three terms of equation (15)


def test_build_gives_each_loss_its_options(student_dims: FeatureDims, teacher_dims: FeatureDims) -> None:
    built = build_losses({"ce": 1.0, "ss": 2.0}, student_dims, teacher_dims, {"ss": {"temperature": 0.05}})
    assert list(built) == ["ce", "ss"]
    assert all(isinstance(loss, DistillationLoss) for loss in built.values())
    assert built["ss"].temperature == 0.05


def test_wrong_names_and_options_are_refused_with_the_known_ones(
    student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    with pytest.raises(UserError, match=r"No loss is called sss.*ce, da, ss.*, kd, "):
        build_losses({"sss": 1.0}, student_dims, teacher_dims)
    with pytest.raises(UserError, match=r"'ss'.*heat.*temperature"):
        build_losses({"ss": 1.0}, student_dims, teacher_dims, {"ss": {"heat": 1.0}})
    with pytest.raises(UserError, match=r"'ce'.*none"):
        build_losses({"ce": 1.0}, student_dims, teacher_dims, {"ce": {"heat": 1.0}})
    with pytest.raises(UserError, match=r"Options are given for SS, but the losses are ce, ss\."):
        build_losses({"ce": 1.0, "ss": 1.0}, student_dims, teacher_dims, {"SS": {"temperature": 0.05}})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, "temperature", 0.0) for name in ("kd", "decoupled", "dist", "logit_std", "crd", "ss")),
        ("crd", "width", 0.5),
        ("cc", "gamma", -1.0),
        ("cc", "order", 0.0),
        ("srd", "power", 1.0),
        ("fitnet", "stage", 0.0),
        ("fitnet", "stage", float("nan")),
        ("lightly", "temperature", 0.0),
        ("reviewkd", "middle", 0.0),
        ("reviewkd", "middle", float("inf")),
        ("da", "energy", -1.0),
        ("ss", "relation", -1.0),
        ("rkd", "angle", -1.0),
        ("dist", "intra", -1.0),
        ("decoupled", "rest", -1.0),
        ("srd", "logits", -1.0),
    ],
)
def test_an_option_out_of_its_range_is_refused(
    name: str, option: str, value: float, student_dims: FeatureDims, teacher_dims: FeatureDims
) -> None:
    with pytest.raises(UserError, match=rf"Loss '{name}': {option} is {value:g}; expected "):
        build_losses({name: 1.0}, student_dims, teacher_dims, {name: {option: value}})


def test_weights_of_a_method_with_changes() -> None:
    assert resolve_weights("plain", {}) == {"ce": 1.0}
    assert resolve_weights("dkd", {"da": 0.0, "ss": 2.5}) == {"ce": 1.0, "ss": 2.5}
    assert METHODS["dkd"]["da"] == 30.0  # the method itself stays
    with pytest.raises(UserError, match=r"dkdd.*dkd"):
        resolve_weights("dkdd", {})
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"The weight of da is {wrong:g}"):
            resolve_weights("dkd", {"da": wrong})
    with pytest.raises(UserError, match="No loss is called SS"):
        resolve_weights("dkd", {"SS": 0.0})  # would otherwise train with the weight of ss as it is
