"""What an image file tells of itself: its prompt, in metadata of other tools, ours, or a text beside it; its model.

Knows PNG text, EXIF and how four programs write a prompt. What it does not know, and what is damaged, is no prompt; it
never raises for a file's content. Decodes no pixel. Sources of the layouts:

- AUTOMATIC1111/stable-diffusion-webui, modules/infotext_utils.py: the prompt, "Negative prompt: ..", "Steps: ..",
  in the PNG text "parameters", or in the EXIF UserComment of other formats
- ComfyUI, nodes.py (SaveImage): the graph of nodes as JSON in the PNG text "prompt"; of WebP "prompt:{..}" in EXIF
- InvokeAI: JSON in the PNG text "invokeai_metadata" (from version 3 on), or "sd-metadata" (before)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from sp_rerank.storage.images import FORMATS, PARAMETERS_KEY, RECORD_KEY

MAX_SIDECAR = 1 << 20  # bytes of a text file beside an image

_SETTINGS = re.compile(r"^\s*Steps: \d+, ")
_NEGATIVE = "Negative prompt:"
_TEXTS = ("text", "text_g", "prompt", "positive_prompt", "string", "value", "t5xxl", "clip_l", "text_l")
"""Inputs of a ComfyUI node that hold its text, or a link to the node that does; the first that is there counts."""

_WAYS = ("conditioning", "positive", "conditioning_1", "conditioning_to", "cond")
"""Inputs of a ComfyUI node through which the positive conditioning comes."""


def embedded_prompt(path: Path) -> str | None:
    """The prompt that an image was made for: from the file itself, else from NAME.txt beside it.

    Args:
        path: An image file; one that cannot be read has no prompt of its own.

    Returns:
        The prompt without its negative part and settings; None where none is known.
    """
    texts, comment = _metadata(path)
    for found in _candidates(texts, comment):
        if found and found.strip():
            return found.strip()
    return _sidecar(path)


def embedded_model(path: Path) -> str | None:
    """The diffusers model that made an image of ours; None where the file does not say so."""
    return _member(_metadata(path)[0].get(RECORD_KEY), "model")


def _candidates(texts: Mapping[str, str], comment: str | None) -> Iterator[str | None]:
    """What each known layout makes of a file's metadata."""
    yield _member(texts.get(RECORD_KEY), "prompt")
    yield _infotext(texts.get(PARAMETERS_KEY))
    yield _member(texts.get("invokeai_metadata"), "positive_prompt")
    yield _invoke_2(texts.get("sd-metadata"))
    yield _comfy(texts.get("prompt"))
    yield _infotext(comment)


def _metadata(path: Path) -> tuple[dict[str, str], str | None]:
    """PNG texts, or what stands in EXIF in their place, and the EXIF comment."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            texts = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
            exif = image.getexif()
            for value in dict(exif).values():
                if isinstance(value, str) and value.startswith("prompt:"):
                    texts.setdefault("prompt", value.removeprefix("prompt:"))
            comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except Exception:  # Pillow's parsers raise whatever they trip over in a damaged file
        return {}, None
    return texts, _comment(comment)


def _comment(value: object) -> str | None:
    """The text of an EXIF UserComment: eight bytes name its encoding, but not the order of UTF-16's bytes."""
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return None
    kind, text = value[:8], value[8:]
    if kind == b"UNICODE\0":
        big, little = (text.decode(order, "replace") for order in ("utf-16-be", "utf-16-le"))
        return max(big, little, key=lambda decoded: sum(sign.isascii() for sign in decoded))
    return text.decode("utf-8", "replace") if kind in (b"ASCII\0\0\0", b"\0" * 8) else None


def _infotext(text: str | None) -> str | None:
    """The prompt of AUTOMATIC1111's parameters; None for other programs' JSON under the same name."""
    if not text or _json(text) is not None:
        return None
    lines = text.replace("\0", "").splitlines()
    if lines and _SETTINGS.match(lines[-1]):
        lines.pop()
    end = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    return "\n".join(lines[:end])


def _json(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _member(text: str | None, name: str) -> str | None:
    """A text in a JSON object."""
    value = (_json(text) or {}).get(name)
    return value if isinstance(value, str) else None


def _invoke_2(text: str | None) -> str | None:
    """The prompt of InvokeAI 2: a text, or a list of weighted parts."""
    image = (_json(text) or {}).get("image")
    prompt = image.get("prompt") if isinstance(image, dict) else None
    if isinstance(prompt, list):
        parts = [part.get("prompt") if isinstance(part, dict) else None for part in prompt]
        prompt = parts[0] if len(parts) == 1 else None  # the parts of a blend are no one prompt
    return prompt if isinstance(prompt, str) else None


def _comfy(text: str | None) -> str | None:
    """The prompt of a ComfyUI graph: the text behind the positive conditioning of the image that was saved.

    None where nodes that are not known make the text, or several samplers have several prompts and none is nearest.
    """
    nodes = {name: node for name, node in (_json(text) or {}).items() if isinstance(node, dict)}
    outputs = [name for name, node in nodes.items() if "Save" in str(node.get("class_type"))]
    for name in _upstream(nodes, outputs or list(nodes)):
        inputs = _inputs(nodes, name)
        guided = inputs.get("positive")
        if guided is None and "Guider" in str(nodes[name].get("class_type")):
            guided = inputs.get("conditioning")
        if guided is not None and _linked(nodes, guided):
            return _text_behind(nodes, str(guided[0]), set())
    return None


def _upstream(nodes: Mapping[str, Any], start: list[str]) -> Iterator[str]:
    """Nodes in the order of their distance from the first ones, against the way of the data."""
    waiting, seen = list(start), set(start)
    for name in waiting:  # grows as it is walked
        yield name
        for value in _inputs(nodes, name).values():
            if _linked(nodes, value) and str(value[0]) not in seen:
                seen.add(str(value[0]))
                waiting.append(str(value[0]))


def _text_behind(nodes: Mapping[str, Any], name: str, seen: set[str]) -> str | None:
    """The text that a node passes on, or makes a conditioning of."""
    if name in seen:
        return None
    seen.add(name)
    inputs = _inputs(nodes, name)
    for key in _TEXTS:
        if isinstance(inputs.get(key), str) and inputs[key].strip():
            return inputs[key]
        if _linked(nodes, inputs.get(key)):
            return _text_behind(nodes, str(inputs[key][0]), seen)
    way = next((inputs[key] for key in _WAYS if _linked(nodes, inputs.get(key))), None)
    return None if way is None else _text_behind(nodes, str(way[0]), seen)


def _inputs(nodes: Mapping[str, Any], name: str) -> dict[str, Any]:
    inputs = nodes[name].get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _linked(nodes: Mapping[str, Any], value: Any) -> bool:
    """Whether an input is the output of another node: [name, place]."""
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes


def _sidecar(path: Path) -> str | None:
    """The text of NAME.txt: a prompt, or A1111's parameters."""
    file = path.with_suffix(".txt")
    try:
        if not file.is_file() or file.stat().st_size > MAX_SIDECAR:
            return None
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return None
    return (_infotext(text) or "").strip() or None
