"""Two processes with half the batch each compute what one process computes with the whole."""

from __future__ import annotations

import contextlib
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from scenedistill.models.create import build_student
from scenedistill.training.distributed import gather, share_batch_norm, world_size

WORKER = Path(__file__).with_name("distributed_worker.py")
WORLD = 2
EQUAL = (
    *("ce", "da", "ss", "sp", "reviewkd", "hard", "semihard", "ce of mobilenetv3_small_100"),
    *("ce of few labels", "ce of one process", "decoupled of few labels", "crd of few labels"),
)
ALONE = ("ce, nothing shared", "ss, nothing gathered")

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def whole() -> Found:
    """What one process computes."""
    found: Found = runpy.run_path(str(WORKER))["compute"](0, 1)
    return found


@pytest.fixture(scope="module")
def met(commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two real processes have left what each computed."""
    folder = tmp_path_factory.mktemp("processes")
    with contextlib.ExitStack() as running:
        workers = [running.enter_context(commands.start(rank, WORLD, folder, script=WORKER)) for rank in range(WORLD)]
        ended = [worker.wait() for worker in workers]
    assert [worker.code for worker in ended] == [0] * WORLD, "\n".join(worker.out + worker.err for worker in ended)
    return folder


@pytest.fixture(scope="module")
def shares(met: Path) -> list[Found]:
    """What each of two processes computes of a training step."""
    return [torch.load(met / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.slow
def test_two_processes_predict_what_one_does(met: Path) -> None:
    """Every image once, in the order of the part, whether or not the processes can share them evenly."""
    alone: dict[str, np.ndarray] = runpy.run_path(str(WORKER))["predictions"]()
    assert len(set(alone["23"])) > 1, "were all classes the same, their order could not be wrong"
    for rank in range(WORLD):
        with np.load(met / f"{rank}.npz") as found:
            for count, share in {23: 12, 8: 4, 1: 1, 0: 0}.items():
                assert found[f"{count} looked at"] == share and alone[f"{count} looked at"] == count
                classes = found[f"{count}"]
                assert classes.dtype == np.int64 and classes.shape == (count,)
                assert np.array_equal(classes, alone[f"{count}"])


@pytest.mark.slow
@pytest.mark.parametrize("case", EQUAL)
def test_loss_gradients_and_running_statistics_are_those_of_the_whole_batch(
    case: str, whole: Found, shares: list[Found]
) -> None:
    expected = whole[case]
    assert expected["loss"] > 0
    assert any(gradient.abs().sum() > 0 for gradient in expected["gradients"].values())
    for share in shares:
        torch.testing.assert_close(share[case]["loss"], expected["loss"], rtol=1e-9, atol=0)
        torch.testing.assert_close(share[case]["gradients"], expected["gradients"], rtol=1e-6, atol=1e-10)
        # the head of L_SS sees the whole batch in every process: its running variance takes it for twice as large
        for name, buffer in expected["buffers"].items():
            if name != "loss.head.1.running_var":
                torch.testing.assert_close(share[case]["buffers"][name], buffer, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("case", ALONE)
def test_a_process_that_sees_its_own_images_only_computes_something_else(
    case: str, whole: Found, shares: list[Found]
) -> None:
    """Were this not so, the test above could not fail."""
    expected, found = whole[case]["gradients"], shares[0][case]["gradients"]
    largest = max(float((found[name] - expected[name]).norm() / expected[name].norm()) for name in expected)
    assert largest > 0.01


def test_a_single_process_gathers_nothing() -> None:
    tensor = torch.randn(3, requires_grad=True)
    assert world_size() == 1 and gather(tensor) is tensor


@pytest.mark.parametrize("name", ["table1_printed", "mobilenetv3_small_100", "densenet121"])
@pytest.mark.parametrize("training", [True, False])
def test_shared_batch_norm_equals_batch_norm(name: str, training: bool) -> None:
    """With one process, to the bit: same names, same statistics, and the activations that some norms hold."""
    torch.manual_seed(0)
    net = build_student(name, 3, image_size=64).train(training)
    torch.manual_seed(0)
    shared = build_student(name, 3, image_size=64).train(training)
    share_batch_norm(shared)
    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    assert any(isinstance(module, norms) for module in net.modules())
    assert not any(isinstance(module, norms) for module in shared.modules())
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(shared(images).logits, net(images).logits, rtol=0, atol=0)
    torch.testing.assert_close(shared.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert [key for key, _ in shared.named_parameters()] == [key for key, _ in net.named_parameters()]


def test_shared_batch_norm_refuses_inputs_of_a_wrong_shape() -> None:
    module = nn.Sequential(nn.BatchNorm1d(3))
    share_batch_norm(module)
    with pytest.raises(ValueError, match=r"needs \[B, C, ...\], found \(3,\)"):
        module(torch.zeros(3))
