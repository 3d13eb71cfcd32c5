"""Stable Diffusion's drop-in, as the file that `custom_pipeline=` of diffusers takes; it needs the package sp-rerank.

diffusers copies the file elsewhere and runs it there, so imports are absolute, and it shows one pipeline class only.
"""

from diffusers import StableDiffusionPipeline

from sp_rerank.pipelines.mixin import BestOfNMixin


class StableDiffusionBestOfNPipeline(BestOfNMixin, StableDiffusionPipeline):
    """Stable Diffusion that makes `num_candidates` images for a prompt, scores them, and returns the best.

    It is `StableDiffusionPipeline` in every respect, bit for bit, until `num_candidates` is above 1. Arguments, output
    and errors beside the stock ones are those of `BestOfNMixin`.

    Example:
        >>> from sp_rerank import load_scorer
        >>> pipe = StableDiffusionBestOfNPipeline.from_pipe(existing_pipe, scorer=load_scorer("clip-mini"))
        >>> out = pipe("a lemon wearing sunglasses on the beach", num_candidates=100, top_k=4, seed=0)
        >>> out.images[0].save("best.png"); print(out.seeds[0], out.scores[0])
    """
