"""Epochs and batches suit the number of images, against numbers worked out by hand; what is given counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scenedistill.config import StudentConfig, StudentFitConfig, TeacherConfig, TeacherFitConfig
from scenedistill.fit_config import FROM_NOTHING_BUDGET, Budget, steps_of_epoch
from scenedistill.losses.registry import METHODS

SMALL = Budget(epochs=10, least_steps=100, most_epochs=40, most_steps=1000)


@pytest.mark.parametrize(
    ("images", "epochs", "why"),
    [
        (160, 10, "10 steps an epoch make 100"),
        (159, 12, "9 steps: 12 epochs are 108, 11 would be 99"),
        (40, 40, "2 steps: 50 epochs would do, 40 is the most"),
        (3, 40, "one step, of the only batch there is"),
        (1600, 10, "100 steps: 1,000 in all"),
        (1616, 9, "101 steps: 10 epochs would be 1,010"),
        (16_000, 1, "1,000 steps"),
        (160_000, 1, "10,000 steps, and no less than an epoch"),
    ],
)
def test_the_number_of_epochs_follows_the_budget(images: int, epochs: int, why: str) -> None:
    assert SMALL.resolve_epochs(images, 16) == epochs, why


def test_more_images_never_mean_more_epochs() -> None:
    found = [SMALL.resolve_epochs(images, 16) for images in range(1, 20_000, 7)]
    assert found == sorted(found, reverse=True)


def test_few_images_come_in_smaller_batches_and_more_epochs() -> None:
    few, many = StudentConfig().schedule(300), StudentConfig().schedule(30_000)
    assert (few.batch_size, many.batch_size) == (32, 64)
    assert few.epochs == FROM_NOTHING_BUDGET.most_epochs and many.epochs == FROM_NOTHING_BUDGET.epochs
    assert [StudentConfig().schedule(images).batch_size for images in (999, 1000)] == [32, 64]
    middle = StudentConfig().schedule(560)
    assert middle.epochs * steps_of_epoch(560, 32) >= FROM_NOTHING_BUDGET.least_steps
    pretrained = StudentConfig(weights="lite").schedule(300)
    assert 16 < pretrained.epochs < few.epochs
    assert TeacherConfig().schedule(300).epochs > TeacherConfig().schedule(5000).epochs == 25


def test_given_values_are_used_for_any_number_of_images() -> None:
    for images in (10, 300, 100_000):
        assert StudentConfig(fit=StudentFitConfig(epochs=7)).schedule(images).epochs == 7
        assert StudentConfig(fit=StudentFitConfig(batch_size=48)).schedule(images).batch_size == 48
        assert TeacherConfig(fit=TeacherFitConfig(epochs=7, batch_size=48)).schedule(images).epochs == 7


def test_a_stored_view_serves_at_most_four_epochs_unless_their_number_is_given() -> None:
    views = {images: StudentConfig().closed(images).knowledge_views for images in (500, 2000, 5000)}
    assert views == {500: 50, 2000: 25, 5000: 16}, "200, 97 and 60 epochs"
    assert StudentConfig(weights="lite").closed(500).knowledge_views == 16, "32 epochs"
    assert [StudentConfig(knowledge_views=given).closed(500).knowledge_views for given in (0, 3)] == [0, 3]


@pytest.mark.parametrize("method", ["dkd", "dkd_plus"])
def test_the_da_weight_depends_on_the_initial_weights_unless_it_is_given(method: str) -> None:
    fresh, tuned = StudentConfig(method=method), StudentConfig(method=method, weights="lite")
    assert fresh.loss_weights() == METHODS[method] and fresh.loss_weights()["da"] == 30
    assert tuned.loss_weights() == METHODS[method] | {"da": 1}
    assert tuned.closed(500).losses == {"da": 1}, "recorded with the training, and part of its fingerprint"
    assert tuned.closed(500).loss_weights() == tuned.loss_weights()
    given = replace(tuned, losses={"da": 30.0, "ss": 2.0})
    assert given.loss_weights() == METHODS[method] | {"ss": 2} and given.closed(500).losses == {"da": 30, "ss": 2}
    assert "da" not in replace(tuned, losses={"da": 0.0}).loss_weights()
    assert fresh.closed(500).losses == {} == StudentConfig(method="kd", weights="lite").closed(500).losses


def test_steps_take_the_place_of_epochs() -> None:
    fit = StudentConfig(fit=StudentFitConfig(steps=100, batch_size=50)).schedule(1000)
    assert (fit.steps, fit.epochs) == (100, 5)
    fit = StudentConfig(fit=StudentFitConfig(steps=101, batch_size=50)).schedule(1000)
    assert (fit.steps, fit.epochs) == (101, 6)


def test_values_that_depend_on_the_images_need_their_number() -> None:
    assert StudentConfig(fit=StudentFitConfig(epochs=3, batch_size=8)).schedule().epochs == 3
    for fit in (StudentFitConfig(epochs=3), StudentFitConfig(batch_size=8), StudentFitConfig()):
        with pytest.raises(ValueError, match="chosen by the number of images"):
            StudentConfig(fit=fit).schedule()
