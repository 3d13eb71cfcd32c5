"""What published checkpoints call their tensors, turned into open_clip's names. Knows names, no file and no network."""

from __future__ import annotations

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

# OpenAI's archives carry these as tensors; they are facts about the architecture, not weights.
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}


def from_open_clip(state: State) -> State:
    """open_clip's own names, which are OpenAI's: what is not a weight is dropped, the scale is a number."""
    kept = {key: value for key, value in state.items() if key not in _NOT_WEIGHTS}
    if "logit_scale" in kept and kept["logit_scale"].numel() == 1:
        kept["logit_scale"] = kept["logit_scale"].reshape(())
    return kept


def from_transformers(state: State) -> State:
    """The names of transformers' CLIPModel turned into open_clip's; a name that it does not have stays.

    Queries, keys and values become one matrix, projections are transposed. Source: transformers 5.23,
    `models/clip/modeling_clip.py`; open_clip 3.3, `transformer.py`.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    renamed: State = {}
    for key, value in state.items():
        name = _in_open_clip(key)
        found = re.fullmatch(r"(.+\.attn)\.([qkv])_proj\.(weight|bias)", name)
        if found:
            parts.setdefault(f"{found[1]}.in_proj_{found[3]}", {})[found[2]] = value
        elif name in ("visual.proj", "text_projection"):
            renamed[name] = value.T
        elif not name.endswith("position_ids"):
            renamed[name] = value
    for name, three in parts.items():
        if len(three) == 3:
            renamed[name] = torch.cat([three[letter] for letter in "qkv"])
    return from_open_clip(renamed)


_WHOLE_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "visual_projection.weight": "visual.proj",
}
_PARTS_OF_NAMES = (
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # spelt so
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def _in_open_clip(key: str) -> str:
    if key in _WHOLE_NAMES:
        return _WHOLE_NAMES[key]
    for pattern, replacement in _PARTS_OF_NAMES:
        key = re.sub(pattern, replacement, key)
    return key
