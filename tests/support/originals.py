"""The published scorers as their own repositories run them, from an image file to a score, small and random.

Each original is a function that writes its checkpoint in the published form and gives back what scores a file for a
prompt: the file opened by Pillow, the original's own preprocessing, its own network. Nothing here is of sp_rerank.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch
from parity.make_image_reward import VOCABULARY, weights
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import functional as torchvision
from torchvision.transforms.functional import InterpolationMode
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
)

from support.tiny import build_tokenizer

Original = Callable[[str, Path], float]
"""The score of an image file for a prompt."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BICUBIC = InterpolationMode.BICUBIC
EDGE = 224

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": EDGE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def randomize(network: nn.Module) -> None:
    """Weights large enough that scores differ between images and prompts."""
    torch.manual_seed(0)
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.6 if "embedding" in key else 1.5 * weight[0].numel() ** -0.5)
            elif "logit_scale" not in key:
                weight.add_(0.2 * torch.randn_like(weight))


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


CLIP_TRANSFORM = transforms.Compose([
    transforms.Resize(EDGE, interpolation=BICUBIC),
    transforms.CenterCrop(EDGE),
    _rgb,
    transforms.ToTensor(),
    transforms.Normalize(MEAN, STD),
])
"""openai/CLIP, clip/clip.py, `_transform`; image-reward 1.5, utils.py, has the same."""


def _horizontal_first(image: Image.Image) -> Image.Image:
    """Pillow until 12 resized the columns last always; 13 turns the order for tall images."""
    return image.resize((EDGE, image.height), Image.Resampling.BICUBIC)


BLIP_TRANSFORM = transforms.Compose([
    _rgb,
    _horizontal_first,
    transforms.Resize((EDGE, EDGE), interpolation=BICUBIC),
    transforms.ToTensor(),
    transforms.Normalize(MEAN, STD),
])
"""salesforce/BLIP, data/__init__.py, `transform_test`."""


def hps_transform(image: Image.Image, size: int = EDGE, *, antialias: bool = True) -> Tensor:
    """The order of operations of hpsv2x 1.2.0, src/open_clip/transform.py, written with torchvision's functions."""
    tensor = torchvision.to_tensor(image.convert("RGB"))
    scale = size / float(max(image.size))
    height, width = (round(edge * scale) for edge in tensor.shape[1:])
    tensor = torchvision.resize(tensor, [height, width], BICUBIC, antialias=antialias)
    down, right = size - height, size - width
    tensor = torchvision.pad(tensor, [right // 2, down // 2, right - right // 2, down - down // 2])
    return torchvision.normalize(tensor, list(MEAN), list(STD))


def _register() -> None:
    """Both small networks, once a process: every test finds them, whichever ran before."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-parity-"))
    for name, quick_gelu in (("tiny-parity-quickgelu", True), ("tiny-parity-gelu", False)):
        (folder / f"{name}.json").write_text(json.dumps(TINY_CLIP | {"quick_gelu": quick_gelu}))
    open_clip.add_model_config(folder)


_register()


def _open_clip(_folder: Path, *, quick_gelu: bool) -> tuple[Any, Any]:
    """A small network of open_clip's and the transform that comes with it, by the names that its factory knows."""
    name = f"tiny-parity-{'quickgelu' if quick_gelu else 'gelu'}"
    network, _, transform = open_clip.create_model_and_transforms(name, pretrained=None)
    randomize(network)
    return network.eval(), transform


def _cosine(network: Any, transform: Any) -> Original:
    """The example of open_clip's README, of openai/CLIP's and of tgxs002/align_sd's."""

    @torch.no_grad()
    def score(prompt: str, file: Path) -> float:
        image = network.encode_image(transform(Image.open(file))[None])
        text = network.encode_text(open_clip.tokenize([prompt]))
        image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
        return (image @ text.T).item()

    return score


def clip_of_open_clip(file: Path, *, quick_gelu: bool) -> Original:
    """clip-l and clip-h: open_clip's network and the transform of its own factory."""
    network, transform = _open_clip(file.parent, quick_gelu=quick_gelu)
    safetensors.torch.save_file(network.state_dict(), file)
    return _cosine(network, transform)


def hps_v1(file: Path) -> Original:
    """tgxs002/align_sd: openai/CLIP's transform and network, the weights under "state_dict"."""
    network, _ = _open_clip(file.parent, quick_gelu=True)
    torch.save({"state_dict": network.state_dict()}, file)
    return _cosine(network, CLIP_TRANSFORM)


def hps_v2(file: Path) -> Original:
    """hpsv2x 1.2.0, img_score.py: the diagonal of image features times text features."""
    network, _ = _open_clip(file.parent, quick_gelu=False)
    torch.save({"state_dict": network.state_dict()}, file)
    return _cosine(network, hps_transform)


def pick_score(file: Path) -> Original:
    """The example of yuvalkirstain/PickScore's README: one processor for image and text."""
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"hidden_act": "gelu", "projection_dim": 16}
    network = CLIPModel(
        CLIPConfig(
            text_config={**tower, "vocab_size": 49408},
            vision_config={**tower, "image_size": EDGE, "patch_size": 32},
            projection_dim=16,
        )
    ).eval()
    randomize(network)
    network.save_pretrained(file.parent)
    processor: Any = CLIPProcessor(CLIPImageProcessorPil(), build_tokenizer())
    rules = {"padding": True, "truncation": True, "max_length": 77, "return_tensors": "pt"}

    @torch.no_grad()
    def score(prompt: str, image: Path) -> float:
        inputs = processor(images=Image.open(image), text=prompt, **rules)
        return network(**inputs).logits_per_image.item()

    return score


def _tokenizer(file: Path) -> Any:
    """BERT's, with a small vocabulary beside the checkpoint, and BLIP's two tokens."""
    beside = file.with_name("vocab.txt")
    beside.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    tokenizer: Any = BertTokenizer(vocab={token: place for place, token in enumerate(VOCABULARY)})
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    return tokenizer


def _words(tokenizer: Any, prompt: str, count: int = 35) -> Any:
    return tokenizer(prompt, padding="max_length", truncation=True, max_length=count, return_tensors="pt")


def blip_itm(file: Path) -> Original:
    """salesforce/BLIP, train_retrieval.py and blip_retrieval.py, on transformers' network: the text begins with [ENC].

    The published file bears transformers' names. The log-odds of a match.
    """
    tokenizer = _tokenizer(file)
    text = {"hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 1, "num_hidden_layers": 2}
    vision = text | {"hidden_size": 128, "num_attention_heads": 2, "image_size": EDGE, "patch_size": 32}
    text |= {"vocab_size": len(tokenizer), "encoder_hidden_size": 128, "max_position_embeddings": 40}
    config = BlipConfig(text_config=text, vision_config=vision | {"layer_norm_eps": 1e-6}, image_text_hidden_size=8)
    network: Any = BlipForImageTextRetrieval(config).eval()
    randomize(network)
    network.save_pretrained(file.parent)

    @torch.no_grad()
    def score(prompt: str, image: Path) -> float:
        words = _words(tokenizer, prompt)
        words.input_ids[:, 0] = tokenizer.convert_tokens_to_ids("[ENC]")
        pixels = BLIP_TRANSFORM(Image.open(image))[None]
        logits = network(input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=pixels).itm_score
        return (logits[0, 1] - logits[0, 0]).item()

    return score


def image_reward(file: Path) -> Original:
    """image-reward 1.5, ImageReward.py, `score`: the text begins with [CLS], its first token is read."""
    tokenizer = _tokenizer(file)
    state = {key: torch.from_numpy(value) for key, value in weights(reward_shapes(len(tokenizer))).items()}
    torch.save(state | {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}, file)
    blip = {key.removeprefix("blip."): value for key, value in state.items()}

    def score(prompt: str, image: Path) -> float:
        words = _words(tokenizer, prompt)
        seen = look(blip, CLIP_TRANSFORM(Image.open(image))[None])
        features = read(blip, words.input_ids, words.attention_mask, seen)[:, 0]
        return reward(state, features).item()

    return score


def cycle_reward(file: Path) -> Original:
    """cyclereward 0.1.7, model.py, `score`: ImageReward's network, 128 tokens, GELU between the layers of the head."""
    tokenizer = _tokenizer(file)
    shapes = reward_shapes(len(tokenizer))
    shapes |= {"blip.text_encoder.embeddings.position_embeddings.weight": [130, 64]}
    shapes = {key.replace("layers.7.", "layers.8."): shape for key, shape in shapes.items()}
    state = {key: torch.from_numpy(value) for key, value in weights(shapes).items()}
    torch.save(state | {"blip.text_proj.weight": torch.zeros(8, 64)}, file)
    blip = {key.removeprefix("blip."): value for key, value in state.items()}

    def score(prompt: str, image: Path) -> float:
        words = _words(tokenizer, prompt, 128)
        seen = look(blip, CLIP_TRANSFORM(Image.open(image))[None])
        features = read(blip, words.input_ids, words.attention_mask, seen)[:, 0]
        for layer in (0, 2, 4, 6):
            features = F.gelu(_linear(state, f"mlp.layers.{layer}", features))
        return _linear(state, "mlp.layers.8", features).item()

    return score


def reward(state: dict[str, Tensor], features: Tensor) -> Tensor:
    """ImageReward's head, (n,): five linear layers, then its mean and deviation on the training set."""
    for layer in (0, 2, 4, 6, 7):
        features = _linear(state, f"mlp.layers.{layer}", features)
    return (features[:, 0] - 0.16717362830052426) / 1.0333394966054072


def reward_shapes(tokens: int, width: int = 128, text_width: int = 64) -> dict[str, list[int]]:
    """Names and shapes of ImageReward.pt, two layers deep."""
    norm = {"weight": [1], "bias": [1]}
    vision = {"cls_token": [1, 1, width], "pos_embed": [1, 50, width], "patch_embed.proj.bias": [width]}
    vision |= {"patch_embed.proj.weight": [width, 3, 32, 32], "norm.weight": [width], "norm.bias": [width]}
    text: dict[str, list[int]] = {
        "embeddings.word_embeddings.weight": [tokens, text_width],
        "embeddings.position_embeddings.weight": [40, text_width],
    }
    text |= {f"embeddings.LayerNorm.{kind}": [text_width] for kind in norm}
    for layer in range(2):
        block, whole = f"blocks.{layer}.", f"encoder.layer.{layer}."
        for name, (out, into) in {
            "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (96, width), "mlp.fc2": (width, 96),
        }.items():  # fmt: skip
            vision |= {f"{block}{name}.weight": [out, into], f"{block}{name}.bias": [out]}
        vision |= {f"{block}norm{number}.{kind}": [width] for number in (1, 2) for kind in norm}
        layers = {"intermediate.dense": (80, text_width), "output.dense": (text_width, 80)}
        for attention, source in (("attention", text_width), ("crossattention", width)):
            layers |= {f"{attention}.self.query": (text_width, text_width)}
            layers |= {f"{attention}.self.{name}": (text_width, source) for name in ("key", "value")}
            layers |= {f"{attention}.output.dense": (text_width, text_width)}
            text |= {f"{whole}{attention}.output.LayerNorm.{kind}": [text_width] for kind in norm}
        text |= {f"{whole}output.LayerNorm.{kind}": [text_width] for kind in norm}
        for name, (out, into) in layers.items():
            text |= {f"{whole}{name}.weight": [out, into], f"{whole}{name}.bias": [out]}
    widths = {0: (1024, text_width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    head = {f"mlp.layers.{place}.weight": [*shape] for place, shape in widths.items()}
    head |= {f"mlp.layers.{place}.bias": [shape[0]] for place, shape in widths.items()}
    named = {f"blip.visual_encoder.{key}": shape for key, shape in vision.items()}
    return named | {f"blip.text_encoder.{key}": shape for key, shape in text.items()} | head


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: dict[str, Tensor], name: str, x: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention of (n, tokens, width)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    weight = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return (weight @ v).transpose(1, 2).flatten(2)


def look(state: dict[str, Tensor], pixels: Tensor, head_width: int = 64) -> Tensor:
    """BLIP's vision tower by its own names, (n, 1 + patches, width): Dosovitskiy et al. 2020, pre-norm, exact GELU."""
    kernel = state["visual_encoder.patch_embed.proj.weight"]
    patches = F.conv2d(pixels, kernel, state["visual_encoder.patch_embed.proj.bias"], stride=kernel.shape[-1])
    x = torch.cat([state["visual_encoder.cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], dim=1)
    x = x + state["visual_encoder.pos_embed"]
    for layer in range(sum(key.endswith("attn.qkv.weight") for key in state)):
        block = f"visual_encoder.blocks.{layer}"
        q, k, v = _linear(state, f"{block}.attn.qkv", _norm(state, f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + _linear(state, f"{block}.attn.proj", _attend(q, k, v, x.shape[-1] // head_width))
        inner = F.gelu(_linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(state, f"{block}.mlp.fc2", inner)
    return _norm(state, "visual_encoder.norm", x, 1e-6)


def read(state: dict[str, Tensor], ids: Tensor, mask: Tensor, seen: Tensor, head_width: int = 64) -> Tensor:
    """BLIP's text tower by its own names, (n, tokens, width): BERT (post-norm) with attention to the image."""
    embeddings = "text_encoder.embeddings"
    x = state[f"{embeddings}.word_embeddings.weight"][ids]
    x = x + state[f"{embeddings}.position_embeddings.weight"][: ids.shape[1]]
    x = _norm(state, f"{embeddings}.LayerNorm", x, 1e-12)
    hidden = torch.where(mask.bool(), 0.0, -10_000.0)[:, None, None]
    for layer in range(sum(key.endswith("crossattention.self.query.weight") for key in state)):
        whole = f"text_encoder.encoder.layer.{layer}"
        for attention, source, bias in (("attention", None, hidden), ("crossattention", seen, 0.0)):
            place = f"{whole}.{attention}"
            of = x if source is None else source
            q = _linear(state, f"{place}.self.query", x)
            k, v = (_linear(state, f"{place}.self.{name}", of) for name in ("key", "value"))
            out = _linear(state, f"{place}.output.dense", _attend(q, k, v, x.shape[-1] // head_width, bias))
            x = _norm(state, f"{place}.output.LayerNorm", out + x, 1e-12)
        inner = F.gelu(_linear(state, f"{whole}.intermediate.dense", x))
        x = _norm(state, f"{whole}.output.LayerNorm", _linear(state, f"{whole}.output.dense", inner) + x, 1e-12)
    return x


def aesthetic(file: Path, *, clip: Path, version: int) -> Original:
    """LAION's notebook for version 1, improved-aesthetic-predictor's simple_inference.py for version 2.

    Args:
        file: where the head is written.
        clip: where the CLIP that it stands on is written, as `clip_of_open_clip` does.
        version: 1 takes open_clip's transform, 2 openai/CLIP's.
    """
    network, transform = _open_clip(clip.parent, quick_gelu=True)
    safetensors.torch.save_file(network.state_dict(), clip)
    torch.manual_seed(1)
    if version == 1:
        head: nn.Module = nn.Linear(16, 1)
        layers: Sequence[nn.Module] = [head]
    else:
        head, transform = nn.Module(), CLIP_TRANSFORM
        head.layers = nn.Sequential(
            nn.Linear(16, 32), nn.Dropout(0.2), nn.Linear(32, 12), nn.Dropout(0.2), nn.Linear(12, 8), nn.Dropout(0.1),
            nn.Linear(8, 4), nn.Linear(4, 1),
        )  # fmt: skip
        layers = list(head.layers)
    torch.save(head.eval().state_dict(), file)

    @torch.no_grad()
    def score(prompt: str, image: Path) -> float:
        embedded = network.encode_image(transform(Image.open(image))[None]).numpy()
        x = torch.from_numpy(embedded / np.linalg.norm(embedded, 2, -1, keepdims=True))
        for layer in layers:
            x = layer(x)
        return x.item()

    return score
