"""What every scorer with weights of its own shares: config.json beside one safetensors file, loaded strictly.

The file layout is diffusers'; it is strict where diffusers only warns. Knows nothing of architectures, of names in a
registry or of downloads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from torch import Tensor

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.storage.atomic import sha256_of

# Images or texts a pass: bounds the memory, and is large enough to keep a GPU busy.
_PASS = 64
_ONE_FILE = 10**15  # bytes


class ClipPrompts:
    """What a prompt loses in a scorer that reads CLIP's byte pairs.

    Attributes:
        tokenizer: open_clip's, or one with the same `encode` and `decode`.
        max_tokens: After which a prompt is cut, start and end included.
    """

    tokenizer: Any
    max_tokens: Any

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the whole prompt needs, start and end included."""
        return len(self.tokenizer.encode(prompt)) + 2

    def lost_tail(self, prompt: str) -> str:
        """The end of the prompt that the model does not see, as its tokens read (lower case); "" if all is seen."""
        return self.tokenizer.decode(self.tokenizer.encode(prompt)[self.max_tokens - 2 :]).strip()


class ScorerModel(ModelMixin, ConfigMixin):
    """A network that scores images for a prompt.

    A subclass has `forward(prompt, images)`, which scores with a gradient to the weights, and at least "name" and
    "license" in its configuration.
    """

    _file_sha256: str | None = None

    folder: Path | None = None
    """Where the weights were loaded from, with what lies beside them; None for what is not loaded from a folder."""

    @property
    def name(self) -> str:
        """The checkpoint's name and the first 12 hex digits of its weights' SHA-256, "clip-mini@3f2a...".

        The hash is that of the safetensors file: of the one that was loaded, whatever the precision or device since;
        of the one that `save_pretrained` would write now where there is none, or where training has begun.
        """
        digest = self._file_sha256 or sha256_of(self._serialised())
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
            raise StorageError(f"{folder}/config.json does not describe a {cls.__name__}: {first}") from error
        # diffusers itself only warns
        check_tensors(_stored_shapes(file), shapes, str(file), "that its config.json describes")
        kwargs["use_safetensors"] = True
        model = super().from_pretrained(str(folder), **kwargs)
        model._file_sha256 = sha256_of(file)
        model.folder = folder
        return model

    def save_pretrained(
        self,
        save_directory: Any,
        *args: Any,
        safe_serialization: bool = True,
        max_shard_size: int | str | None = None,
        variant: str | None = None,
        **kwargs: Any,
    ) -> None:
        """As in diffusers, into one safetensors file whatever `max_shard_size` says: its hash is the scorer's name.

        Raises:
            UsageError: if another format than safetensors is asked for, which would not be read back.
        """
        if not safe_serialization:
            raise UsageError(
                f"safe_serialization is False; expected True: the scorer {self.config['name']} is read from "
                "safetensors only, because opening a pickle can run code"
            )
        super().save_pretrained(save_directory, *args, variant=variant, max_shard_size=_ONE_FILE, **kwargs)

    def to_json_string(self) -> str:
        """config.json as `save_pretrained` writes it, without the folder that diffusers noted when it loaded."""
        record = json.loads(super().to_json_string())
        record.pop("_name_or_path", None)  # a path of this machine, in a checkpoint that goes to others
        return json.dumps(record, indent=2, sort_keys=True) + "\n"

    # Private to diffusers, but the only step through which every stored configuration passes.
    @classmethod
    def _dict_from_json_file(cls, json_file: Any, **kwargs: Any) -> dict[str, Any]:
        """A stored configuration; the key "license" was spelled "licence" once."""
        stored = super()._dict_from_json_file(json_file, **kwargs)
        if "licence" in stored:
            stored["license"] = stored.pop("licence")
        return stored

    @classmethod
    def _shapes(cls, folder: Path) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor that the folder's configuration asks for."""
        stored: Any = cls.load_config(folder)
        if stored.get("_class_name") != cls.__name__:
            raise UsageError(f"{folder}: expected a {cls.__name__}, its config.json is a {stored.get('_class_name')}'s")
        with torch.device("meta"):
            blank: Any = cls.from_config(stored)
        return shapes_of(blank.state_dict())

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
        # Calling the module is what moves it to its device under diffusers' CPU offloading.
        return self(prompt, images).float().cpu()


class PixelScorer(ScorerModel):
    """A network whose scores have a gradient to the weights, and to the pixels where that is asked for.

    A subclass has `_score_images` instead of `forward`.
    """

    def forward(
        self, prompt: str | Sequence[str], images: Tensor | Sequence[Image.Image], differentiable: bool = False
    ) -> Tensor:
        """Score as `score` does, but with a gradient to the weights and the result on the module's device.

        Args:
            prompt: as for `score`.
            images: as for `score`.
            differentiable: with a gradient to the pixels of a tensor too; see `Preprocess`.
        """
        prompts, place = distinct_prompts(prompt, len(images))
        if not prompts:
            return torch.empty(0, device=self.device)
        return self._score_images(prompts, place, images, differentiable)

    def _score_images(
        self, prompts: list[str], place: list[int], images: Tensor | Sequence[Image.Image], differentiable: bool
    ) -> Tensor:
        """(n,) float32 scores of n > 0 images, of which image i is scored for `prompts[place[i]]`."""
        raise NotImplementedError


@torch.no_grad()
def embed(encode: Callable[[Tensor | Sequence[Image.Image]], Tensor], images: Tensor | Sequence[Image.Image]) -> Tensor:
    """Embeddings of images for comparing them with each other.

    Args:
        encode: a scorer's `encode_image`.
        images: as for `ScorerModel.score`, at least one.

    Returns:
        (n, d) float32 of L2 norm 1, on the CPU.
    """
    return torch.cat([encode(images[part]) for part in passes(len(images))]).cpu()


def distinct_prompts(prompt: str | Sequence[str], count: int) -> tuple[list[str], list[int]]:
    """The distinct prompts of `count` images in their order, and for each image the place of its own among them.

    Raises:
        UsageError: if there are neither one nor `count` prompts.
    """
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(prompts) != count:
        raise UsageError(f"expected one prompt, or one an image: got {len(prompts)} prompts, {count} images")
    place = {text: index for index, text in enumerate(dict.fromkeys(prompts))}
    return list(place), [place[text] for text in prompts]


def passes(count: int) -> list[slice]:
    """`count` images or texts in parts that fit the memory."""
    return [slice(start, start + _PASS) for start in range(0, count, _PASS)]


def checked_config(config_class: Any, fields: Mapping[str, Any]) -> Any:
    """A configuration of transformers, which takes a field that it does not know without a word and ignores it.

    Raises:
        UsageError: if there is such a field.
    """
    unknown = [key for key in fields if not hasattr(config_class, key)]
    if unknown:
        raise UsageError(f"expected fields of {config_class.__name__}, got {', '.join(unknown)}")
    return config_class(**fields)


def check_tensors(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str, what: str
) -> None:
    """Compare names and shapes of tensors.

    Args:
        found: Shapes by name, as they are.
        expected: Shapes by name, as they should be.
        where: what was read, for the message.
        what: whose tensors they should be, for the message.

    Raises:
        UsageError: listing the first few that are missing, unexpected or of another shape.
    """
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    reshaped = [
        f"{key} {found[key]} for {expected[key]}"
        for key in sorted(expected.keys() & found.keys())
        if found[key] != expected[key]
    ]
    if missing or unexpected or reshaped:
        faults = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        listed = "; ".join(f"{len(keys)} {fault}: {', '.join(keys[:3])}" for fault, keys in faults.items() if keys)
        raise UsageError(f"{where}: its tensors are not those {what}: {listed}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by name."""
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _stored_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes out of the header of a safetensors file."""
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise StorageError(f"{file}: damaged, not a complete safetensors file ({error}); fetch it again") from error
