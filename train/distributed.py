"""What several training processes tell each other; with one process all of it is the identity."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, parse_flag_from_env, reduce
from torch import Tensor


def current() -> PartialState:
    """This process among those that `accelerate launch` started, and its device; they are connected by the first call.

    Without an accelerator processes meet over gloo, which accelerate has to be asked for.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def device() -> torch.device:
    """Where this process computes."""
    found = current().device
    assert found is not None  # it is for a moment only, while accelerate finds it
    return found


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    total: Any = reduce(tensor, "sum")
    return total


def leave_together() -> None:
    """End at the same time: a process that ends can break the last message of one that is slower (seen over gloo).

    None goes on before all have come here. Whether the others have left when it does is of no matter any more.
    """
    with suppress(RuntimeError):
        current().wait_for_everyone()


def any_process(here: bool) -> bool:
    """Whether it is so in any process."""
    return bool(summed(torch.tensor(float(here), device=device())) > 0)


def gathered(rows: Tensor, slots: int) -> Tensor:
    """The rows of all processes, in the order of the processes, without a gradient.

    Args:
        rows: (p, c) floats; p may differ between processes.
        slots: at least the largest p.
    """
    rows = rows.detach()
    if current().num_processes == 1:
        return rows
    padded = rows.new_zeros(slots, rows.shape[1] + 1)
    padded[: len(rows)] = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    global_batch: Any = gather(padded)
    return global_batch[global_batch[:, -1] == 1, :-1]
