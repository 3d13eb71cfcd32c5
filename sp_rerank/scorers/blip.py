"""BLIP as a scorer, a text encoder that looks at the image through cross-attention: ImageReward and text matching.

The towers are transformers' own BLIP classes, the file layout diffusers' (config.json beside one safetensors file);
which of the two heads reads the first token is data in the configuration. Knows nothing of names in a registry, of
downloads, or of how a published file is opened.
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
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from sp_rerank.errors import UsageError
from sp_rerank.scorers.base import PixelScorer, check_tensors, checked_config, passes, shapes_of
from sp_rerank.scorers.preprocess import Preprocess

ADDED_TOKENS = ("[DEC]", "[ENC]")
"""What BLIP appends to the vocabulary of bert-base-uncased, in this order."""

_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_HEAD_WIDTHS = {"reward": (1024, 128, 64, 16, 1), "itm": (2,), "cycle": (1024, 128, 64, 16, 1)}
_GEOMETRY = {"reward": "center_crop", "itm": "squash", "cycle": "center_crop"}
_FIRST_TOKEN = {"reward": "[CLS]", "itm": "[ENC]", "cycle": "[CLS]"}
_MAX_TOKENS = {"reward": 35, "itm": 35, "cycle": 128}

# image-reward 1.5, ImageReward.py: of the rewards on its training set.
_REWARD_MEAN = 0.16717362830052426
_REWARD_STD = 1.0333394966054072


class BlipScorer(PixelScorer, ModelMixin):  # diffusers finds a component's base by its name in this module
    """An image encoder, and a text encoder that attends to it; the score is read off the text's first token.

    - "reward": five linear layers without activations, then (x - mean) / std; higher is preferred, about -2..2. The
      text begins with [CLS].
    - "itm": image-text matching, the log-odds that the text describes the image: the "match" logit less the other, so
      its sigmoid is the probability that BLIP's demonstration prints, and the order is that of the probability. (BLIP's
      retrieval evaluation adds the "match" logit alone to a cosine; training by cross-entropy fixes only the
      difference.) The text begins with [ENC], as in BLIP's training and retrieval evaluation; its demonstration and
      transformers' processor leave [CLS] there, with which the head was not trained.
    - "cycle": five linear layers with GELU between them, not normalized; higher is better aligned. The text begins with
      [CLS].

    Source: Xu et al. 2023, arXiv 2304.05977, image-reward 1.5; Li et al. 2022, arXiv 2201.12086, salesforce/BLIP,
    models/blip_retrieval.py and train_retrieval.py; Bahng et al. 2025, arXiv 2506.02095, cyclereward 0.1.7.

    Args:
        name: of the checkpoint, without its hash, for example "image-reward".
        vision_cfg: fields of transformers' `BlipVisionConfig`.
        text_cfg: fields of transformers' `BlipTextConfig`.
        head: "reward", "itm" or "cycle".
        preprocess: `Preprocess.to_dict()`.
        max_tokens: after which a prompt is cut, start and end included.
        vocabulary: the word pieces, those of bert-base-uncased (lower case) followed by [DEC] and [ENC].
        license: of the weights.
        source: where the weights come from.

    Raises:
        UsageError: if parts of the configuration contradict each other.
    """

    @register_to_config
    def __init__(
        self,
        name: str,
        vision_cfg: dict[str, Any],
        text_cfg: dict[str, Any],
        head: str,
        preprocess: dict[str, Any],
        max_tokens: int,
        vocabulary: list[str],
        license: str,
        source: str,
    ):
        super().__init__()
        if head not in _HEAD_WIDTHS:
            raise UsageError(f"{name}: expected a head out of {', '.join(_HEAD_WIDTHS)}, got {head!r}")
        vision: Any = checked_config(BlipVisionConfig, vision_cfg)
        text: Any = checked_config(BlipTextConfig, text_cfg)
        self.preprocess = Preprocess.from_dict(preprocess)
        _check_consistency(name, vision, text, self.preprocess, max_tokens, vocabulary)
        self.tokenizer = build_tokenizer(vocabulary)
        self.vision_model = BlipVisionModel(vision)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        widths = (text.hidden_size, *_HEAD_WIDTHS[head])
        self.score_head = nn.Sequential(*map(nn.Linear, widths[:-1], widths[1:]))

    @property
    def max_tokens(self) -> int:
        """After which a prompt is cut, start and end included."""
        return self.config["max_tokens"]

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask of m prompts, padded to `max_tokens`; a long prompt loses its tail.

        Returns:
            (m, max_tokens) int64 on the CPU, twice: start, word pieces, end, padding; 1 where there is no padding.
        """
        padding: Any = self.tokenizer.token_to_id("[PAD]")
        first: Any = self.tokenizer.token_to_id(_FIRST_TOKEN[self.config["head"]])
        ids = torch.full((len(prompts), self.max_tokens), padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            whole = self.tokenizer.encode(prompt).ids
            kept = [first, *whole[1:-1][: self.max_tokens - 2], whole[-1]]
            ids[row, : len(kept)] = torch.tensor(kept)
            mask[row, : len(kept)] = 1
        return ids, mask

    def count_tokens(self, prompt: str) -> int:
        """How many tokens the whole prompt needs, start and end included."""
        return len(self.tokenizer.encode(prompt).ids)

    def lost_tail(self, prompt: str) -> str:
        """The end of the prompt that the model does not see, as it was written; "" if all is seen."""
        whole = self.tokenizer.encode(prompt)
        if len(whole.ids) <= self.max_tokens:
            return ""
        return prompt[whole.offsets[self.max_tokens - 1][0] :].strip()

    def _score_images(
        self, prompts: list[str], place: list[int], images: Tensor | Sequence[Image.Image], differentiable: bool
    ) -> Tensor:
        ids, mask = (tokens[place].to(self.device) for tokens in self.tokenize(prompts))
        return torch.cat([
            self._score_pairs(ids[part], mask[part], images[part], differentiable) for part in passes(len(images))
        ])

    def _score_pairs(
        self, ids: Tensor, mask: Tensor, images: Tensor | Sequence[Image.Image], differentiable: bool
    ) -> Tensor:
        """Scores of n texts, each with the image in its place: (n,) float32."""
        pixels = self.preprocess(images, device=self.device, differentiable=differentiable).to(self.dtype)
        seen = self.vision_model(pixels).last_hidden_state
        read = self.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        features = read[:, 0].float()
        # In float32 whatever the weights: a score in half precision has so few digits that images would tie.
        layers: Any = self.score_head
        head = self.config["head"]
        for place, layer in enumerate(layers):
            features = F.gelu(features) if head == "cycle" and place else features
            features = F.linear(features, layer.weight.float(), layer.bias.float())
        if head == "itm":
            return features[:, 1] - features[:, 0]
        return (features[:, 0] - _REWARD_MEAN) / _REWARD_STD if head == "reward" else features[:, 0]


def build_tokenizer(vocabulary: Sequence[str]) -> BertWordPieceTokenizer:
    """BERT's word-piece tokenizer (lower case, without accents) with BLIP's two tokens, which stand in the vocabulary.

    Raises:
        UsageError: if a special token is missing, or a word piece is there twice.
    """
    missing = [token for token in (*_BERT_TOKENS, *ADDED_TOKENS) if token not in vocabulary]
    if missing:
        raise UsageError(f"vocabulary: expected BERT's special tokens and BLIP's, found no {', '.join(missing)}")
    places = {token: index for index, token in enumerate(vocabulary)}
    if len(places) != len(vocabulary):
        raise UsageError(f"vocabulary: expected distinct word pieces, {len(vocabulary) - len(places)} of them repeat")
    tokenizer = BertWordPieceTokenizer(places)
    tokenizer.add_special_tokens(list(ADDED_TOKENS))
    return tokenizer


def _check_consistency(
    name: str, vision: Any, text: Any, preprocess: Preprocess, max_tokens: int, vocabulary: Sequence[str]
) -> None:
    expectations = (
        ("preprocess size", preprocess.size, "vision_cfg image_size", vision.image_size),
        ("text_cfg encoder_hidden_size", text.encoder_hidden_size, "vision_cfg hidden_size", vision.hidden_size),
        ("text_cfg vocab_size", text.vocab_size, "tokens in the vocabulary", len(vocabulary)),
    )
    for left, a, right, b in expectations:
        if a != b:
            raise UsageError(f"{name}: {left} is {a}, but {right} is {b}; they must be equal")
    if not 2 <= max_tokens <= text.max_position_embeddings:
        raise UsageError(f"{name}: expected max_tokens in 2..{text.max_position_embeddings}, got {max_tokens}")


# Vision names of timm's style, as in ImageReward.pt and BLIP's own files, to transformers'; then the heads of both.
_RENAMED = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
)
_HEADS_RENAMED = {
    # Dropouts have the numbers between.
    "reward": {f"mlp.layers.{theirs}.": f"score_head.{ours}." for ours, theirs in enumerate((0, 2, 4, 6, 7))},
    # And GELUs have them here.
    "cycle": {f"mlp.layers.{theirs}.": f"score_head.{ours}." for ours, theirs in enumerate((0, 2, 4, 6, 8))},
    "itm": {"itm_head.": "score_head.0."},
}

# What else lies in these files: the heads of the contrastive loss, momentum copies, queues, the caption decoder, and a
# buffer of counted positions.
_DROPPED = re.compile(
    r"(vision_proj|text_proj)(_m)?\..*|(visual_encoder|text_encoder)_m\..*|text_decoder\..*"
    r"|(image|text|idx|ptr)_queue|queue_ptr|temp|text_encoder\.embeddings\.position_ids"
)


def from_original(
    state: dict[str, Tensor],
    vocabulary: Sequence[str],
    *,
    head: str,
    name: str,
    source: str,
    license: str,
    head_width: int = 64,
) -> BlipScorer:
    """A scorer out of the tensors of a published checkpoint, in the precision in which they are stored.

    Key names may be those of ImageReward.pt (for "reward"), of CycleReward's files (for "cycle"), of BLIP's own files
    or of transformers' `BlipForImageTextRetrieval` (for "itm"). All sizes are read off the shapes. The vision tower's
    layer norms have epsilon 1e-6, with which BLIP was trained; the configurations of its transformers ports say 1e-5.
    ImageReward and CycleReward crop a rectangle, BLIP's own evaluation squeezes it into the square.

    Args:
        state: tensors by their published names; it is not changed, and the scorer shares its memory.
        vocabulary: the word pieces, BLIP's two tokens included.
        head: "reward", "itm" or "cycle".
        name: of the scorer.
        source: where the weights come from.
        license: of the weights.
        head_width: of one attention head in both towers; no shape tells it.

    Raises:
        UsageError: if a key is missing or unknown, or a tensor has another shape than the others call for.
    """
    tensors = _renamed(state, head, name)
    vision_cfg, text_cfg = _sizes(tensors, head_width, name)
    with init_empty_weights(include_buffers=False):
        scorer: Any = BlipScorer(
            name=name,
            vision_cfg=vision_cfg,
            text_cfg=text_cfg,
            head=head,
            preprocess=Preprocess(vision_cfg["image_size"], geometry=_GEOMETRY[head]).to_dict(),
            max_tokens=_MAX_TOKENS[head],
            vocabulary=list(vocabulary),
            license=license,
            source=source,
        )
    check_tensors(shapes_of(tensors), shapes_of(scorer.state_dict()), name, "of a BLIP checkpoint with this head")
    scorer.load_state_dict(tensors, assign=True)
    return scorer.eval()


def _renamed(state: dict[str, Tensor], head: str, name: str) -> dict[str, Tensor]:
    """The tensors that are used, under our names; keys that are not known keep theirs."""
    if head not in _HEADS_RENAMED:
        raise UsageError(f"{name}: expected a head out of {', '.join(_HEADS_RENAMED)}, got {head!r}")
    renamed = {}
    for key, value in state.items():
        known = key.removeprefix("blip.")
        if _DROPPED.fullmatch(known) or (head != "itm" and known.startswith("itm_head.")):
            continue
        for pattern, ours in _RENAMED:
            known = re.sub(pattern, ours, known)
        for theirs, ours in _HEADS_RENAMED[head].items():
            known = ours + known.removeprefix(theirs) if known.startswith(theirs) else known
        renamed[known] = value
    return renamed


def _sizes(tensors: dict[str, Tensor], head_width: int, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """vision_cfg and text_cfg, read off the shapes."""

    def shape(key: str, rank: int) -> tuple[int, ...]:
        if key not in tensors or tensors[key].ndim != rank:
            found = f"one of shape {tuple(tensors[key].shape)}" if key in tensors else "no such tensor"
            raise UsageError(f"{name}: expected a BLIP checkpoint with {key} of {rank} dimensions, found {found}")
        return tuple(tensors[key].shape)

    def layers(ending: str) -> int:
        return sum(key.endswith(ending) for key in tensors)

    width, _, patch, _ = shape("vision_model.embeddings.patch_embedding.weight", 4)
    positions = shape("vision_model.embeddings.position_embedding", 3)[1]
    tokens, text_width = shape("text_encoder.embeddings.word_embeddings.weight", 2)
    vision_cfg = {
        "hidden_size": width,
        "intermediate_size": shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": layers(".layer_norm1.weight"),
        "num_attention_heads": width // head_width,
        "image_size": patch * round((positions - 1) ** 0.5),
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }
    text_cfg = {
        "vocab_size": tokens,
        "hidden_size": text_width,
        "encoder_hidden_size": width,
        "intermediate_size": shape("text_encoder.encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": layers(".crossattention.self.query.weight"),
        "num_attention_heads": text_width // head_width,
        "max_position_embeddings": shape("text_encoder.embeddings.position_embeddings.weight", 2)[0],
    }
    return vision_cfg, text_cfg
