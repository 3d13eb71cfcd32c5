"""What artists add to a model: LoRAs and textual inversions, from safetensors only; a file for another base is refused.

Knows diffusers' loaders of such files. Knows nothing of runs or of where models come from.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_rerank.config.checkpoint import WEIGHTS, Embedding, Lora
from sp_rerank.errors import StorageError, UsageError, first_line, is_out_of_memory
from sp_rerank.storage.atomic import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

DOWN = ("lora_A.weight", "lora.down.weight", "lora_down.weight", "lora_linear_layer.down.weight")
"""Ends of the names under which a file holds the first of the two matrices of each adapted layer."""
XL_PARTS = {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")}
"""Keys of a textual inversion for two text encoders."""


def read_weights(kind: str, file: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UsageError: If there is no such file, or it is of another format.
        StorageError: If it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(file).is_file() or not file.endswith(WEIGHTS):
        raise UsageError(f"{kind} {file!r}: expected a file NAME{WEIGHTS} that exists")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{kind} {file} is damaged: {first_line(error)}") from error


def add_loras(pipe: Any, loras: Sequence[Lora]) -> tuple[Mapping[str, Any], ...]:
    """Load LoRAs into a pipeline, all of them active, each with its weight.

    Returns:
        Of each its file, sha256 and weight.

    Raises:
        UsageError: If one is for another base, the pipeline takes none, or the package peft is missing.
        StorageError: If a file is damaged.
    """
    if not loras:
        return ()
    _check_takes_loras(pipe)
    names = [f"lora{place}" for place in range(len(loras))]
    with warnings.catch_warnings(action="ignore"):  # of peft, that there are several
        for name, lora in zip(names, loras, strict=True):
            _add_lora(pipe, name, lora.file)
        pipe.set_adapters(names, adapter_weights=[lora.weight for lora in loras])
    return tuple({"file": lora.file, "sha256": sha256_of(Path(lora.file)), "weight": lora.weight} for lora in loras)


def _check_takes_loras(pipe: Any) -> None:
    from diffusers.utils import USE_PEFT_BACKEND

    if not hasattr(pipe, "load_lora_weights"):
        raise UsageError(f"{type(pipe).__name__} takes no LoRA; expected none")
    if not USE_PEFT_BACKEND:
        raise UsageError("a LoRA needs the package peft: pip install peft")


def _add_lora(pipe: Any, name: str, file: str) -> None:
    """Load one, and check that every layer of it has found its place: diffusers only warns of those that have not."""
    weights = read_weights("LoRA", file)
    other = f"the LoRA {file} is for another base than this {type(pipe).__name__}"
    try:
        found = pipe.lora_state_dict(dict(weights))
        expected = sum(key.endswith(DOWN) for key in (found[0] if isinstance(found, tuple) else found))
        pipe.load_lora_weights(dict(weights), adapter_name=name)
    except Exception as error:  # diffusers and peft raise what they stumble over
        if is_out_of_memory(error):
            raise
        cause = error.__context__ if isinstance(error, KeyError) else error  # diffusers fails once more as it tidies up
        raise UsageError(f"{other}: {first_line(cause or error)}") from error
    placed = sum(_adapted_layers(part, name) for part in pipe.components.values())
    if not placed or placed < expected:
        raise UsageError(f"{other}: {placed} of its {max(expected, 1)} layers have a place in it")


def _adapted_layers(part: Any, name: str) -> int:
    modules = part.modules() if hasattr(part, "modules") else ()
    return sum(name in getattr(module, "lora_A", ()) for module in modules)


def add_embeddings(pipe: Any, embeddings: Sequence[Embedding]) -> tuple[Mapping[str, Any], ...]:
    """Load textual inversions into a pipeline; prompts use them by their tokens.

    Returns:
        Of each its file, sha256 and token.

    Raises:
        UsageError: If one is for another base, the pipeline takes none, or its token is a word already.
        StorageError: If a file is damaged.
    """
    return tuple(_add_embedding(pipe, embedding) for embedding in embeddings)


def _add_embedding(pipe: Any, embedding: Embedding) -> Mapping[str, Any]:
    if not hasattr(pipe, "load_textual_inversion") and "text_encoder_2" not in pipe.components:
        raise UsageError(f"{type(pipe).__name__} takes no textual inversion; expected none")
    file = embedding.file
    weights = read_weights("textual inversion", file)
    token = embedding.token or _token_of(weights, Path(file))
    for key, vectors in weights.items():
        encoder, tokenizer = (getattr(pipe, name, None) for name in XL_PARTS.get(key, XL_PARTS["clip_l"]))
        _check_fits(pipe, file, weights, vectors, encoder)
        try:
            pipe.load_textual_inversion({token: vectors}, token=token, text_encoder=encoder, tokenizer=tokenizer)
        except (ValueError, RuntimeError, AttributeError) as error:
            raise UsageError(
                f"the textual inversion {file} cannot be added as {token!r}: {first_line(error)}"
            ) from error
    return {"file": file, "sha256": sha256_of(Path(file)), "token": token}


def _token_of(weights: Mapping[str, Tensor], file: Path) -> str:
    """The word in the file, as diffusers writes it, else the name of the file."""
    (first, *more) = weights
    named = not more and first not in ("emb_params", *XL_PARTS) and len(first.split()) == 1
    return first if named else "-".join(file.stem.split())


def _check_fits(pipe: Any, file: str, weights: Mapping[str, Tensor], vectors: Tensor, encoder: Any) -> None:
    own = {"clip_l", "clip_g"} if "text_encoder_2" in pipe.components else set[str]()
    parts_fit = set(weights) == own if own else len(weights) == 1
    wide = None if encoder is None else encoder.get_input_embeddings().weight.shape[-1]
    if not parts_fit or vectors.shape[-1] != wide:
        expected = f"one of {wide} numbers" if not own else f"clip_l of {wide} numbers and clip_g"
        came = ", ".join(f"{key} of {value.shape[-1]}" for key, value in list(weights.items())[:3])
        raise UsageError(
            f"the textual inversion {file} is for another base than this {type(pipe).__name__}: expected {expected}, "
            f"got {came}"
        )
