"""SigLIP and SigLIP 2: two encoders trained pair by pair, whose logit has a bias, with a tokenizer of their own.

The towers are open_clip's text transformer and timm's vision transformer; the tokenizer is the file tokenizer.json,
which lies beside the weights. Knows nothing of names in a registry, of downloads or of training.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import canonicalize_text
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.scorers.base import ScorerModel
from sp_rerank.scorers.clip import DualEncoder, check_scale
from sp_rerank.scorers.preprocess import Preprocess

TOKENIZER = "tokenizer.json"

_ENDS = {"</s>": "</s>", "<eos>": "<pad>"}
"""What ends a text, and what fills the context behind it: of SigLIP (C4's sentence pieces), of SigLIP 2 (Gemma's)."""


class SigLipEncoder(DualEncoder):
    """An image encoder and a text encoder into one space; the score is the cosine, or the logit with its bias.

    sigmoid(logit) is the probability with which the two belong together, which was trained for each pair by itself: the
    logits of one prompt do not sum to anything.

    Source: Zhai et al. 2023, arXiv 2303.15343; Tschannen et al. 2025, arXiv 2502.14786; open_clip 3.3,
    `CustomTextCLIP` and its tokenizer's `canonicalize_text`. The text is cut before its end token, which stays, and the
    last place is read.

    Args:
        name: of the checkpoint, without its hash.
        embed_dim: d, the dimension of the common space.
        vision_cfg: fields of open_clip's `CLIPVisionCfg`; `timm_model_name` is a network of timm's own, never a place.
        text_cfg: fields of open_clip's `CLIPTextCfg`.
        preprocess: `Preprocess.to_dict()`.
        score_scale: "cosine", in [-1, 1], or "logit", exp(logit_scale) * cosine + logit_bias.
        license: of the weights.
        source: where the weights come from.

    Attributes:
        tokenizer_file: tokenizer.json; None until the folder is known.

    Raises:
        UsageError: if parts of the configuration contradict each other, or name something to be downloaded.
    """

    @register_to_config
    def __init__(
        self,
        name: str,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        preprocess: dict[str, Any],
        score_scale: str,
        license: str,
        source: str,
    ):
        ScorerModel.__init__(self)
        trunk = vision_cfg.get("timm_model_name")
        if not re.fullmatch(r"[a-z0-9_]+", str(trunk)) or vision_cfg.get("timm_model_pretrained"):
            raise UsageError(f"{name}: expected the plain name of a network of timm without its weights, got {trunk!r}")
        if text_cfg.get("hf_model_name"):
            raise UsageError(f"{name}: expected open_clip's own text tower, got {text_cfg['hf_model_name']!r}")
        self.preprocess = Preprocess.from_dict(preprocess)
        if self.preprocess.size != vision_cfg["image_size"]:
            raise UsageError(
                f"{name}: preprocess size is {self.preprocess.size}, but vision_cfg image_size is "
                f"{vision_cfg['image_size']}; they must be equal"
            )
        check_scale(name, score_scale)
        vision, text = CLIPVisionCfg(**vision_cfg), CLIPTextCfg(**text_cfg)
        self.clip = CustomTextCLIP(embed_dim, vision, text, init_logit_bias=-10.0)
        self.tokenizer_file: Path | None = None
        self.tokenizer: Any = None

    def take_tokenizer(self, file: Path) -> None:
        """Read tokenizer.json, which is data and no code.

        Raises:
            StorageError: if it is damaged.
            UsageError: if it is not one of SigLIP's.
        """
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises the plain class
            raise StorageError(f"{file}: no tokenizer that can be read: {error}; fetch it again") from error
        ends = [end for end in _ENDS if tokenizer.token_to_id(end) is not None]
        if not ends:
            raise UsageError(f"{file}: expected a tokenizer with {' or '.join(_ENDS)}, found neither")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.tokenizer_file, self._end = tokenizer, file, ends[-1]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """As of every scorer, with the tokenizer that lies beside the weights."""
        scorer = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        assert scorer.folder is not None
        file = scorer.folder / TOKENIZER
        if not file.is_file():
            raise UsageError(f"{scorer.folder}: expected a folder with {TOKENIZER}, found none; convert it again")
        scorer.take_tokenizer(file)
        return scorer

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As of every scorer, and the tokenizer beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        target = Path(save_directory) / TOKENIZER
        if self.tokenizer_file is not None and self.tokenizer_file.absolute() != target.absolute():
            shutil.copyfile(self.tokenizer_file, target)

    def _pieces(self, prompt: str) -> Any:
        if self.tokenizer_file is None:
            raise UsageError(f"{self.config['name']}: expected its {TOKENIZER}; load the scorer from its folder")
        return self.tokenizer.encode(canonicalize_text(prompt), add_special_tokens=False)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(m, context length) int64 on the CPU: tokens, end, padding; a long prompt loses its tail, not its end."""
        pieces = [self._pieces(prompt).ids for prompt in prompts]
        end, padding = (self.tokenizer.token_to_id(token) for token in (self._end, _ENDS[self._end]))
        ids = torch.full((len(prompts), self.max_tokens), padding)
        for row, tokens in enumerate(pieces):
            kept = [*tokens[: self.max_tokens - 1], end]
            ids[row, : len(kept)] = torch.tensor(kept)
        return ids

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the whole prompt needs, the end included."""
        return len(self._pieces(prompt).ids) + 1

    def lost_tail(self, prompt: str) -> str:
        """The end of the prompt that the model does not see, lower case without punctuation; "" if all is seen."""
        pieces = self._pieces(prompt)
        if len(pieces.ids) < self.max_tokens:
            return ""
        return canonicalize_text(prompt)[pieces.offsets[self.max_tokens - 1][0] :].strip()

    def _score_images(
        self, prompts: list[str], place: list[int], images: Tensor | Sequence[Image.Image], differentiable: bool
    ) -> Tensor:
        scores = super()._score_images(prompts, place, images, differentiable)
        bias: Any = self.clip.logit_bias
        return scores + bias.float() if self.config["score_scale"] == "logit" else scores
