"""Diffusers pipelines that choose: a class for each family of text-to-image pipelines, over one mixin.

    >>> from sp_rerank.pipelines import FluxBestOfNPipeline, best_of_n

The class of a family is the stock one's name with "BestOfN" before "Pipeline"; it is made when it is first asked for.
The folder is also what `custom_pipeline=` of diffusers takes, for Stable Diffusion.
"""

from typing import Any

from .families import best_of_n, class_named, stock_classes
from .mixin import BestOfNMixin
from .output import BestOfNPipelineOutput
from .pipeline import StableDiffusionBestOfNPipeline

__all__ = ["BestOfNMixin", "BestOfNPipelineOutput", "StableDiffusionBestOfNPipeline", "best_of_n"]


def __dir__() -> list[str]:
    return sorted({*globals(), *stock_classes()})


def __getattr__(name: str) -> Any:
    return class_named(name)
