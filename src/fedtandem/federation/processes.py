"""A run in several processes (`torchrun`, `accelerate launch`): all do the same, the first one's record counts."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from fedtandem.models.load import choose_device
from fedtandem.tuning.distributed import join_world, sum_numbers


@contextmanager
def run_folder(output: Path) -> Iterator[Path]:
    """Where this process keeps its run: `output` itself for the first, a throw-away copy of it for every other.

    All processes hold the same states, so they need not share files, and a resumed run begins everywhere from what
    the first one had committed. No process begins before all copies are made.
    """
    world = join_world(choose_device("auto"))
    if world.size == 1:
        yield output
        return
    if world.rank == 0:
        dist.barrier()
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="fedtandem-") as folder:
        own = Path(folder) / "run"
        if output.is_dir():
            shutil.copytree(output, own)
        dist.barrier()
        yield own


def is_first() -> bool:
    """Whether this process is the one that speaks; true where there is only one."""
    return join_world(choose_device("auto")).rank == 0


def of_the_first(data: bytes) -> bytes:
    """The first process's bytes, at every process; all give bytes of one length."""
    device = choose_device("auto")
    world = join_world(device)
    return bytes(
        int(byte) for byte in sum_numbers(data if world.rank == 0 else bytes(len(data)), world, device)
    )


def part() -> None:
    """End the group, where there is one; the last thing a program does."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
