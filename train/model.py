"""What training starts from: the scorer, which of its parameters learn, and the optimizer over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sp_rerank.errors import UsageError
from sp_rerank.scorers import load_scorer
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.scorers.preprocess import Preprocess
from sp_rerank.scorers.published import find
from sp_rerank.train.recipe import Recipe


def load_base(recipe: Recipe) -> DualEncoder:
    """The scorer that a recipe starts from, in float32.

    Raises:
        UsageError: if it is no dual encoder, or as `load_scorer` does.
        HubUnavailableError, StorageError: as `load_scorer` does.
    """
    scorer = load_scorer(recipe.base, dtype=torch.float32)
    if not isinstance(scorer, DualEncoder):
        raise UsageError(f"base: expected a dual encoder such as clip-h, {recipe.base!r} is a {type(scorer).__name__}")
    return scorer


def random_base(recipe: Recipe) -> DualEncoder:
    """A dual encoder of the size of the recipe's base with random weights, to prove shapes and memory; no download.

    Raises:
        UsageError: if the base is no published dual encoder.
    """
    import open_clip

    row = find(recipe.base)
    described: Any = open_clip.get_model_config(row.architecture) if row and row.architecture else None
    if row is None or described is None:
        raise UsageError(f"base: random weights need the name of a published dual encoder, got {recipe.base!r}")
    torch.manual_seed(recipe.seed)
    return DualEncoder(
        name=f"{row.name}-random",
        embed_dim=described["embed_dim"],
        vision_cfg=described["vision_cfg"],
        text_cfg=described["text_cfg"],
        quick_gelu=described.get("quick_gelu", False),
        preprocess=Preprocess.from_dict(row.preprocess).to_dict(),
        score_scale=row.scale,
        license="none",
        source="random weights",
    )


def freeze(scorer: DualEncoder, trainable_image_blocks: int, trainable_text_blocks: int) -> None:
    """Let the last blocks of each tower learn, with the norm and the projection behind them, and nothing before them.

    Args:
        scorer: Its parameters are marked.
        trainable_image_blocks: Number of blocks of the image tower; 0 freezes it, -1 trains all of it.
        trainable_text_blocks: The same for the text tower.

    Raises:
        UsageError: if a tower has fewer blocks.
    """
    clip: Any = scorer.clip
    visual, text = clip.visual, getattr(clip, "text", clip)
    image_blocks, behind = _image_parts(visual)
    towers = (
        ("image", trainable_image_blocks, visual.parameters(), image_blocks, behind),
        ("text", trainable_text_blocks, _text_parameters(clip), text.transformer.resblocks,
         (text.ln_final, text.text_projection)),
    )  # fmt: skip
    if getattr(clip, "logit_bias", None) is not None:
        clip.logit_bias.requires_grad = False  # cancels out between images of one prompt
    for name, count, everything, blocks, behind in towers:
        if count > len(blocks):
            raise UsageError(f"trainable_{name}_blocks is {count}, but the {name} tower has {len(blocks)} blocks")
        for parameter in everything:
            parameter.requires_grad = count == -1
        for part in (*blocks[len(blocks) - max(count, 0) :], *behind) if count > 0 else ():
            part.requires_grad_(True)


def _image_parts(visual: Any) -> tuple[Sequence[nn.Module], tuple[Any, ...]]:
    """The blocks of a tower, the first one first, and what lies behind them: of a transformer or a ResNet."""
    if hasattr(visual, "trunk"):  # timm's, of SigLIP
        return visual.trunk.blocks, (visual.trunk.norm, visual.trunk.attn_pool)
    if hasattr(visual, "transformer"):
        return visual.transformer.resblocks, (visual.ln_post, visual.proj)
    stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
    return [block for stage in stages for block in stage], (visual.attnpool,)


def _text_parameters(clip: nn.Module) -> list[nn.Parameter]:
    scale = ("logit_scale", "logit_bias")
    return [p for name, p in clip.named_parameters() if not name.startswith("visual.") and name not in scale]


def build_optimizer(scorer: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what learns; weight decay on parameters of two dimensions and more, as CLIP and HPS v2 do it."""
    learning = [p for p in scorer.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta_1, recipe.beta_2), eps=recipe.epsilon)
