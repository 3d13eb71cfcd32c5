"""A run against loops of diffusers alone, each in a process of its own, with start-up told apart.

Every process makes the same candidates in the same precision, scores them with the same scorer and saves every image.
Figures are CPU seconds of all threads of a process on a CPU, and seconds that passed on an accelerator.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from sp_rerank.diagnostics.timing import PROMPT, ratio
from sp_rerank.diffusion import loading
from sp_rerank.scorers import resolve_sp

OURS, FAST, PLAIN, BATCHED, COMPILED = "sp-rerank", "sp-rerank, fast", "plain loop", "batched loop", "compiled loop"
WAYS = (OURS, FAST, PLAIN, BATCHED, COMPILED)


def compare_generate(
    n: int, rounds: int, progress: Callable[[str], None], *, model: str = "mini", device: str = "cpu"
) -> dict[str, Any]:
    """Our run, and one with the search "fast", against a plain, a batched and a compiled loop.

    The compiled loop is the batched one with `torch.compile` of its denoiser; compiling is start-up. Where there is no
    compiler it is left out.

    Args:
        n: Number of candidates.
        rounds: How often each way is measured, in turn.
        progress: Called with a line for each figure as it comes.
        model: As in `loading.find_model`.
        device: Where all of them compute.

    Returns:
        Of each way start-up and milliseconds a candidate without it (medians), ratios of neighbors (medians), our peak
        memory in MB, and what `sp_rerank.diagnostics.utilization` says of one of our runs.
    """
    found: dict[str, list[Mapping[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(rounds):
            for way in list(found):
                try:
                    one = _measured(script_of(way, n, model, device, f"{scratch}/{turn}-{WAYS.index(way)}"))
                except RuntimeError as error:
                    if way != COMPILED:
                        raise
                    del found[way]
                    progress(f"{way}: left out, {str(error).splitlines()[-1]}")
                    continue
                found[way].append(one)
                figures = f"start-up {one['startup']:.1f} s, then {1000 * one['work'] / n:.0f} ms a candidate"
                progress(f"round {turn + 1} of {rounds}: {way}: {figures}")
    work = {way: [one["work"] for one in figures] for way, figures in found.items()}
    pairs = [(PLAIN, OURS), (BATCHED, OURS), (COMPILED, OURS), (COMPILED, FAST)]
    return {
        "candidates": n,
        **{
            f"{way}, start-up in seconds": round(statistics.median(one["startup"] for one in figures), 1)
            for way, figures in found.items()
        },
        **{
            f"{way}, ms a candidate without it": round(1000 * statistics.median(took) / n, 1)
            for way, took in work.items()
        },
        **{f"{theirs} / {ours}": ratio(work[theirs], work[ours]) for theirs, ours in pairs if theirs in work},
        "peak memory of sp-rerank, MB": round(max(one["peak"] for one in found[OURS])),
        **{name: round(statistics.median(one[name] for one in found[OURS]), 3) for name in found[OURS][0]["shown"]},
    }


def _measured(script: str) -> dict[str, Any]:
    """What a script prints in its last line, as JSON.

    Raises:
        RuntimeError: With what it complained of, if it fails.
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a measured process failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def script_of(way: str, n: int, model: str, device: str, folder: str) -> str:
    """A program that makes n candidates in one way and prints its figures."""
    _, _, batch = _settings(model, device)
    if way in (OURS, FAST):
        body = _OURS.format(n=n, search="fast" if way == FAST else "exhaustive", batch=batch)
    else:
        size = 1 if way == PLAIN else batch
        body = _LOOP.format(n=n, size=size, compiled=_COMPILED.format(size=size) if way == COMPILED else "")
    steps, guidance, _ = _settings(model, device)
    scorer = resolve_sp(model)[0]
    head = _HEAD.format(
        prompt=PROMPT, model=model, device=device, steps=steps, guidance=guidance, scorer=scorer, folder=folder
    )
    return head + body + _TAIL


def _settings(model: str, device: str) -> tuple[int, float, int]:
    """Steps, guidance scale and batch size of a model that is known."""
    known = loading.MODELS[model]
    return known.steps, known.guidance_scale, known.cpu_batch if device == "cpu" else loading.ACCELERATOR_BATCH


_HEAD = """
import json, time
from pathlib import Path
clock = time.process_time if {device!r} == "cpu" else time.perf_counter
import torch
from sp_rerank import load_pipeline, load_scorer
from sp_rerank.diagnostics.timing import peak_memory
from sp_rerank.diffusion.loading import find_dtype
folder, figures, before = Path({folder!r}), {{"shown": []}}, clock()
began = 0 if {device!r} == "cpu" else before
pipe = load_pipeline({model!r}, device={device!r}, dtype=find_dtype("auto", {model!r}, {device!r}))
scorer = load_scorer({scorer!r}, device={device!r})
arguments = dict(num_inference_steps={steps}, guidance_scale={guidance})
PROMPT = {prompt!r}
"""

_OURS = """
from sp_rerank import generate
from sp_rerank.diagnostics.utilization import Watch
loaded, watch = clock(), Watch(pipe)
generate(PROMPT, pipe=pipe, scorer=scorer, n={n}, batch_size={batch}, search={search!r}, out=folder)
done = clock()
shares = watch.shares()
figures |= shares | {{"shown": list(shares)}}
"""

_LOOP = """
folder.mkdir()
def make(seeds):
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return pipe(PROMPT, num_images_per_prompt=len(generators), generator=generators, **arguments).images
{compiled}
loaded = clock()
scores = []
for first in range(0, {n}, {size}):
    made = make(range(first, min(first + {size}, {n})))
    scores += scorer.score(PROMPT, made).tolist()
    for number, image in enumerate(made, first):
        image.save(folder / f"{{number}}.png")
done = clock()
"""

_COMPILED = """
plain = pipe.unet.forward
fast = torch.compile(plain, dynamic=False)
whole = 2 * {size}
pipe.unet.forward = lambda latents, *rest, **more: (fast if len(latents) == whole else plain)(latents, *rest, **more)
arguments["num_inference_steps"], steps = 2, arguments["num_inference_steps"]
make(range({size}))
arguments["num_inference_steps"] = steps
"""

_TAIL = """
print(json.dumps({"startup": loaded - began, "work": done - loaded, "peak": peak_memory(), **figures}))
"""
