"""What every bench shares: ratios of neighbors, processes timed to their end, the peak of a process's memory.

The ways to do one thing take turns, and medians are compared: the machine's speed drifts, the ratio of neighboring
measurements does not. Returns figures and judges nothing.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROMPT = "a lemon wearing sunglasses on the beach"


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median of the ratios of neighbors: above 1 where theirs takes longer."""
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2)


def timed_process(command: Sequence[str]) -> tuple[float, float]:
    """Run a command to its end: seconds, and peak memory in MB, which counts from what this process has at the start.

    Raises:
        RuntimeError: with what it printed, if it fails.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        complaint = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[:4]} failed: {complaint.strip()[-2000:]}")
    return took, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what `getrusage` says of a child counts from what its parent had
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
