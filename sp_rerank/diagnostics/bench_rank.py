"""How fast image files come to a scorer that costs nothing: read by one thread and by as many as there are CPUs.

Knows `rank_files` and image files; knows nothing of networks.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sp_rerank.diagnostics.bench_host import FreeScorer
from sp_rerank.diagnostics.timing import PROMPT, peak_memory, ratio
from sp_rerank.rank import rank_files
from sp_rerank.storage.read_ahead import reader_count

SIDE, SMALL_SIDE = 512, 128  # pixels of an image, where speed and where memory is measured
KINDS = 16  # different images; each of the files is one of them
MANY = (500, 8000)  # files, between which memory should not grow


def compare_rank(n: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Ranking n PNG files of 512 pixels with one reading thread and with one a CPU, and the memory of many small ones.

    Args:
        n: Number of files.
        rounds: How often each way is measured, in turn, after one round that is not counted.
        progress: Called with a line for each figure as it comes.

    Returns:
        Images a second (median), the ratio of neighbors (median), and peak memory in MB of two numbers of files.
    """
    ways = {"one thread": 1, f"{reader_count()} threads": reader_count()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        files = make_files(Path(scratch) / "large", n, SIDE)
        for turn in range(rounds + 1):
            for way, readers in ways.items():
                began = time.perf_counter()
                rank_files([FreeScorer()], PROMPT, files, readers=readers)
                took = time.perf_counter() - began
                progress(f"round {turn} of {rounds}: {way}: {n / took:.0f} images/s{'' if turn else ', not counted'}")
                seconds[way] += [took] if turn else []
        make_files(Path(scratch) / "small", max(MANY), SMALL_SIDE)
        memory = {count: _peak_of(Path(scratch) / "small", count) for count in MANY}
    one, several = seconds.values()
    return {
        "images": n,
        **{f"{way}, images a second": round(n / statistics.median(took)) for way, took in seconds.items()},
        "one thread / as many as CPUs": ratio(one, several),
        **{f"peak memory of {count} files, MB": round(peak) for count, peak in memory.items()},
    }


def make_files(folder: Path, count: int, side: int) -> list[Path]:
    """PNG files of noise on a smooth picture, which take as long to decode as those of a diffusion model."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    noise = np.random.default_rng(0)
    files = [folder / f"{number:05d}.png" for number in range(count)]
    for number, file in enumerate(files):
        if number >= KINDS:
            os.link(files[number % KINDS], file)
            continue
        coarse = Image.fromarray(noise.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side))
        pixels = np.asarray(coarse, np.int16) + noise.integers(-6, 7, (side, side, 3), np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
    return files


def _peak_of(folder: Path, count: int) -> float:
    """Peak memory in MB of a process that ranks so many files and does nothing else."""
    code = f"from sp_rerank.diagnostics.bench_rank import peak; print(peak({str(folder)!r}, {count}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ranking {count} files failed: {done.stderr.strip()[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def peak(folder: str, count: int) -> float:
    """Rank so many files of a folder, and the peak memory of this process in MB."""
    rank_files([FreeScorer()], PROMPT, sorted(Path(folder).iterdir())[:count])
    return peak_memory()
