"""A vision-language model of transformers, and a question to it about images. The examples 05 and 06 use it.

`load("Qwen/Qwen2-VL-2B-Instruct")` takes a real one, from the hub or a folder. Without a name a tiny one with random
weights is built here: it shows the way and knows nothing. transformers is a dependency of sp-rerank already.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass
class VisionLanguage:
    """A model with its processor."""

    model: Any
    processor: Any

    @torch.no_grad()
    def ask(self, question: str, images: Sequence[Image.Image]) -> Any:
        """What the model makes of a question about images: its outputs at the place where the answer begins."""
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=[text], images=list(images), return_tensors="pt").to(self.model.device)
        return self.model(**inputs, output_hidden_states=True)

    def probabilities(self, question: str, images: Sequence[Image.Image], answers: Sequence[str]) -> Tensor:
        """Of the answers' first tokens, among all tokens: float32 on the CPU."""
        chance = self.ask(question, images).logits[0, -1].float().softmax(dim=-1).cpu()
        first = [self.processor.tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in answers]
        return chance[first]


def load(name: str | None = None, device: str = "cpu") -> VisionLanguage:
    """A model by its name or folder; a tiny random one without."""
    if name is None:
        with tempfile.TemporaryDirectory() as folder:
            _write_tiny(Path(folder))
            return load(folder, device)
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").to(device).eval()
    return VisionLanguage(model, AutoProcessor.from_pretrained(name))


def _write_tiny(folder: Path) -> None:
    """Qwen2-VL's layout with two layers and a vocabulary of bytes."""
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import (
        Qwen2Tokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    vocabulary = {letter: place for place, letter in enumerate([*bytes_to_unicode().values(), *SPECIAL])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token=SPECIAL[0], unk_token=SPECIAL[0])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": len(vocabulary), "max_position_embeddings": 4096}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    places = {f"{name}_token_id": vocabulary[f"<|{token}|>"] for name, token in (
        ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end")
    )}  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **places))
    with torch.no_grad():  # the small initial weights would leave all answers alike
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1.5 * weight[0].numel() ** -0.5)
    model.save_pretrained(folder)
    sizes = {"min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes), chat_template=TEMPLATE
    ).save_pretrained(folder)
