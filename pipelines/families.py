"""A class that chooses for each family of diffusers' text-to-image pipelines, made when it is first asked for.

Knows which pipelines diffusers has, and what they lack. Knows nothing of how one is called.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
from diffusers import DiffusionPipeline

from sp_rerank.diffusion.call_arguments import lacks
from sp_rerank.errors import UsageError
from sp_rerank.pipelines.mixin import BestOfNMixin
from sp_rerank.pipelines.pipeline import StableDiffusionBestOfNPipeline
from sp_rerank.types import Scorer

SUFFIX = "BestOfNPipeline"
"""In place of "Pipeline" at the end of the stock class's name."""


@functools.cache
def stock_classes() -> dict[str, Any]:
    """The text-to-image pipelines of the installed diffusers that have a class here, by the name of that class."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    kinds = {kind for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() if not lacks(kind.__call__)}
    return {_name_for(kind): kind for kind in sorted(kinds, key=lambda kind: kind.__name__)}


def _name_for(stock: type) -> str:
    return stock.__name__.removesuffix("Pipeline") + SUFFIX


@functools.cache
def class_named(name: str) -> Any:
    """The class of a name such as "FluxBestOfNPipeline"; the same one each time.

    Raises:
        AttributeError: If there is none.
    """
    if name == StableDiffusionBestOfNPipeline.__name__:
        return StableDiffusionBestOfNPipeline
    if name not in stock_classes():
        raise AttributeError(f"module 'sp_rerank.pipelines' has no attribute {name!r}")
    stock = stock_classes()[name]
    text = (
        f"`{stock.__name__}` of diffusers that makes `num_candidates` images for a prompt, scores them, and returns "
        "the best; see `BestOfNMixin`."
    )
    return type(name, (BestOfNMixin, stock), {"__doc__": text, "__module__": "sp_rerank.pipelines"})


def best_of_n(pipe: DiffusionPipeline, *, scorer: Scorer | None = None, **components: Any) -> Any:
    """A pipeline that chooses, of the family of a given one, whose weights it shares.

    Args:
        pipe: A text-to-image pipeline of diffusers, loaded. It stays as it is, and goes on sharing its modules.
        scorer: Ranks the candidates; from `sp_rerank.load_scorer` or your own.
        **components: Components that take the place of the pipeline's own.

    Returns:
        A pipeline with the components and the arguments of the given one, and those of `BestOfNMixin`.

    Raises:
        UsageError: If there is no class for this family.

    Example:
        >>> pipe = best_of_n(FluxPipeline.from_pretrained(...), scorer=load_scorer("clip-mini"))
        >>> pipe("a lemon", num_candidates=20, seed=0).images[0].save("best.png")
    """
    if isinstance(pipe, BestOfNMixin):
        return type(pipe).from_pipe(pipe, **({"scorer": scorer} if scorer is not None else {}), **components)
    stock = getattr(diffusers, type(pipe).__name__, None)
    name = _name_for(type(pipe))
    if stock is None or not isinstance(pipe, stock) or name not in stock_classes():
        raise UsageError(
            f"{type(pipe).__name__} has no class that chooses; expected a text-to-image pipeline of diffusers such as "
            "StableDiffusionXLPipeline or FluxPipeline; for another one sp_rerank.generate(prompt, pipe=pipe, "
            "scorer=scorer) takes any that makes images of a prompt from seeds"
        )
    return class_named(name).from_pipe(pipe, scorer=scorer, **components)
