"""Writes a Stable Diffusion 1 as one file in the layout in which it was first published, and what is added to models.

The names are those of the CompVis repository: blocks are counted through, attentions are convolutions in the
autoencoder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k",
    "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def save_single_file(pipe: Any, file: Path) -> Path:
    """Write a pipeline's three networks into one file."""
    state: dict[str, Tensor] = {}
    for key, value in pipe.unet.state_dict().items():
        state["model.diffusion_model." + unet_key(key, pipe.unet.config.layers_per_block + 1)] = value
    for key, value in pipe.vae.state_dict().items():
        matrix = "attentions" in key and key.endswith("weight") and value.ndim == 2
        levels = len(pipe.vae.config.block_out_channels)
        state["first_stage_model." + vae_key(key, levels)] = value[..., None, None] if matrix else value
    for key, value in pipe.text_encoder.state_dict().items():
        state["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = value
    safetensors.torch.save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file


def unet_key(key: str, each: int) -> str:
    """A weight's name in the UNet; `each` blocks share a resolution."""
    for ours, theirs in UNET.items():
        if key.startswith(ours + "."):
            return renamed(theirs + key.removeprefix(ours), RESNET if "resnets" in key else {})
    side, i, kind, j, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key).groups()
    i, j = int(i), int(j)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{(i + 1) * each}.0.{rest.replace('conv', 'op')}"
        place = f"input_blocks.{1 + i * each + j}"
    elif kind == "upsamplers":
        return f"output_blocks.{i * each + each - 1}.{1 if i else 2}.{rest}"
    else:
        place = f"output_blocks.{i * each + j}"
    return renamed(f"{place}.{1 if kind == 'attentions' else 0}.{rest}", RESNET if kind == "resnets" else {})


def vae_key(key: str, levels: int) -> str:
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2", key)
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", key)
    key = re.sub(
        r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)",
        lambda match: f"decoder.up.{levels - 1 - int(match[1])}.block.{match[2]}",
        key,
    )
    key = re.sub(
        r"decoder\.up_blocks\.(\d+)\.upsamplers\.0",
        lambda match: f"decoder.up.{levels - 1 - int(match[1])}.upsample",
        key,
    )
    return renamed(key, VAE)


def renamed(key: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        key = re.sub(rf"(?<![\w]){re.escape(ours)}(?![\w])", theirs, key)
    return key


def save_lora(file: Path, width: int, *, blocks: str = "down_blocks.1.attentions.0", scale: float = 3.0) -> Path:
    """Write a LoRA of one attention of a UNet, as wide as asked for, of rank 2."""
    place = f"unet.{blocks}.transformer_blocks.0.attn1.to_q"
    noise = torch.Generator().manual_seed(0)
    state = {
        f"{place}.lora_A.weight": torch.randn(2, width, generator=noise),
        f"{place}.lora_B.weight": scale * torch.randn(width, 2, generator=noise),
    }
    safetensors.torch.save_file(state, file)
    return file


def save_embedding(file: Path, key: str = "<toy>", width: int = 32, vectors: int = 2) -> Path:
    """Write a textual inversion of one text encoder."""
    noise = torch.Generator().manual_seed(1)
    safetensors.torch.save_file({key: torch.randn(vectors, width, generator=noise)}, file)
    return file
