"""python -m sp_rerank.train.mini.experiments.precision [--prompts 100] [--n 100] [--steps 5] [--dtype bfloat16]

How often does clip-mini choose the same four of n candidates in half precision as in float32? Candidates are drafts of
the mini model for random captions, and both score the same images. Twelve minutes on two cores; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sp_rerank.diffusion import loading
from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.scorers import load_scorer, resolve_sp
from sp_rerank.train.mini.grammar import draw_description


def compare_precision(prompts: int, n: int, steps: int, dtype: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """How often a scorer in half precision chooses the four that it chooses in float32, on the mini world.

    Where the fours differ it is called a tie if each candidate that moved in is within the margin of the float32 score
    that it passed; the margin is twice the root mean square of what half precision changes.

    Args:
        prompts: Number of captions.
        n: Candidates of each, above 4.
        steps: Scheduler steps of each candidate.
        dtype: "bfloat16" or "float16".
        progress: Called with a line of text after every tenth prompt.
    """
    pipe = loading.load_pipeline("mini", dtype=loading.find_dtype("auto", "mini", loading.find_device()))
    name, _ = resolve_sp("mini")
    scorers = load_scorer(name), load_scorer(name, dtype=getattr(torch, dtype))
    rng, rows = random.Random(0), []
    for turn in range(prompts):
        caption = draw_description(rng).caption
        images = _draw(pipe, caption, range(turn * n, (turn + 1) * n), steps)
        rows.append(torch.stack([scorer.score(caption, images) for scorer in scorers]))
        if (turn + 1) % 10 == 0:
            progress(f"{turn + 1} of {prompts} prompts")
    return _compared(torch.stack(rows))


def _draw(pipe: Any, caption: str, seeds: range, steps: int) -> Tensor:
    guidance = loading.MODELS["mini"].guidance_scale
    sampler = Sampler(pipe, caption, batch_size=50, num_inference_steps=steps, guidance_scale=guidance)
    return torch.cat([batch.images for batch in sampler.batches(dict(enumerate(seeds)))]).float()


def _compared(scores: Tensor) -> dict[str, Any]:
    """What two precisions choose, out of (prompts, 2, n) scores."""
    margin = 2 * (scores[:, 0] - scores[:, 1]).square().mean().sqrt()
    chosen = [(set(full.topk(4).indices.tolist()), set(half.topk(4).indices.tolist())) for full, half in scores]
    same = [left == right for left, right in chosen]
    tied = [
        float(row[0][list(left - right)].max() - row[0][list(right - left)].min()) <= margin
        for row, (left, right) in zip(scores, chosen, strict=True)
        if left != right
    ]
    return {
        "prompts": len(scores),
        "candidates a prompt": scores.shape[-1],
        "the same four": sum(same),
        "another four, within a tie": sum(tied),
        "another four, beyond a tie": len(tied) - sum(tied),
        "the same first": int((scores[:, 0].argmax(-1) == scores[:, 1].argmax(-1)).sum()),
        "margin / spread of the scores": round(float(margin / scores[:, 0].std(dim=-1).mean()), 4),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--n", type=int, default=100, help="candidates of each prompt")
    parser.add_argument("--steps", type=int, default=5, help="scheduler steps of each candidate")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="against float32")
    args = parser.parse_args()
    print(json.dumps(compare_precision(args.prompts, args.n, args.steps, args.dtype, print), indent=1))
