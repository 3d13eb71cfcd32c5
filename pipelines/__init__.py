"""Diffusers pipelines that choose: the same classes that `custom_pipeline=` finds in this folder."""

from .pipeline import BestOfNPipelineOutput, StableDiffusionBestOfNPipeline

__all__ = ["BestOfNPipelineOutput", "StableDiffusionBestOfNPipeline"]
