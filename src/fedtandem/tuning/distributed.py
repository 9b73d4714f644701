"""Several processes on one batch: `torchrun` and `accelerate launch` set the environment, gradients are summed.

Every process runs the same program on the same data and takes its share of every batch. Sums are divided by the
counts of the whole batch, so the summed gradient is the whole batch's, whatever each process held.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_ELEMENTS = 1 << 24
"""Gradients summed in one message."""


@dataclass(frozen=True)
class World:
    """The processes that share a batch: this one's number and how many there are."""

    rank: int = 0
    size: int = 1


def join_world(device: torch.device) -> World:
    """This process's place among those started together; alone where none were.

    Joins the group on the first call when WORLD_SIZE names more than one process (`torchrun`, `accelerate launch`):
    NCCL between GPUs, else Gloo.
    """
    if not dist.is_available():
        return World()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or "RANK" not in os.environ:
            return World()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank=dist.get_rank(), size=dist.get_world_size())


def sum_numbers(values: Sequence[float], world: World, device: torch.device) -> list[float]:
    """Each value summed over all processes."""
    if world.size == 1:
        return list(values)
    wide = torch.float32 if device.type == "mps" else torch.float64
    together = torch.tensor(values, dtype=wide, device=device)
    dist.all_reduce(together)
    return [float(value) for value in together]


def sum_gradients(parameters: Sequence[torch.nn.Parameter], world: World) -> None:
    """Replace every gradient by its sum over all processes; a missing one counts as 0."""
    if world.size == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (
            bucket[0].dtype != parameter.grad.dtype
            or bucket[0].device != parameter.grad.device
            or sum(grad.numel() for grad in bucket) + parameter.grad.numel() > BUCKET_ELEMENTS
        ):
            _sum_bucket(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
