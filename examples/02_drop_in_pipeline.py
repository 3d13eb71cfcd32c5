"""python examples/02_drop_in_pipeline.py OUT.png

A pipeline's own class, but it keeps the best of many. `best_of_n` wraps a pipeline of any family that is loaded already
and shares its weights. Runs offline on the embedded model.
"""

import sys

from sp_rerank import best_of_n, load_pipeline, load_scorer


def main(path: str) -> None:
    pipe = best_of_n(load_pipeline("mini"), scorer=load_scorer("clip-mini"))
    pipe.set_progress_bar_config(disable=True)
    out = pipe("a penguin in the snow", num_inference_steps=16, guidance_scale=4.0, num_candidates=20, top_k=4, seed=0)
    for seed, score in zip(out.seeds, out.scores, strict=True):
        print(f"seed {seed:2}  {score:.4f}")
    out.images[0].resize((256, 256)).save(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
