"""sp-rerank: make N candidates for a prompt, rank them with a model of human preference, keep the best.

Importing this imports no torch; each public name loads its module when it is first used.

    >>> from sp_rerank import generate, load_pipeline, load_scorer
    >>> best = generate("a lemon", pipe=load_pipeline("mini"), scorer=load_scorer("clip-mini"), n=20)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Modules that bear the name of their function: imported here, the name stays the function's for good.
from sp_rerank.compare.compare import compare
from sp_rerank.generate import generate
from sp_rerank.rank import rank
from sp_rerank.replay import replay

if TYPE_CHECKING:
    from sp_rerank.config import GenerationOptions
    from sp_rerank.diffusion.loading import load_pipeline
    from sp_rerank.errors import (
        FolderBusyError,
        HubUnavailableError,
        NothingUsableError,
        OptionError,
        SpRerankError,
        StorageError,
        TryAgainError,
        UnreadableImageError,
        UsageError,
    )
    from sp_rerank.pipelines import StableDiffusionBestOfNPipeline, best_of_n
    from sp_rerank.run.folder import RunDir
    from sp_rerank.run.summary import RunResult
    from sp_rerank.scorers import load_scorer
    from sp_rerank.scorers.check import check_scorer
    from sp_rerank.scorers.reward import as_reward_fn
    from sp_rerank.storage.image_files import find_images
    from sp_rerank.storage.images import open_image
    from sp_rerank.types import Candidate, Ranked, Scorer

_HOME = {
    "Candidate": "types",
    "FolderBusyError": "errors",
    "GenerationOptions": "config",
    "HubUnavailableError": "errors",
    "NothingUsableError": "errors",
    "OptionError": "errors",
    "Ranked": "types",
    "RunDir": "run.folder",
    "RunResult": "run.summary",
    "Scorer": "types",
    "SpRerankError": "errors",
    "StableDiffusionBestOfNPipeline": "pipelines",
    "StorageError": "errors",
    "TryAgainError": "errors",
    "UnreadableImageError": "errors",
    "UsageError": "errors",
    "as_reward_fn": "scorers.reward",
    "best_of_n": "pipelines",
    "check_scorer": "scorers.check",
    "find_images": "storage.image_files",
    "load_pipeline": "diffusion.loading",
    "load_scorer": "scorers",
    "open_image": "storage.images",
}

__all__ = [
    "Candidate",
    "FolderBusyError",
    "GenerationOptions",
    "HubUnavailableError",
    "NothingUsableError",
    "OptionError",
    "Ranked",
    "RunDir",
    "RunResult",
    "Scorer",
    "SpRerankError",
    "StableDiffusionBestOfNPipeline",
    "StorageError",
    "TryAgainError",
    "UnreadableImageError",
    "UsageError",
    "as_reward_fn",
    "best_of_n",
    "check_scorer",
    "compare",
    "find_images",
    "generate",
    "load_pipeline",
    "load_scorer",
    "open_image",
    "rank",
    "replay",
]


def __dir__() -> list[str]:
    """The public names alone: what a notebook or an editor offers after `sp_rerank.`"""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sp_rerank' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"sp_rerank.{_HOME[name]}"), name)
    return value
