"""sp-rerank: make N candidates for a prompt, rank them with a model of human preference, keep the best.

Importing this imports no torch; each public name loads its module when it is first used.

    >>> from sp_rerank import generate, load_pipeline, load_scorer
    >>> best = generate("a lemon", pipe=load_pipeline("mini"), scorer=load_scorer("clip-mini"), n=20)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Modules that bear the name of their function: imported here, the name stays the function's for good.
from sp_rerank.generate import generate
from sp_rerank.rank import rank
from sp_rerank.replay import replay

if TYPE_CHECKING:
    from sp_rerank.diffusion.loading import load_pipeline
    from sp_rerank.pipelines import StableDiffusionBestOfNPipeline
    from sp_rerank.scorers import load_scorer
    from sp_rerank.scorers.check import check_scorer
    from sp_rerank.scorers.reward import as_reward_fn
    from sp_rerank.types import Candidate, Ranked, Scorer

_HOME = {
    "Candidate": "types",
    "Ranked": "types",
    "Scorer": "types",
    "StableDiffusionBestOfNPipeline": "pipelines",
    "as_reward_fn": "scorers.reward",
    "check_scorer": "scorers.check",
    "load_pipeline": "diffusion.loading",
    "load_scorer": "scorers",
}

__all__ = [
    "Candidate",
    "Ranked",
    "Scorer",
    "StableDiffusionBestOfNPipeline",
    "as_reward_fn",
    "check_scorer",
    "generate",
    "load_pipeline",
    "load_scorer",
    "rank",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sp_rerank' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"sp_rerank.{_HOME[name]}"), name)
    return value
