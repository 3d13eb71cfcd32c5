"""What makes a run this run and no other: its arguments checked, its configuration laid down.

Knows models, schedules and ranges. Makes nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.diffusion import loading, prompt_limits
from sp_rerank.errors import UsageError
from sp_rerank.search import schedule
from sp_rerank.stats import stopping

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)

MAX_SEED = 2**63 - 1


def configure(
    prompt: str,
    *,
    pipe: Any,
    scorer: Scorer,
    also: Sequence[Scorer] = (),
    n: int = 100,
    top_k: int = 4,
    seed: int = 0,
    batch_size: int | None = None,
    search: str | Path = "exhaustive",
    record: bool = False,
    until: str | None = None,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    height: int | None = None,
    width: int | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """What makes a run this run and no other: run.json without its schema.

    Device, precision, batch size and versions are part of it: with any of them changed the pixels change.

    Args:
        prompt: what the images should show.
        pipe: makes them.
        scorer: ranks them.
        also: other scorers, whose scores are kept beside.
        n: number of candidates.
        top_k: how many will be kept; a search never lets go of more than that.
        seed: candidate i has the seed `seed + i`.
        batch_size: images made at once; None, like the next two, takes what suits the model and the device.
        search: how the budget is spent: "exhaustive", "fast", "steering" (other images than the seeds alone would
            make), or a schedule file from `sp-rerank plan`.
        record: make and score every candidate at every draft and preview too, for `sp-rerank plan`.
        until: end an exhaustive search when no other candidate is expected to win, such as "p>0.9"; see
            `sp_rerank.stats.stopping.confidence`.
        max_evaluations: end an exhaustive search before it spends more evaluations of the denoiser; batches are cut to
            the budget, and the first is made in any case.
        max_seconds: end an exhaustive search with the batch in which they are over, counted by each call anew.
        steps: of the scheduler.
        guidance_scale: of classifier-free guidance.
        negative_prompt: what the images should not show.
        height: in pixels; None takes the model's own.
        width: in pixels.
        strict: refuse a prompt that the model or the scorer cannot read to its end, instead of a warning.

    Raises:
        UsageError: if an argument is out of its range, or the prompt is too long with `strict`.
    """
    check_arguments(
        prompt, n=n, top_k=top_k, seed=seed, batch_size=batch_size, search=search, record=record, until=until,
        max_evaluations=max_evaluations, max_seconds=max_seconds, steps=steps, guidance_scale=guidance_scale,
        negative_prompt=negative_prompt, height=height, width=width,
    )  # fmt: skip
    names = [scorer.name, *(one.name for one in also)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"the scorer {twice[0]} is given twice; expected other scorers with --also")
    suited_steps, suited_guidance, suited_batch = loading.default_settings(pipe)
    steps = steps or suited_steps
    if max_evaluations is not None and max_evaluations < steps:
        raise UsageError(f"--max-evaluations is {max_evaluations}; expected at least {steps}, for one candidate")
    trained = getattr(getattr(pipe.scheduler, "config", None), "num_train_timesteps", None)
    if trained and steps > trained:
        raise UsageError(f"--steps is {steps}; expected at most {trained}, the steps that the model was trained with")
    lost = [str(cut) for cut in prompt_limits.truncations(pipe, scorer, prompt)]
    if lost and strict:
        raise UsageError(f"the prompt is too long: {'; '.join(lost)}")
    for cut in lost:
        log.warning("%s", cut)
    model, revision = loading.origin_of(pipe)
    rules = {
        "until": until and stopping.parse_until(until),
        "max_evaluations": max_evaluations,
        "max_seconds": max_seconds,
    }
    rules = {name: value for name, value in rules.items() if value}
    plan = schedule.plan_for(search, n=n, top_k=top_k, steps=steps, model=model, scorer=scorer.name)
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt or "",
        "truncated": lost,
        "model": model,
        "revision": revision,
        "pipeline": type(pipe).__name__,
        "safety_checker": getattr(pipe, "safety_checker", None) is not None,
        "scorers": names,
        "search": schedule.recording(steps, model) if record else plan,
        **({"stop": rules} if rules else {}),
        "steps": steps,
        "guidance_scale": suited_guidance if guidance_scale is None else guidance_scale,
        "scheduler": type(pipe.scheduler).__name__,
        "height": height,
        "width": width,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "batch_size": min(n, batch_size or suited_batch, max(1, (max_evaluations or MAX_SEED) // steps)),
        "n": n,
        "seed": seed,
        "versions": {name: version(name) for name in ("sp-rerank", "torch", "diffusers", "transformers")},
    }


def check_arguments(
    prompt: str,
    *,
    n: int,
    top_k: int,
    seed: int,
    batch_size: int | None,
    search: str | Path,
    record: bool,
    until: str | None,
    max_evaluations: int | None,
    max_seconds: float | None,
    steps: int | None,
    guidance_scale: float | None,
    negative_prompt: str | None,
    height: int | None,
    width: int | None,
) -> None:
    """Refuse what cannot be meant, before anything is loaded.

    Raises:
        UsageError: naming the argument, what was expected and what came.
    """
    if not prompt.strip():
        raise UsageError("the prompt is empty; expected words that say what the image should show")
    for text in (prompt, negative_prompt or ""):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("a prompt holds bytes that are no UTF-8; expected text") from error
        if "\0" in text:
            raise UsageError("a prompt holds a NUL character; expected text")
    if n < 1:
        raise UsageError(f"--n is {n}; expected at least 1 candidate")
    if not 1 <= top_k <= n:
        raise UsageError(f"--top-k is {top_k}; expected 1 to {n}, the number of candidates")
    if not 0 <= seed <= MAX_SEED - n:
        raise UsageError(f"--seed is {seed}; expected 0 to {MAX_SEED - n}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}; expected at least 1")
    if steps is not None and steps < 1:
        raise UsageError(f"--steps is {steps}; expected at least 1")
    if guidance_scale is not None and not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise UsageError(f"--guidance-scale is {guidance_scale}; expected a number from 0")
    for side, pixels in (("height", height), ("width", width)):
        if pixels is not None and (pixels < 8 or pixels % 8):
            raise UsageError(f"--{side} is {pixels}; expected a multiple of 8 pixels")
    if search not in schedule.NAMES:
        schedule.read_schedule(Path(search))
    if record and search != schedule.EXHAUSTIVE:
        raise UsageError(f"--record makes every candidate with all steps; expected --search {schedule.EXHAUSTIVE}")
    if until is not None:
        stopping.parse_until(until)
    for name, most in (("--max-evaluations", max_evaluations), ("--max-seconds", max_seconds)):
        if most is not None and not (math.isfinite(most) and most > 0):
            raise UsageError(f"{name} is {most}; expected a number above 0")
    stops = any(rule is not None for rule in (until, max_evaluations, max_seconds))
    if stops and (record or search != schedule.EXHAUSTIVE):
        raise UsageError(
            "--until, --max-evaluations and --max-seconds end an exhaustive search; expected --search "
            f"{schedule.EXHAUSTIVE} without --record"
        )
