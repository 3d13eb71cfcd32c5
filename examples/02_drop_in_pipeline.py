"""python examples/02_drop_in_pipeline.py OUT.png

Stable Diffusion's own pipeline, but it keeps the best of many. `from_pipe` wraps a pipeline that is loaded already and
shares its weights. Runs offline on the embedded model.
"""

import sys

from sp_rerank import StableDiffusionBestOfNPipeline, load_pipeline, load_scorer


def main(path: str) -> None:
    pipe = StableDiffusionBestOfNPipeline.from_pipe(load_pipeline("mini"), scorer=load_scorer("clip-mini"))
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a penguin in the snow", num_inference_steps=16, guidance_scale=4.0, num_candidates=20, top_k=4, seed=0)
    for seed, score in zip(out.seeds, out.scores, strict=True):
        print(f"seed {seed:2}  {score:.4f}")
    out.images[0].resize((256, 256)).save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
