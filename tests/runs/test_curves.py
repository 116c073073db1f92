"""Curves are read as they were logged, over several tries and from a shared training; the hints say what drowns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scenedistill.core.disk import file_hash
from scenedistill.core.errors import Damaged, UserError
from scenedistill.runs.curves import Curves, hints, read_curves


def write_log(folder: Path, text: str, attempt: int = 0) -> None:
    path = folder / "logs" / f"attempt_{attempt}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(line.strip() for line in text.strip().splitlines()) + "\n")


def curves(**pulls: float) -> Curves:
    """Three epochs, measured in two of them."""
    one = np.ones(3)
    return Curves(
        np.arange(1, 4),
        {name: one for name in pulls},
        dict.fromkeys(pulls, 2.0),
        {name: np.array([value, np.nan, 3 * value]) for name, value in pulls.items()},
        {},
    )


def test_the_curves_of_a_real_run(tiny_run: Path) -> None:
    found = read_curves(tiny_run / "seed3" / "table1_printed" / "dkd")
    record = json.loads((tiny_run / "seed3" / "table1_printed" / "dkd" / "stage.json").read_text())["record"]
    assert found.epochs.tolist() == [1, 2, 3]
    assert found.weights == {"ce": 1.0, "da": 1.0, "ss": 1.0}
    assert set(found.parts) == set(found.pulls) == {"ce", "da", "ss"}
    for name, values in (*found.parts.items(), *found.accuracies.items()):
        assert np.isfinite(values).all()
        assert values[-1] == pytest.approx(record["last_epoch"][name], abs=1e-4)
    for name, values in found.pulls.items():
        assert np.isnan(values[:-1]).all(), "few steps: the last epoch alone is measured"
        assert values[-1] > 0, name
    assert sum(found.gradient_shares.values()) == pytest.approx(1)

    teacher = read_curves(tiny_run / "seed3" / "teacher")
    assert set(teacher.parts) == {"ce", "triplet"} == set(teacher.weights)
    plain = read_curves(tiny_run / "seed3" / "table1_printed" / "plain")
    assert (set(plain.parts), plain.pulls, plain.gradient_shares, hints(plain)) == ({"ce"}, {}, {}, [])


def test_a_repeated_epoch_counts_as_the_later_try_had_it(tmp_path: Path) -> None:
    write_log(
        tmp_path,
        """ce,epoch,gradient_ce,seconds,step,train_oa,val_oa,data_seconds
        ,0,4.5,,0,,,
        3.0,0,,1.5,9,0.1,,0.2
        ,0,,,9,,0.3,
        2.0,1,,3.0,19,0.2,,0.4""",
    )
    write_log(tmp_path, "ce,epoch,step,train_oa\n1.5,1,19,0.25\n1.0,2,29,0.5", attempt=1)
    found = read_curves(tmp_path)
    assert found.epochs.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found.parts["ce"], [3.0, 1.5, 1.0])
    np.testing.assert_array_equal(found.accuracies["train_oa"], [0.1, 0.25, 0.5])
    np.testing.assert_array_equal(found.accuracies["val_oa"], [0.3, np.nan, np.nan])
    np.testing.assert_array_equal(found.pulls["ce"], [4.5, np.nan, np.nan])
    assert set(found.parts) == {"ce"}
    assert found.weights == {}, "nobody says"


def test_a_student_of_a_shared_training_finds_its_own(tmp_path: Path) -> None:
    student = {"name": "light", "method": "kd", "losses": {"kd": 2.0}}
    stage = tmp_path / "light" / "kd"
    stage.mkdir(parents=True)
    other = "light kd ce,light kd kd,epoch\n9.0,9.0,0"
    own = "light kd ce,light kd kd,light kd gradient_kd,light kd x ce,epoch\n,,7.0,,0\n1.0,0.5,,3.0,0"
    write_log(tmp_path / "together-0", other)
    write_log(tmp_path / "together-1", own)
    log = tmp_path / "together-1" / "logs" / "attempt_0" / "metrics.csv"
    record = {"together": 2, "logs": {"../../together-1/logs/attempt_0/metrics.csv": file_hash(log)}}
    (stage / "stage.json").write_text(json.dumps({"settings": {"student": student}, "record": record}))
    found = read_curves(stage)
    assert found.parts["ce"].tolist() == [1.0]
    assert found.parts["kd"].tolist() == [0.5]
    assert found.pulls["kd"].tolist() == [7.0]
    assert found.weights == {"ce": 0.1, "kd": 2.0}


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no log of a training"):
        read_curves(tmp_path)


@pytest.mark.parametrize("text", ["ce,epoch\n1.0,0\n1.x,1", "ce,epoch\n1.0,0\n\0,1"])
def test_a_damaged_log_is_named(text: str, tmp_path: Path) -> None:
    write_log(tmp_path, text)
    with pytest.raises(Damaged, match=r"metrics\.csv is damaged"):
        read_curves(tmp_path)


def test_a_row_whose_epoch_is_no_number_does_not_count(tmp_path: Path) -> None:
    write_log(tmp_path, "ce,epoch\n1.0,0\n2.0,nan")
    assert read_curves(tmp_path).epochs.tolist() == [1]


def test_a_dominating_term_is_named_with_a_better_weight() -> None:
    drowning, idle = hints(curves(ce=1.0, da=5.0, ss=100.0))
    assert drowning == (
        "'ss' drowns the others: 94 % of the length of all gradients is its own, median over the measured epochs. "
        "A weight of about 0.1 instead of 2 would bring it level with 'da'."
    )
    assert idle.startswith("'ce' hardly counts: 0.9 % of the length of all gradients is its own.")


def test_nothing_is_reported_where_all_terms_contribute() -> None:
    assert hints(curves(ce=1.0, da=0.5, ss=3.0)) == []
    assert hints(curves(ce=1.0)) == [], "one loss alone drowns nobody"


def test_a_nan_loss_is_distinguished_from_one_that_was_not_logged(tmp_path: Path) -> None:
    write_log(tmp_path, "ce,da,epoch\n1.0,,0\nnan,2.0,1\nnan,2.0,2")
    assert hints(read_curves(tmp_path)) == [
        "'ce' is not finite from epoch 2 on. Lower the learning rate or its weight."
    ]
