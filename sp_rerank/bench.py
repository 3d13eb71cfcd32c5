"""Measures this machine: the ways to do one thing take turns in one run, and medians are compared.

Knows no verdict. The machine drifts; a ratio of neighbours does not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sp_rerank import models
from sp_rerank.scorers import resolve_sp

PROMPT = "a lemon wearing sunglasses on the beach"


def compare_generate(n: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Our whole command against (a) a plain loop and (b) a batched loop, each a process of its own, on the mini model.

    All three make n candidates on the CPU at the mini model's own steps, in the precision that `--dtype auto` takes,
    score them with the same scorer and save every image: start-up, loading and writing are in every figure.

    Args:
        n: candidates.
        rounds: of each way, in turn.
        say: told each figure as it comes.

    Returns:
        Seconds (median and all), ratios of neighbours (median), and our peak memory in MB.
    """
    with tempfile.TemporaryDirectory() as scratch:
        ways = {
            "sp-rerank": [
                sys.executable,
                "-m",
                "sp_rerank",
                "generate",
                PROMPT,
                "--model",
                "mini",
                "--device",
                "cpu",
                "--n",
                str(n),
            ],
            "plain loop": [sys.executable, "-c", _loop(n, 1, scratch)],
            "batched loop": [sys.executable, "-c", _loop(n, models.MODELS["mini"].cpu_batch, scratch)],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        memory: dict[str, float] = {}
        for turn in range(rounds):
            for way, command in ways.items():
                folder = ["--out", str(Path(scratch) / f"run{turn}")] if way == "sp-rerank" else []
                took, peak = _run([*command, *folder])
                memory[way] = max(peak, memory.get(way, 0))
                seconds[way].append(took)
                say(f"round {turn + 1} of {rounds}: {way}: {took:.1f} s, {peak:.0f} MB")
    ours = seconds["sp-rerank"]
    return {
        "candidates": n,
        **{f"{way}, median seconds": round(statistics.median(took), 2) for way, took in seconds.items()},
        "plain loop / sp-rerank": _ratio(seconds["plain loop"], ours),
        "batched loop / sp-rerank": _ratio(seconds["batched loop"], ours),
        "peak memory of sp-rerank, MB": round(memory["sp-rerank"]),
    }


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 2)


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command.

    Raises:
        RuntimeError: with what it printed, if it fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    if status:
        raise RuntimeError(f"{command[:4]} failed: {complaint.strip()[-2000:]}")
    return took, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def _loop(n: int, batch: int, folder: str) -> str:
    """A script that does the same with diffusers alone, `batch` images a call, scored as they come."""
    scorer, _ = resolve_sp("mini")
    return f"""
import torch
from diffusers import StableDiffusionPipeline
from sp_rerank import load_scorer
from sp_rerank.models import MINI, MODELS, find_dtype
model = MODELS["mini"]
pipe = StableDiffusionPipeline.from_pretrained(MINI, dtype=find_dtype("auto", "mini", "cpu"))
pipe.set_progress_bar_config(disable=True)
scorer = load_scorer({scorer!r})
scores, images = [], []
for first in range(0, {n}, {batch}):
    seeds = range(first, min(first + {batch}, {n}))
    made = pipe(
        {PROMPT!r}, num_images_per_prompt=len(seeds), num_inference_steps=model.steps,
        guidance_scale=model.guidance_scale, generator=[torch.Generator("cpu").manual_seed(s) for s in seeds],
    ).images
    scores += scorer.score({PROMPT!r}, made).tolist()
    images += made
for i, image in enumerate(images):
    image.save(f"{folder}/{{i}}.png")
"""
