"""Gathered batches and shared batch norm statistics, so that several processes compute the same as one."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn

from scenedistill.models.output import SceneOutput


def world_size() -> int:
    """Return the number of processes of this training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the tensors `[B, ...]` of all processes by rank to `[world * B, ...]`; gradients flow to each.

    Every process then computes the same loss on the whole batch. The backward pass sums the gradients over the
    processes and DDP divides by their number, which gives the gradient of the whole batch.
    """
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()  # NCCL copies bytes: the shares must have the memory layout of what is sent
    if not tensor.requires_grad:
        shares = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(shares, tensor)
        return torch.cat(shares)
    return torch.cat(cast(tuple[Tensor, ...], dist_nn.all_gather(tensor)))  # type: ignore[no-untyped-call]


def gather_output(output: SceneOutput) -> SceneOutput:
    """Gather the outputs that relational losses use: logits, embedding, rows, and the feature maps of the last stage if
    present."""
    features = tuple(map(gather, output.features[-1:]))
    rows = tuple(map(gather, output.rows))
    return SceneOutput(gather(output.logits), gather(output.embedding), (), features, rows)


def mean_over_processes(mean: Tensor, count: int) -> Tensor:
    """Return a mean over `count` images of this process, scaled so that the average over the processes is the mean over
    all their images; every process must call this."""
    if world_size() == 1:
        return mean
    every = torch.tensor(count, device=mean.device)
    dist.all_reduce(every)
    return mean * count * world_size() / every.clamp(min=1)


def share_of_rows(count: int) -> list[int]:
    """Return this process's share of the rows 0..`count` - 1; shares are equally long, padded with the last row."""
    each = -(-count // world_size())
    first = each * (dist.get_rank() if world_size() > 1 else 0)
    return [min(row, count - 1) for row in range(first, first + each)]


def gather_rows(share: Tensor, count: int) -> Tensor:
    """Gather the results for each process's `share_of_rows`, `[count, ...]`, on every process."""
    return gather(share)[:count]


def on_every_process(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set in all processes; every process must call this."""
    if world_size() == 1:
        return flag
    least = torch.tensor(int(flag), device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return bool(least.item())


def share_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm in a module, in place, by one with the batch statistics of all processes.

    This is for CPUs: torch's SyncBatchNorm runs on CUDA only. Names and values of the tensors do not change.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _SharedBatchNorm.from_plain(child))
        else:
            share_batch_norm(child)


class _SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over `[B, C, ...]` with the mean and variance over all processes."""

    drop: nn.Module
    act: nn.Module

    @classmethod
    def from_plain(cls, plain: nn.BatchNorm1d | nn.BatchNorm2d) -> _SharedBatchNorm:
        shared = cls(plain.num_features, plain.eps, plain.momentum, plain.affine, plain.track_running_stats)
        shared.weight, shared.bias = plain.weight, plain.bias
        shared.running_mean, shared.running_var = plain.running_mean, plain.running_var
        shared.num_batches_tracked = plain.num_batches_tracked
        for part in ("drop", "act"):  # timm's batch norms contain their activation
            setattr(shared, part, getattr(plain, part, nn.Identity()))
        shared.train(plain.training)
        return shared

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm needs [B, C, ...], found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        normal = self._normalised(input) if self.training and world_size() > 1 else super().forward(input)
        return cast(Tensor, self.act(self.drop(normal)))

    def _normalised(self, input: Tensor) -> Tensor:
        over = [0, *range(2, input.ndim)]
        with torch.autocast(input.device.type, enabled=False):
            exact = input if input.dtype == torch.float64 else input.float()
            count = exact.numel() / exact.shape[1] * world_size()
            mean = _sum_of_all(exact.sum(over)) / count
            shape = [1, -1] + [1] * (input.ndim - 2)
            centred = exact - mean.view(shape)
            variance = _sum_of_all(centred.square().sum(over)) / count
            if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
                with torch.no_grad():
                    cast(Tensor, self.num_batches_tracked).add_(1)
                    unbiased = variance * (count / max(count - 1, 1))
                    self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.1)
                    self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum or 0.1)
            normal = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                normal = normal * self.weight.view(shape) + self.bias.view(shape)
            return normal.to(input.dtype)


def _sum_of_all(tensor: Tensor) -> Tensor:
    """Return the sum over the processes; gradients flow to each."""
    return cast(Tensor, dist_nn.all_reduce(tensor))  # type: ignore[no-untyped-call]
