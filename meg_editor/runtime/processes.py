"""Processes of `accelerate launch` or `torchrun` which fit one model together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

T = TypeVar("T")
_TIMEOUT = timedelta(days=7)


class Processes:
    """Collective operations of the processes of a fit; all call the same ones in the same order.

    Attributes:
        rank: index of this process, from 0.
        count: number of processes; 1 without `accelerate launch`.

    Example:
        >>> processes = Processes()
        >>> processes.once(lambda: 3), processes.each(lambda: [1, 2])
        (3, [1, 2])
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @classmethod
    def launched(cls, device: str = "auto") -> Processes:
        """Processes of this launch: gloo on CPUs, NCCL on GPUs.

        Args:
            device: "cpu" takes gloo even if there is a GPU.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls()
        cpu = device == "cpu" or not torch.cuda.is_available()
        # The others wait while one calibrates, for longer than NCCL's default of 10 minutes.
        state = PartialState(cpu=cpu, timeout=_TIMEOUT)
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def once(self, compute: Callable[[], T]) -> T:
        """`compute()` in the main process; all get its result, or its error."""
        if self.count == 1:
            return compute()
        outcome: list[Any] = [None, None]  # result, error
        if self.is_main:
            try:
                outcome[0] = compute()
            except Exception as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def each(self, compute: Callable[[], Sequence[T]]) -> list[T]:
        """Results of `compute()` of all processes, in the order of ranks; each gets all of them.

        An error in one process is raised in all.
        """
        if self.count == 1:
            return list(compute())
        results: list[Any]
        try:
            results = list(compute())
        except Exception as error:
            results = [error]
        gathered = gather_object(results)
        for item in gathered:
            if isinstance(item, Exception):
                raise item
        return list(gathered)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """All-reduce (sum) of tensors, in place."""
        if self.count > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one message, not many
            torch.distributed.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(
                list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)]
            )
