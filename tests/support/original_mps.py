"""MPS as Kwai-Kolors/MPS has it, small and random: the module that it publishes, and its evaluation script's steps.

The classes bear the names and places of theirs, for a published file is a pickle of the module itself. Nothing here is
of sp_rerank.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil
from transformers import CLIPModel as TransformersCLIP

from support.originals import EDGE, Original, randomize
from support.tiny import build_tokenizer

CONDITION = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
_CLIP, _CROSS = "trainer.models.clip_model", "trainer.models.cross_modeling"
_DIM = 24


class LayerNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.fn(x, *others) + x


class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return gate * torch.sigmoid(gate) * value


class RotaryEmbedding(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10_000 ** (torch.arange(0, dim, 2).float() / dim)))


def multi_query(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | float = 0.0) -> Tensor:
    """One key and value for all heads, a head at a time."""
    outs = []
    for query in q.chunk(heads, dim=-1):
        outs.append((query @ k.mT * k.shape[-1] ** -0.5 + mask).softmax(-1) @ v)
    return torch.cat(outs, dim=-1)


class CrossAttention(nn.Module):
    def __init__(self, dim: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.context_norm = LayerNorm(dim), nn.Identity()
        self.to_q = nn.Linear(dim, heads * width, bias=False)
        self.to_kv = nn.Linear(dim, 2 * width, bias=False)
        self.to_out = nn.Linear(heads * width, dim, bias=False)
        self.ff = nn.Sequential(nn.Linear(dim, 8 * dim, bias=False), SwiGLU(), nn.Linear(4 * dim, dim, bias=False))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        k, v = self.to_kv(context).chunk(2, dim=-1)
        return self.to_out(multi_query(self.to_q(x), k, v, self.heads, mask)) + self.ff(x)


class ParallelTransformerBlock(nn.Module):
    def __init__(self, dim: int, width: int, heads: int):
        super().__init__()
        self.heads, self.fused_dims = heads, (heads * width, width, width, 8 * dim)
        self.norm, self.rotary_emb = LayerNorm(dim), RotaryEmbedding(width)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.fused_dims), bias=False)
        self.attn_out = nn.Linear(heads * width, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * dim, dim, bias=False))
        self.register_buffer("pos_emb", torch.zeros(1), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        """Each pair (j, j + half) of a head as a complex number, times exp(i position x frequency)."""
        half = x.shape[-1] // 2
        positions = torch.arange(x.shape[1]).float()
        turn = torch.polar(torch.ones(x.shape[1], half), positions[:, None] * self.rotary_emb.inv_freq)
        turned = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, inner = self.fused_attn_ff_proj(self.norm(x)).split(self.fused_dims, dim=-1)
        q = torch.cat([self.turn(head) for head in q.chunk(self.heads, dim=-1)], dim=-1)
        return self.attn_out(multi_query(q, self.turn(k), v, self.heads)) + self.ff_out(inner)


class Cross_model(nn.Module):  # noqa: N801  # its published name
    def __init__(self, dim: int, layer_num: int, width: int, heads: int):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([
                Residual(CrossAttention(dim, width, heads)),
                Residual(ParallelTransformerBlock(dim, width, heads)),
            ])
            for _ in range(layer_num)
        )

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        for attend, think in self.layers:
            x = think(attend(x, context, mask))
        return x


class XCLIPModel(TransformersCLIP):
    def text(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.text_model(input_ids=ids)
        return self.text_projection(seen.last_hidden_state), self.text_projection(seen.pooler_output)

    def image(self, pixels: Tensor) -> Tensor:
        return self.visual_projection(self.vision_model(pixel_values=pixels).last_hidden_state)


class CLIPModel(nn.Module):
    def __init__(self):
        super().__init__()
        # 16 heads, as CLIP-H has in both towers
        tower = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 16}
        tower |= {"hidden_act": "gelu", "projection_dim": _DIM}
        vision = tower | {"image_size": EDGE, "patch_size": 32}
        self.model = XCLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=_DIM))
        self.cross_model = Cross_model(_DIM, 2, 8, 3)


_PLACES = {
    _CLIP: (XCLIPModel, CLIPModel),
    _CROSS: (
        LayerNorm, Residual, SwiGLU, RotaryEmbedding, CrossAttention, ParallelTransformerBlock, Cross_model
    ),
}  # fmt: skip
for _place, _classes in _PLACES.items():
    for _class in _classes:
        _class.__module__ = _place


def save_module(module: nn.Module, file: Path) -> None:
    """As the authors did; their modules are importable while it is written, and not when it is read."""
    modules = {"trainer": ModuleType("trainer"), "trainer.models": ModuleType("trainer.models")}
    modules |= {place: ModuleType(place) for place in _PLACES}
    for place, classes in _PLACES.items():
        vars(modules[place]).update({one.__name__: one for one in classes})
    sys.modules.update(modules)
    try:
        torch.save(module, file)
    finally:
        for name in modules:
            del sys.modules[name]


def build() -> Any:
    """The network with random weights."""
    network = CLIPModel().eval()
    randomize(network)
    with torch.no_grad():  # one direction leads, so that tokens lie on both sides of the threshold
        network.model.text_model.final_layer_norm.weight[0] = 30.0
    return network


def mps(file: Path) -> Original:
    """Kwai-Kolors/MPS, eval_overall_mps_on_imagereward.py, `infer_one_sample`, in float32."""
    network = build()
    save_module(network, file)
    processor, tokenizer = CLIPImageProcessorPil(), build_tokenizer()
    rules = {"max_length": 77, "padding": "max_length", "truncation": True, "return_tensors": "pt"}

    @torch.no_grad()
    def score(prompt: str, image: Path) -> float:
        words, whole = network.model.text(tokenizer(prompt, **rules).input_ids)
        condition, _ = network.model.text(tokenizer(CONDITION, **rules).input_ids)
        picture = processor(Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
        alike = (condition @ words.mT).max(dim=1, keepdim=True)[0]
        mask = torch.where(alike / alike.max() > 0.3, 0, -torch.inf)
        looked = network.cross_model(network.model.image(picture), words, mask)[:, 0]
        looked, whole = (x / x.norm(dim=-1, keepdim=True) for x in (looked, whole))
        return (network.model.logit_scale.exp() * whole @ looked.T).item()

    return score
