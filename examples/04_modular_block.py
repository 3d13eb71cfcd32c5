"""python examples/04_modular_block.py OUT.png

Modular Diffusers: a block makes candidates, the block behind it scores them and keeps the best. `KeepBestStep` runs
behind the blocks of any model; the embedded one has none of its own in diffusers, so the first block here wraps its
pipeline. Runs offline.
"""

import sys

import torch
from diffusers import StableDiffusionPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

from sp_rerank import load_pipeline, load_scorer
from sp_rerank.pipelines.block import KeepBestStep


class CandidatesStep(ModularPipelineBlocks):
    """Makes an image of the prompt from each seed."""

    model_name = "stable-diffusion"
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec(name) for name in self.names]

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("prompt", required=True), InputParam("seeds", required=True)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("images", description="A PIL image for each seed")]

    def __call__(self, components, state):
        block = self.get_block_state(state)
        parts = {name: getattr(components, name) for name in self.names}
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        pipe.set_progress_bar_config(disable=True)
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in block.seeds]
        block.images = pipe(
            block.prompt, num_images_per_prompt=len(noise), generator=noise, num_inference_steps=16, guidance_scale=4.0
        ).images
        self.set_block_state(state, block)
        return components, state


def main(path: str) -> None:
    blocks = SequentialPipelineBlocks.from_blocks_dict({"candidates": CandidatesStep(), "best": KeepBestStep()})
    pipeline = blocks.init_pipeline()
    model = load_pipeline("mini")
    parts = {name: model.components[name] for name in CandidatesStep.names}
    pipeline.update_components(**parts, scorer=load_scorer("clip-mini"))
    seeds = list(range(20))
    out = pipeline(prompt="a penguin in the snow", seeds=seeds, top_k=4, output=["images", "scores", "indices"])
    for index, score in zip(out["indices"], out["scores"], strict=True):
        print(f"seed {seeds[index]:2}  {score:.4f}")
    out["images"][0].resize((256, 256)).save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
