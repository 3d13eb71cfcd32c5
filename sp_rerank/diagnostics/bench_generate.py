"""The whole command against loops of diffusers alone, each a process of its own, on the mini model."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sp_rerank.diagnostics.timing import PROMPT, ratio, timed_process
from sp_rerank.diffusion import loading
from sp_rerank.scorers import resolve_sp


def compare_generate(n: int, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Our whole command against (a) a plain loop and (b) a batched loop, each a process of its own, on the mini model.

    All three make n candidates on the CPU at the mini model's own steps, in the precision that `--dtype auto` takes,
    score them with the same scorer and save every image: start-up, loading and writing are in every figure.

    Args:
        n: Number of candidates.
        rounds: How often each way is measured, in turn.
        progress: Called with a line for each figure as it comes.

    Returns:
        Seconds (median and all), ratios of neighbors (median), and our peak memory in MB.
    """
    with tempfile.TemporaryDirectory() as scratch:
        ways = {
            "sp-rerank": [
                *[sys.executable, "-m", "sp_rerank", "generate", PROMPT],
                *["--model", "mini", "--device", "cpu", "--n", str(n)],
            ],
            "plain loop": [sys.executable, "-c", _loop(n, 1, scratch)],
            "batched loop": [sys.executable, "-c", _loop(n, loading.MODELS["mini"].cpu_batch, scratch)],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        memory: dict[str, float] = {}
        for turn in range(rounds):
            for way, command in ways.items():
                folder = ["--out", str(Path(scratch) / f"run{turn}")] if way == "sp-rerank" else []
                took, peak = timed_process([*command, *folder])
                memory[way] = max(peak, memory.get(way, 0))
                seconds[way].append(took)
                progress(f"round {turn + 1} of {rounds}: {way}: {took:.1f} s, {peak:.0f} MB")
    ours = seconds["sp-rerank"]
    return {
        "candidates": n,
        **{f"{way}, median seconds": round(statistics.median(took), 2) for way, took in seconds.items()},
        "plain loop / sp-rerank": ratio(seconds["plain loop"], ours),
        "batched loop / sp-rerank": ratio(seconds["batched loop"], ours),
        "peak memory of sp-rerank, MB": round(memory["sp-rerank"]),
    }


def _loop(n: int, batch: int, folder: str) -> str:
    """A script that does the same with diffusers alone, `batch` images a call, scored as they come."""
    scorer, _ = resolve_sp("mini")
    return f"""
import torch
from diffusers import StableDiffusionPipeline
from sp_rerank import load_scorer
from sp_rerank.diffusion.loading import MINI, MODELS, find_dtype
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
