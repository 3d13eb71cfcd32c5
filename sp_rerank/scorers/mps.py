"""MPS, the Multi-dimensional Preference Score: CLIP whose image attends to those words that a condition picks.

The towers are transformers', the layers between them PaLM's, written here. Knows nothing of names in a registry, of
downloads or of how a published file is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from sp_rerank.errors import UsageError
from sp_rerank.scorers.base import (
    ClipPrompts,
    PixelScorer,
    check_tensors,
    checked_config,
    passes,
    shapes_of,
)
from sp_rerank.scorers.clip import build_tokenizer
from sp_rerank.scorers.preprocess import Preprocess

OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)
"""The condition of the published checkpoint: all that an image is judged by."""

CROP = "floor"
"""Of its preprocessing, which is that of transformers' `CLIPImageProcessor`."""

_END = 49407  # <end_of_text>, which also fills what is left of the context


class MpsScorer(ClipPrompts, PixelScorer, ModelMixin):  # diffusers finds a component's base by its name in this module
    """exp(logit_scale) x cosine of the prompt and of the image after it has attended to the prompt's words.

    Of the 77 tokens of the prompt only those are attended to whose similarity with a token of the condition is above a
    threshold. All tokens of both towers take part, the padding behind the prompt too: it is <end_of_text> again.

    Source: Zhang et al., CVPR 2024; Kwai-Kolors/MPS, trainer/models/clip_model.py and cross_modeling.py. The repository
    has two thresholds: .3 in the scripts that gave its published accuracies (eval_overall_mps_on_imagereward.py), which
    is ours, and .01 in the network's own `forward`, which its README calls. The scripts normalize the similarities of
    one prompt by their maximum, and so do we whatever the batch.

    Args:
        name: of the checkpoint, without its hash.
        vision_cfg: fields of transformers' `CLIPVisionConfig`.
        text_cfg: fields of transformers' `CLIPTextConfig`.
        embed_dim: d, the dimension of the common space.
        cross_layers: number of layers in which the image attends to the prompt.
        cross_heads: of their attention.
        head_width: of each of these heads.
        preprocess: `Preprocess.to_dict()`.
        license: of the weights.
        source: where the weights come from.
        condition: words; a token of the prompt counts that resembles one of them.
        threshold: of the similarity, as a share of the largest of the prompt's tokens.

    Raises:
        UsageError: if parts of the configuration contradict each other.
    """

    @register_to_config
    def __init__(
        self,
        name: str,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        embed_dim: int,
        cross_layers: int,
        cross_heads: int,
        head_width: int,
        preprocess: dict[str, Any],
        license: str,
        source: str,
        condition: str = OVERALL,
        threshold: float = 0.3,
    ):
        super().__init__()
        vision: Any = checked_config(CLIPVisionConfig, vision_cfg)
        text: Any = checked_config(CLIPTextConfig, text_cfg)
        self.preprocess = Preprocess.from_dict(preprocess)
        self.tokenizer = build_tokenizer(None, "nfc")
        for left, a, right, b in (
            ("preprocess size", self.preprocess.size, "vision_cfg image_size", vision.image_size),
            ("text_cfg vocab_size", text.vocab_size, "tokens in the vocabulary", self.tokenizer.vocab_size),
        ):
            if a != b:
                raise UsageError(f"{name}: {left} is {a}, but {right} is {b}; they must be equal")
        self.clip = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=embed_dim)
        )
        self.cross = nn.ModuleList(
            nn.ModuleList([
                _CrossLayer(embed_dim, cross_heads, head_width),
                _SelfLayer(embed_dim, cross_heads, head_width),
            ])
            for _ in range(cross_layers)
        )

    @property
    def max_tokens(self) -> int:
        """After which a prompt is cut, start and end included."""
        return self.config["text_cfg"]["max_position_embeddings"]

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(m, context length) int64 on the CPU: start, tokens, ends until it is full; a long prompt loses its tail."""
        ids = self.tokenizer(list(prompts), context_length=self.max_tokens)
        after = torch.arange(self.max_tokens) > ids.argmax(dim=1, keepdim=True)
        return ids.masked_fill(after, _END)

    def _score_images(
        self, prompts: list[str], place: list[int], images: Tensor | Sequence[Image.Image], differentiable: bool
    ) -> Tensor:
        condition, _ = self._encode_text([self.config["condition"]])
        read = [self._read(prompts[part], condition) for part in passes(len(prompts))]
        words, whole, seen = (torch.cat(parts) for parts in zip(*read, strict=True))
        at = torch.tensor(place, device=self.device)
        scores = [
            self._score(words[at[part]], whole[at[part]], seen[at[part]], images[part], differentiable)
            for part in passes(len(images))
        ]
        return torch.cat(scores)

    def _encode_text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """All tokens of m texts in the common space (m, tokens, d), and that of the end (m, d)."""
        ids = self.tokenize(prompts).to(self.device)
        tokens = self.clip.text_projection(self.clip.text_model(input_ids=ids).last_hidden_state)
        return tokens, tokens[torch.arange(len(ids)), ids.argmax(dim=1)]

    def _read(self, prompts: Sequence[str], condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """m prompts: tokens (m, tokens, d), the whole (m, d), and which tokens are attended to (m, tokens)."""
        words, whole = self._encode_text(prompts)
        alike = (words @ condition[0].mT).amax(dim=-1)
        return words, whole, alike / alike.amax(dim=-1, keepdim=True) > self.config["threshold"]

    def _score(
        self,
        words: Tensor,
        whole: Tensor,
        seen: Tensor,
        images: Tensor | Sequence[Image.Image],
        differentiable: bool,
    ) -> Tensor:
        """Scores of n prompts, each with the image in its place: (n,) float32."""
        pixels = self.preprocess(images, device=self.device, differentiable=differentiable).to(self.dtype)
        # The image's tokens without the norm that stands behind CLIP's tower: it is of the pooled one only.
        x = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)
        pairs: Any = self.cross
        for attend, think in pairs:
            x = attend(x, words, seen)
            x = think(x)
        return F.cosine_similarity(x[:, 0].float(), whole.float(), dim=-1) * self.clip.logit_scale.float().exp()


class _CrossLayer(nn.Module):
    """Attention of (n, i, d) to (n, j, d) and a feed-forward beside it, of the same normed input, added to the input.

    The heads have queries of their own and one key and value in common (Shazeer 2019, arXiv 1911.02150).
    """

    def __init__(self, dim: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_width, bias=False)
        self.to_kv = nn.Linear(dim, 2 * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, dim, bias=False)
        self.ff_in = nn.Linear(dim, 8 * dim, bias=False)
        self.ff_out = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """`seen`: (n, j), which of the context is attended to."""
        normed = self.norm(x)
        keys, values = self.to_kv(context).chunk(2, dim=-1)
        attended = _attend(self.to_q(normed).unflatten(-1, (self.heads, -1)), keys, values, seen)
        return x + self.to_out(attended) + self.ff_out(_swiglu(self.ff_in(normed)))


class _SelfLayer(nn.Module):
    """The same with the input itself as context and rotary positions (Su et al. 2021, arXiv 2104.09864)."""

    def __init__(self, dim: int, heads: int, head_width: int):
        super().__init__()
        self.heads = heads
        self.widths = (heads * head_width, head_width, head_width, 8 * dim)
        self.norm = nn.LayerNorm(dim)
        # A tensor of the published file, in the precision in which it was used.
        self.register_buffer("inv_freq", 10_000.0 ** -(torch.arange(0, head_width, 2) / head_width))
        self.fused = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(heads * head_width, dim, bias=False)
        self.ff_out = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, i, d) -> (n, i, d)."""
        queries, keys, values, inner = self.fused(self.norm(x)).split(self.widths, dim=-1)
        frequencies: Any = self.inv_freq
        angles = torch.outer(torch.arange(x.shape[1], device=x.device, dtype=frequencies.dtype), frequencies).repeat(
            1, 2
        )
        queries = _rotate(queries.unflatten(-1, (self.heads, -1)), angles[:, None])
        return x + self.attn_out(_attend(queries, _rotate(keys, angles), values)) + self.ff_out(_swiglu(inner))


def _attend(queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None = None) -> Tensor:
    """(n, i, heads, width) queries to (n, j, width) keys and values: (n, i, heads x width)."""
    alike = torch.einsum("nihw,njw->nhij", queries * queries.shape[-1] ** -0.5, keys)
    if seen is not None:
        alike = alike.masked_fill(~seen[:, None, None], -torch.inf)
    return torch.einsum("nhij,njw->nihw", alike.softmax(dim=-1), values).flatten(2)


def _swiglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-right, left], dim=-1) * angles.sin()


_RENAMED = (
    (r"^mps\.", ""),
    (r"^model\.", "clip."),
    (r"^cross_model\.layers\.(\d+)\.([01])\.fn\.", r"cross.\1.\2."),
    (r"^(cross\.\d+)\.0\.ff\.0\.", r"\1.0.ff_in."),
    (r"^(cross\.\d+)\.0\.ff\.2\.", r"\1.0.ff_out."),
    (r"^(cross\.\d+)\.1\.rotary_emb\.", r"\1.1."),
    (r"^(cross\.\d+)\.1\.fused_attn_ff_proj\.", r"\1.1.fused."),
    (r"^(cross\.\d+)\.1\.ff_out\.1\.", r"\1.1.ff_out."),
)


def from_original(state: dict[str, Tensor], *, name: str, source: str, license: str, heads: int = 16) -> MpsScorer:
    """A scorer out of the tensors of a published checkpoint, in the precision in which they are stored.

    Args:
        state: tensors by the names that Kwai-Kolors/MPS gives them, or by those of imscore's copy of it.
        name: of the scorer.
        source: where the weights come from.
        license: of the weights.
        heads: of the attention in both towers; no shape tells it.

    Raises:
        UsageError: if a key is missing or unknown, or a tensor has another shape than the others call for.
    """
    tensors = {}
    for key, value in state.items():
        known = key
        for pattern, ours in _RENAMED:
            known = re.sub(pattern, ours, known)
        if not known.endswith("position_ids"):
            tensors[known] = value
    sizes = _sizes(tensors, heads, name)
    with init_empty_weights(include_buffers=False):
        scorer: Any = MpsScorer(
            name=name,
            preprocess=Preprocess(sizes["vision_cfg"]["image_size"], crop=CROP).to_dict(),
            license=license,
            source=source,
            **sizes,
        )
    check_tensors(shapes_of(tensors), shapes_of(scorer.state_dict()), name, "of an MPS checkpoint")
    scorer.load_state_dict(tensors, assign=True)
    return scorer.eval()


def _sizes(tensors: dict[str, Tensor], heads: int, name: str) -> dict[str, Any]:
    """The sizes of the network, read off the shapes."""

    def shape(key: str, rank: int) -> tuple[int, ...]:
        if key not in tensors or tensors[key].ndim != rank:
            found = f"one of shape {tuple(tensors[key].shape)}" if key in tensors else "no such tensor"
            raise UsageError(f"{name}: expected an MPS checkpoint with {key} of {rank} dimensions, found {found}")
        return tuple(tensors[key].shape)

    def tower(which: str, width: int) -> dict[str, Any]:
        layers = {key.split(".")[4] for key in tensors if key.startswith(f"clip.{which}_model.encoder.layers.")}
        inner = shape(f"clip.{which}_model.encoder.layers.0.mlp.fc1.weight", 2)[0]
        sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(layers)}
        return sizes | {"num_attention_heads": heads, "hidden_act": "gelu", "projection_dim": embed_dim}

    embed_dim, width = shape("clip.visual_projection.weight", 2)
    patch = shape("clip.vision_model.embeddings.patch_embedding.weight", 4)[2]
    positions = shape("clip.vision_model.embeddings.position_embedding.weight", 2)[0]
    tokens, text_width = shape("clip.text_model.embeddings.token_embedding.weight", 2)
    context = shape("clip.text_model.embeddings.position_embedding.weight", 2)[0]
    head_width = shape("cross.0.0.to_kv.weight", 2)[0] // 2
    return {
        "vision_cfg": tower("vision", width)
        | {"patch_size": patch, "image_size": patch * round((positions - 1) ** 0.5)},
        "text_cfg": tower("text", text_width) | {"vocab_size": tokens, "max_position_embeddings": context},
        "embed_dim": embed_dim,
        "cross_layers": len({key.split(".")[1] for key in tensors if key.startswith("cross.")}),
        "cross_heads": shape("cross.0.0.to_q.weight", 2)[0] // head_width,
        "head_width": head_width,
    }
