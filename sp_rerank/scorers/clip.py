"""One network that scores by comparing an image's embedding with a text's: CLIP and everything trained from it.

The architecture is open_clip's, the file layout diffusers' (config.json beside one safetensors file). What differs
between CLIP, its fine-tunes and its preference models is data in the configuration. Knows nothing of names in a
registry, of downloads or of training.
"""

from __future__ import annotations

import gzip
import io
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer, default_bpe, get_clean_fn
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.errors import UsageError
from sp_rerank.scorers.base import ClipPrompts, PixelScorer, embed, passes
from sp_rerank.scorers.preprocess import Preprocess


class DualEncoder(
    ClipPrompts, PixelScorer, ModelMixin
):  # diffusers finds a component's base by its name in this module
    """An image encoder and a text encoder into one space; the score is the cosine of the two, perhaps scaled.

    Source: Radford et al. 2021, arXiv 2103.00020; `open_clip.model.CLIP` (open_clip 3.3).

    Args:
        name: of the checkpoint, without its hash, for example "clip-mini".
        embed_dim: d, the dimension of the common space.
        vision_cfg: the fields of open_clip's `CLIPVisionCfg`.
        text_cfg: the fields of open_clip's `CLIPTextCfg`.
        quick_gelu: whether the activation is OpenAI's approximation; the wrong one gives wrong scores silently.
        preprocess: `Preprocess.to_dict()`.
        score_scale: "cosine", in [-1, 1], or "logit", exp(logit_scale) * cosine.
        license: of the weights.
        source: where the weights come from.
        merges: BPE merges ("a b", best first) of a vocabulary of its own: 256 bytes, the same with </w>, the merges,
            <start_of_text>, <end_of_text>. None is CLIP's vocabulary, as shipped with open_clip.
        text_cleaning: "ftfy" as OpenAI and open_clip do it, or "nfc" as transformers' tokenizers do it: curly quotes,
            HTML and full-width letters make other tokens.

    Raises:
        UsageError: if parts of the configuration contradict each other, or name a network to be downloaded.
    """

    @register_to_config
    def __init__(
        self,
        name: str,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        quick_gelu: bool,
        preprocess: dict[str, Any],
        score_scale: str,
        license: str,
        source: str,
        merges: list[str] | None = None,
        text_cleaning: str = "ftfy",
    ):
        super().__init__()
        _refuse_foreign_towers(vision_cfg, text_cfg)
        self.preprocess = Preprocess.from_dict(preprocess)
        if text_cleaning not in CLEANINGS:
            raise UsageError(f"{name}: expected a text_cleaning out of {', '.join(CLEANINGS)}, got {text_cleaning!r}")
        self.tokenizer = build_tokenizer(None if merges is None else tuple(merges), text_cleaning)
        self.clip = CLIP(embed_dim, CLIPVisionCfg(**vision_cfg), CLIPTextCfg(**text_cfg), quick_gelu=quick_gelu)
        self._check_consistency()

    def _check_consistency(self) -> None:
        config = self.config
        expectations = (
            ("preprocess size", self.preprocess.size, "vision_cfg image_size", config["vision_cfg"]["image_size"]),
            ("text_cfg vocab_size", self.clip.vocab_size, "tokens in the vocabulary", self.tokenizer.vocab_size),
        )
        for left, a, right, b in expectations:
            if a != b:
                raise UsageError(f"{config['name']}: {left} is {a}, but {right} is {b}; they must be equal")
        check_scale(config["name"], config["score_scale"])

    def train(self, mode: bool = True) -> Self:
        """As every module does, but batch norms (of a ResNet tower) keep the statistics that they have.

        An image's score must not depend on the batch that it is learned from in, as when it is used.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        return self

    def encode_image(self, images: Tensor | Sequence[Image.Image], differentiable: bool = False) -> Tensor:
        """Embed images, with a gradient to the weights.

        Args:
            images: (n, 3, H, W) float in [0, 1], or n PIL images of any sizes; preprocessing is done here.
            differentiable: with a gradient to the pixels of a tensor too; see `Preprocess`.

        Returns:
            (n, d) float32 of L2 norm 1, on the module's device.
        """
        pixels = self.preprocess(images, device=self.device, differentiable=differentiable)
        return F.normalize(self.clip.encode_image(pixels.to(self.dtype)).float(), dim=-1)

    def embed(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """`encode_image` without a gradient, in parts that fit the memory: (n, d) float32 of L2 norm 1, on the CPU."""
        return embed(self.encode_image, images)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Embed m prompts: (m, d) float32 of L2 norm 1, on the module's device, with a gradient to the weights."""
        return F.normalize(self.clip.encode_text(self.tokenize(prompts).to(self.device)).float(), dim=-1)

    @property
    def max_tokens(self) -> int:
        """After which a prompt is cut, start and end included."""
        return self.clip.context_length

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(m, context length) int64 on the CPU: start, tokens, end, zeros; a long prompt loses its tail."""
        return self.tokenizer(list(prompts), context_length=self.max_tokens)

    def _score_images(
        self, prompts: list[str], place: list[int], images: Tensor | Sequence[Image.Image], differentiable: bool
    ) -> Tensor:
        texts = torch.cat([self.encode_text(prompts[part]) for part in passes(len(prompts))])
        embedded = torch.cat([self.encode_image(images[part], differentiable) for part in passes(len(images))])
        cosine = (embedded * texts[place]).sum(dim=-1)
        return cosine * self.clip.logit_scale.float().exp() if self.config["score_scale"] == "logit" else cosine


def check_scale(name: str, score_scale: str) -> None:
    """Refuse a scale that a dual encoder does not have."""
    if score_scale not in ("cosine", "logit"):
        raise UsageError(f"{name}: score_scale must be 'cosine' or 'logit', got {score_scale!r}")


def _clean_nfc(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).lower()


CLEANINGS = {"ftfy": get_clean_fn("lower"), "nfc": _clean_nfc}
"""What happens to a text before its tokens: OpenAI's mending of broken Unicode and HTML, or what transformers does."""


@lru_cache(maxsize=8)
def build_tokenizer(merges: tuple[str, ...] | None, text_cleaning: str = "ftfy") -> SimpleTokenizer:
    """CLIP's byte-pair tokenizer (lower case) with CLIP's own merges, or with these; the same object for the same.

    Args:
        merges: "a b" each, the most frequent first; None is CLIP's.
        text_cleaning: a name of CLEANINGS.
    """
    if merges is None:
        tokenizer = SimpleTokenizer(default_bpe())
    else:
        # The tokenizer skips the first line of the file, a comment; gzip.open takes an open file as well as a path.
        file: Any = io.BytesIO(gzip.compress("\n".join(["#", *merges]).encode()))
        tokenizer = SimpleTokenizer(file)
    tokenizer.clean_fn = CLEANINGS[text_cleaning]
    return tokenizer


def _refuse_foreign_towers(vision_cfg: dict[str, Any], text_cfg: dict[str, Any]) -> None:
    """A configuration may describe a network, not name one for the constructor to download."""
    for cfg, key in ((vision_cfg, "timm_model_name"), (text_cfg, "hf_model_name")):
        if cfg.get(key):
            raise UsageError(f"expected a tower built from open_clip's own layers, got {key}={cfg[key]!r}")
