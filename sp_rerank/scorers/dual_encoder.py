"""One network that scores by comparing an image's embedding with a text's: CLIP and everything trained from it.

The architecture is open_clip's, the file layout diffusers' (config.json beside one safetensors file). What differs
between CLIP, its fine-tunes and its preference models is data in the configuration. Knows nothing of names in a
registry, of downloads or of training.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.scorers.preprocess import Preprocess

# Images or texts a pass: bounds the memory, and is large enough to keep a GPU busy.
_PASS = 64


class DualEncoder(ModelMixin, ConfigMixin):
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
        licence: of the weights.
        source: where the weights come from.
        merges: BPE merges ("a b", best first) of a vocabulary of its own: 256 bytes, the same with </w>, the merges,
            <start_of_text>, <end_of_text>. None is CLIP's vocabulary, as shipped with open_clip.

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
        licence: str,
        source: str,
        merges: list[str] | None = None,
    ):
        super().__init__()
        _refuse_foreign_towers(vision_cfg, text_cfg)
        self.preprocess = Preprocess.from_dict(preprocess)
        self.tokenizer = build_tokenizer(merges)
        self.clip = CLIP(embed_dim, CLIPVisionCfg(**vision_cfg), CLIPTextCfg(**text_cfg), quick_gelu=quick_gelu)
        self._file_sha256: str | None = None
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
        if config["score_scale"] not in ("cosine", "logit"):
            raise UsageError(
                f"{config['name']}: score_scale must be 'cosine' or 'logit', got {config['score_scale']!r}"
            )

    @property
    def name(self) -> str:
        """The checkpoint's name and the first 12 hex digits of its weights' SHA-256, "clip-mini@3f2a...".

        The hash is that of the safetensors file: of the one that was loaded, whatever the precision or device since;
        of the one that `save_pretrained` would write now where there is none, or where training has begun.
        """
        digest = self._file_sha256 or hashlib.sha256(self._serialised()).hexdigest()
        return f"{self.config['name']}@{digest[:12]}"

    def _serialised(self) -> bytes:
        state = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        return safetensors.torch.save(state, metadata={"format": "pt"})

    def train(self, mode: bool = True) -> Self:
        """As in torch; training mode also means that the weights are no longer those of the file."""
        if mode:
            self._file_sha256 = None
        return super().train(mode)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Load a folder written by `save_pretrained`, strictly: the same tensors with the same shapes, or an error.

        Args:
            pretrained_model_name_or_path: the folder; a hub repository is fetched by `load_scorer`, not here.
            **kwargs: as in diffusers; `subfolder`, `variant` and `torch_dtype` among them.

        Raises:
            UsageError: if there is no safetensors file, or its tensors are not those that config.json describes.
            StorageError: if the file is damaged.
        """
        folder = Path(pretrained_model_name_or_path, kwargs.pop("subfolder", None) or "")
        suffix = f".{kwargs['variant']}.safetensors" if kwargs.get("variant") else ".safetensors"
        file = folder / SAFETENSORS_WEIGHTS_NAME.replace(".safetensors", suffix)
        absent = [name for name in (cls.config_name, file.name) if not (folder / name).is_file()]
        if absent:
            raise UsageError(
                f"{folder}: expected a folder with {cls.config_name} and {file.name}, found no {absent[0]}"
            )
        try:
            shapes = cls._shapes(folder)
        except UsageError:
            raise
        except Exception as error:  # bad JSON, a missing key, a field that open_clip does not know
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StorageError(f"{folder}/config.json does not describe a dual encoder: {first}") from error
        _check_tensors(file, shapes)
        kwargs["use_safetensors"] = True
        model = super().from_pretrained(str(folder), **kwargs)
        with file.open("rb") as opened:
            model._file_sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return model

    @classmethod
    def _shapes(cls, folder: Path) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor that the folder's configuration asks for."""
        stored: Any = cls.load_config(folder)
        if stored.get("_class_name") != cls.__name__:
            raise UsageError(f"{folder}: expected a {cls.__name__}, its config.json is a {stored.get('_class_name')}'s")
        with torch.device("meta"):
            blank: Any = cls.from_config(stored)
        return {key: tuple(value.shape) for key, value in blank.state_dict().items()}

    def encode_image(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Embed images, with a gradient to the weights but not to the pixels.

        Args:
            images: (n, 3, H, W) float in [0, 1], or n PIL images of any sizes; preprocessing is done here.

        Returns:
            (n, d) float32 of L2 norm 1, on the module's device.
        """
        pixels = self.preprocess(images, device=self.device)
        return F.normalize(self.clip.encode_image(pixels.to(self.dtype)).float(), dim=-1)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Embed m prompts: (m, d) float32 of L2 norm 1, on the module's device, with a gradient to the weights."""
        return F.normalize(self.clip.encode_text(self.tokenize(prompts).to(self.device)).float(), dim=-1)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(m, context length) int64 on the CPU: start, tokens, end, zeros; a long prompt loses its tail."""
        return self.tokenizer(list(prompts), context_length=self.clip.context_length)

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the whole prompt needs, start and end included."""
        return len(self.tokenizer.encode(prompt)) + 2

    def lost_tail(self, prompt: str) -> str:
        """The end of the prompt that the model does not see, as its tokens read (lower case); "" if all is seen."""
        return self.tokenizer.decode(self.tokenizer.encode(prompt)[self.clip.context_length - 2 :]).strip()

    def forward(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Score as `score` does, but with a gradient to the weights and the result on the module's device.

        Calling the module is what moves it to its device under diffusers' CPU offloading.
        """
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(images):
            raise UsageError(f"expected one prompt, or one an image: got {len(prompts)} prompts, {len(images)} images")
        if not prompts:
            return torch.empty(0, device=self.device)
        row = {text: index for index, text in enumerate(dict.fromkeys(prompts))}
        texts = torch.cat([self.encode_text(list(row)[part]) for part in _passes(len(row))])
        text_of_image = texts[[row[text] for text in prompts]]
        embedded = torch.cat([self.encode_image(images[part]) for part in _passes(len(images))])
        cosine = (embedded * text_of_image).sum(dim=-1)
        return cosine * self.clip.logit_scale.float().exp() if self.config["score_scale"] == "logit" else cosine

    @torch.no_grad()
    def score(self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Score n images; higher is better; comparable within one prompt only.

        Args:
            prompt: the prompt of all images, or one prompt an image; each distinct one is encoded once.
            images: (n, 3, H, W) float in [0, 1] on any device, or n PIL images of any sizes.

        Returns:
            (n,) float32 on the CPU, in the scale that the configuration names. NaN for an image that is not finite,
            and for that one only.

        Raises:
            UsageError: if there are neither one nor n prompts.
        """
        return self(prompt, images).cpu()


def build_tokenizer(merges: list[str] | None) -> SimpleTokenizer:
    """CLIP's byte-pair tokenizer (lower case) with CLIP's own merges, or with these.

    Args:
        merges: "a b" each, the most frequent first; None is CLIP's.
    """
    if merges is None:
        return SimpleTokenizer(default_bpe())
    # The tokenizer skips the first line of the file, a comment; gzip.open takes an open file as well as a path.
    file = io.BytesIO(gzip.compress("\n".join(["#", *merges]).encode()))
    return SimpleTokenizer(file)  # pyright: ignore[reportArgumentType]


def _passes(count: int) -> list[slice]:
    return [slice(start, start + _PASS) for start in range(0, count, _PASS)]


def _refuse_foreign_towers(vision_cfg: dict[str, Any], text_cfg: dict[str, Any]) -> None:
    """A configuration may describe a network, not name one for the constructor to download."""
    for cfg, key in ((vision_cfg, "timm_model_name"), (text_cfg, "hf_model_name")):
        if cfg.get(key):
            raise UsageError(f"expected a tower built from open_clip's own layers, got {key}={cfg[key]!r}")


def _check_tensors(file: Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Compare the header of a safetensors file with names and shapes; diffusers itself only warns."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            found = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise StorageError(f"{file}: damaged, not a complete safetensors file ({error}); fetch it again") from error
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    reshaped = [
        f"{key} {found[key]} for {expected[key]}"
        for key in sorted(expected.keys() & found.keys())
        if found[key] != expected[key]
    ]
    if missing or unexpected or reshaped:
        faults = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        listed = "; ".join(f"{len(keys)} {fault}: {', '.join(keys[:3])}" for fault, keys in faults.items() if keys)
        raise UsageError(f"{file}: its tensors are not those that its config.json describes: {listed}")
