"""What a pipeline's call gets for a prompt: embeddings made once, the text, or rows of embeddings given by hand.

Knows how the families of Stable Diffusion encode text. Knows nothing of seeds or batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sp_rerank.diffusion import twin
from sp_rerank.diffusion.call_arguments import parameters_of

# what encode_prompt of Stable Diffusion 1/2, and of SDXL, returns
EMBEDDINGS = {
    2: ("prompt_embeds", "negative_prompt_embeds"),
    4: ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
}


def encode_text(
    pipe: Any, call: Callable[..., Any], prompt: str, negative_prompt: str | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """A pipeline's text arguments: encoded once where its family is known, the plain strings otherwise.

    Args:
        pipe: Encodes the text.
        call: What takes the arguments.
        prompt: What the images should show.
        negative_prompt: What they should not show.
        arguments: The other arguments of the call.
    """
    plain: dict[str, Any] = {"prompt": prompt}
    takes = parameters_of(call)
    if "negative_prompt" in takes and negative_prompt is not None:
        plain["negative_prompt"] = negative_prompt
    encode: Callable[..., Any] | None = getattr(pipe, "encode_prompt", None)
    # a clip_skip, the scale of a LoRA or a text for another encoder changes the embeddings
    changes = ("clip_skip", "cross_attention_kwargs", "prompt_2", "negative_prompt_2")
    if encode is None or any(map(arguments.get, changes)) or "prompt_attention_mask" in takes:
        return plain
    accepted = parameters_of(encode)
    if "prompt_3" in accepted:  # Stable Diffusion 3 does not repeat embeddings that it is given
        return plain
    if not {"num_images_per_prompt", "do_classifier_free_guidance", "device"} <= set(accepted):
        return plain
    scale = takes.get("guidance_scale")
    guided = scale is not None and arguments.get("guidance_scale", scale.default) > 1
    wanted = {
        **plain,
        **({"prompt_2": None} if "prompt_2" in accepted else {}),
        "device": getattr(pipe, "_execution_device", pipe.device),
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": guided,
    }
    with twin.TOKENIZING:
        encoded = encode(**wanted)
    names = EMBEDDINGS.get(len(encoded), ())
    if not names or not set(names) <= set(takes):
        return plain
    text = {name: value for name, value in zip(names, encoded, strict=True) if value is not None}
    return text if _repeats(encode, wanted, text) else plain


def _repeats(encode: Callable[..., Any], wanted: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether a pipeline repeats embeddings that it is given for each image (CogView 3 does not)."""
    nothing = dict.fromkeys(wanted.keys() & {"prompt", "negative_prompt"})
    try:
        again = encode(**{**wanted, **nothing, **text, "num_images_per_prompt": 2})
    except (TypeError, ValueError, AttributeError):
        return False
    return all(
        value is None or len(value) == 2 * len(text[name])
        for name, value in zip(EMBEDDINGS[len(again)], again, strict=True)
        if name in text
    )


def repeated(value: Any, count: int) -> Any:
    """One row, or one text, `count` times; nothing stays nothing."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        return value.repeat_interleave(count, dim=0)
    return (value if isinstance(value, list) else [value]) * count
