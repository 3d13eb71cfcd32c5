"""Which part of a list is this process's, and which accelerators: what SLURM, Kubernetes and torchrun say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sp_rerank.errors import OptionError

EXPECTED = "I/N with I from 0 to N-1, such as 0/16, or auto, or auto/N, where a scheduler says which"


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th row, from row `index` on."""

    index: int = 0
    count: int = 1


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """The shard of an option.

    Args:
        text: "I/N"; or "auto" for what the environment says: a SLURM array (SLURM_ARRAY_TASK_ID), torchrun and
            accelerate (RANK, WORLD_SIZE), several SLURM tasks (SLURM_PROCID, SLURM_NTASKS); or "auto/N", which an
            Indexed Job of Kubernetes needs, for that knows JOB_COMPLETION_INDEX alone.
        environment: Of the process.

    Raises:
        OptionError: If it is none, or the environment says nothing.
    """
    found = re.fullmatch(r"(\d{1,9}|auto)(?:/(\d{1,9}))?", text)
    if not found or (found[1] != "auto" and not found[2]):
        raise OptionError("shard", text, EXPECTED)
    index, count = (int(found[1]), None) if found[1] != "auto" else _from_environment(text, environment)
    count = int(found[2]) if found[2] else count
    if count is None:
        raise OptionError("shard", text, "auto/N: this scheduler does not say how many there are")
    if index >= count:
        raise OptionError("shard", f"{index}/{count}", EXPECTED)
    return Shard(index, count)


def _from_environment(text: str, environment: Mapping[str, str]) -> tuple[int, int | None]:
    def number(name: str, default: int | None = None) -> int | None:
        value = environment.get(name, "")
        return int(value) if value.isdigit() else default

    task = number("SLURM_ARRAY_TASK_ID")
    if task is not None:
        first, step = number("SLURM_ARRAY_TASK_MIN", 0) or 0, number("SLURM_ARRAY_TASK_STEP", 1) or 1
        return (task - first) // step, number("SLURM_ARRAY_TASK_COUNT")
    for index, count in (
        ("JOB_COMPLETION_INDEX", ""), ("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"),
    ):  # fmt: skip
        place = number(index)
        if place is not None:
            return place, number(count)
    raise OptionError("shard", text, "I/N: no scheduler says here which shard this is")


def accelerators(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names one by one; of a process that torchrun started, its own.

    NVIDIA's alone, and without asking torch, which takes seconds; on other accelerators say how many workers.
    """
    said = environment.get("CUDA_VISIBLE_DEVICES")
    folder = Path("/proc/driver/nvidia/gpus")
    if said is not None:
        found = [name for name in said.split(",") if name.strip() not in ("", "-1")]
    else:
        found = [str(number) for number, _ in enumerate(folder.iterdir())] if folder.is_dir() else []
    rank = environment.get("LOCAL_RANK", "")
    return [found[int(rank) % len(found)]] if found and rank.isdigit() else found


def processors() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
