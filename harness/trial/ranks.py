"""What the ranks of a trial tell each other: gradients, losses, when to stop, detections.

Each rank trains the same detector on its share of every batch (harness/data/loader.py, model/share.py), so one step of
all ranks is one step on the whole batch. There is no wrapper around the detector: gradients are added after the last
backward pass of a step, zeros where a rank has none, so a head without positives keeps nobody waiting and accumulation
costs no communication. Alone, everything here does nothing. `harness.system.launch` starts the processes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from model.share import Share, sharing

BUCKET_BYTES = 64 * 2**20  # of gradients that travel together
TIMEOUT = timedelta(minutes=30)  # the last resort: whoever started the ranks ends them when one of them is gone


@dataclass(eq=False)
class Ranks:
    """This process's place among those that train one trial."""

    rank: int = 0
    size: int = 1
    generator: torch.Generator | None = None  # of the random choices that all ranks make together

    @property
    def is_first(self) -> bool:
        """Does this one write, report and evaluate?"""
        return self.rank == 0

    def sharing(self, share: Share | None) -> AbstractContextManager[None]:
        """Within, the detector sees this share of a batch; None: all of it."""
        if share is None:
            return nullcontext()
        assert self.generator is not None, "call take_random_state first"
        return sharing(share, self.generator)

    # ---- random state -------------------------------------------------------------------------------------------

    def take_random_state(self, device: torch.device) -> None:
        """From here on all ranks choose at random what one process would choose from torch's random state."""
        if self.size > 1:
            self.generator = torch.Generator(device)
            self.generator.set_state(_random_state(device))

    def return_random_state(self) -> None:
        """Put torch's random state to where one process would have it, for a checkpoint that any number can resume."""
        if self.generator is not None:
            cuda = self.generator.device.type == "cuda"
            (torch.cuda.set_rng_state if cuda else torch.set_rng_state)(self.generator.get_state())

    def seed_own(self, seed: int, step: int) -> None:
        """What each rank draws by itself (dropout) follows from (seed, step, rank), so no state of it is kept."""
        if self.size > 1:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1)[0]))

    # ---- words ----------------------------------------------------------------------------------------------------

    def add(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over the ranks; all must have the same names."""
        if self.size == 1:
            return numbers
        values = torch.tensor(list(numbers.values()), dtype=torch.float64)
        distributed.all_reduce(values)
        return dict(zip(numbers, values.tolist(), strict=True))

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their sums over the ranks; where no rank has one there is none."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
        distributed.all_reduce(present)
        moved = [parameter for parameter, count in zip(trained, present.tolist(), strict=True) if count]
        for bucket in _buckets(moved):
            flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in bucket])
            distributed.all_reduce(flat)
            for parameter, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = piece.view_as(parameter)

    def any(self, flag: bool) -> bool:
        """Is it true of any rank? All must ask at the same point."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return bool(value)

    def gather(self, items: Any) -> list[Any]:
        """What every rank has, in their order; at all but the first an empty list."""
        if self.size == 1:
            return [items]
        found: list[Any] = [None] * self.size if self.is_first else []
        distributed.gather_object(items, found if self.is_first else None)
        return found

    def wait(self) -> None:
        """Until every rank is here."""
        self.any(False)

    def check_same(self, what: str, number: int) -> None:
        """Raise `RuntimeError` where ranks differ."""
        if self.any(any(other != number for other in self.gather(number))):
            raise RuntimeError(f"ranks disagree about {what}; rank {self.rank} has {number}")


ALONE = Ranks()


def _buckets(parameters: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one type, up to `BUCKET_BYTES` or a single one."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        own = parameter.numel() * parameter.element_size()
        if bucket and (size + own > BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += own
    if bucket:
        yield bucket


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def join(rank: int, size: int, meeting_file: str, device: torch.device) -> Ranks:
    """Meet the other ranks, all on this machine.

    NCCL moves what lies on GPUs where each rank has its own, gloo the rest. They meet in a file and talk over the
    loopback interface, so no port has to be chosen and nothing can be reached from outside.
    """
    if size == 1:
        return ALONE
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    own_gpus = device.type == "cuda" and torch.cuda.device_count() >= size and distributed.is_nccl_available()
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if own_gpus else "gloo",
        init_method=f"file://{meeting_file}",
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    return Ranks(rank, size)
