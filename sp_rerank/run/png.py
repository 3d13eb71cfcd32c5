"""A candidate as a PNG file that tells how it was made, to other tools and to this one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sp_rerank.config import RunConfig
from sp_rerank.config.samplers import a1111_name
from sp_rerank.storage import images

if TYPE_CHECKING:
    from sp_rerank.run.records import StageScore
    from sp_rerank.run.state import Finished
    from sp_rerank.types import Candidate


def to_png(candidate: Candidate, config: RunConfig, more: Mapping[str, Any]) -> bytes:
    """A finished candidate as a file.

    Args:
        candidate: Whose image it is.
        config: Of its run; complete, as `generate` makes it.
        more: Goes into our own record beside prompt, model, index and seed; other tools read its "strength" too.
    """
    parameters = images.a1111_parameters(
        prompt=config.prompt,
        negative_prompt=config.negative_prompt,
        steps=config.steps,
        sampler=a1111_name(config.scheduler),
        guidance_scale=config.guidance_scale,
        seed=config.seed + candidate.index,
        size=candidate.image.size,
        model=config.model,
    )
    if "strength" in more:  # as AUTOMATIC1111 calls that of an image made from an image
        parameters += f", Denoising strength: {more['strength']:g}"
    return images.encode(candidate.image, parameters=parameters, record={**_origin(candidate, config), **more})


def to_finished_png(made: Finished, config: RunConfig) -> bytes:
    """A finished candidate as a file that holds its scores; those that are not finite are null."""
    scores = {name: score if math.isfinite(score) else None for name, score in made.scores.items()}
    return to_png(made.candidate, config, {"scores": scores})


def to_stage_png(candidate: Candidate, config: RunConfig, seen: StageScore) -> bytes:
    """What a search saw as a file; other tools get the prompt alone, for the run's own steps did not make it."""
    record = {**_origin(candidate, config), "stage": seen.stage.label, "score": seen.score}
    return images.encode(candidate.image, parameters=config.prompt, record=record)


def _origin(candidate: Candidate, config: RunConfig) -> dict[str, Any]:
    return {"prompt": config.prompt, "model": config.model, "index": candidate.index, "seed": candidate.seed}
