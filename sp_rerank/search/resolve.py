"""What is asked + models -> the run: everything that decides its pixels, laid down in one place. Makes no image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sp_rerank.config import EXHAUSTIVE, PROMPT, GenerationOptions, RunConfig
from sp_rerank.config.rules import MAX_CANDIDATES
from sp_rerank.diffusion import loading, placement, prompt_limits
from sp_rerank.diffusion.call_arguments import parameters_of
from sp_rerank.diffusion.compiling import is_compiled
from sp_rerank.diffusion.spacing import takes_time_steps
from sp_rerank.errors import OptionError, UsageError
from sp_rerank.scorers.ensemble import MeanRank
from sp_rerank.scorers.scoring import name_of
from sp_rerank.search.schedule import RunShape, plan_for

if TYPE_CHECKING:
    from sp_rerank.types import Scorer

log = logging.getLogger(__name__)


def resolve(
    prompt: str, options: GenerationOptions, *, pipe: Any, scorer: Scorer, also: Sequence[Scorer] = ()
) -> RunConfig:
    """The run that options and models make: everything that decides its pixels.

    Raises:
        OptionError: If the prompt is empty, or an option does not fit the models.
        UsageError: If the models do not fit what is asked, or the prompt is too long with `strict`.
    """
    if not PROMPT.holds(prompt):
        raise OptionError("prompt", prompt, PROMPT.expected)
    names = [name_of(entry) for entry in (scorer, *also)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError("also", twice[0], "other scorers than the one that ranks, each once")
    if isinstance(scorer, MeanRank) and (options.search != EXHAUSTIVE or options.record):
        raise OptionError(
            "search", str(options.search), f"{EXHAUSTIVE} and no recording: a mean of ranks needs all candidates; take "
            "one scorer, or weights",
        )  # fmt: skip
    suited_steps, suited_guidance, suited_batch = loading.default_settings(pipe)
    steps = options.steps or suited_steps
    if options.max_evaluations is not None and options.max_evaluations < steps:
        raise OptionError("max_evaluations", options.max_evaluations, f"at least {steps}, for one candidate")
    trained = getattr(getattr(pipe.scheduler, "config", None), "num_train_timesteps", None)
    if trained and steps > trained:
        raise OptionError("steps", steps, f"at most {trained}, the steps that the model was trained with")
    lost = prompt_limits.truncations(pipe, scorer, prompt)
    if lost and options.strict:
        raise UsageError(f"the prompt is too long: {'; '.join(map(str, lost))}")
    for cut in lost:
        log.warning("%s", cut)
    model, revision = loading.origin_of(pipe)
    shape = RunShape(options.n, options.kept, steps, model, names[0], takes_time_steps(pipe, parameters_of(pipe)))
    affordable = max(1, options.max_evaluations // steps) if options.max_evaluations else MAX_CANDIDATES
    return RunConfig(
        prompt=prompt,
        negative_prompt=options.negative_prompt or "",
        truncated=tuple(cut.record for cut in lost),
        model=model,
        revision=revision,
        provenance=placement.provenance_of(pipe),
        pipeline=type(pipe).__name__,
        safety_checker=getattr(pipe, "safety_checker", None) is not None,
        scorers=tuple(names),
        search=plan_for(options.search, shape, record=options.record),
        stop=options.stop,
        steps=steps,
        guidance_scale=suited_guidance if options.guidance_scale is None else options.guidance_scale,
        scheduler=loading.scheduler_name(pipe),
        height=options.height,
        width=options.width,
        dtype=str(pipe.dtype).removeprefix("torch."),
        device=placement.device_of(pipe).type,
        compiled=is_compiled(pipe) or None,
        batch_size=min(options.batch_size or suited_batch, affordable),
        n=options.n,
        seed=options.seed,
        pipe_kwargs=options.pipeline_arguments,
        versions={name: version(name) for name in ("sp-rerank", "torch", "diffusers", "transformers")},
    )
