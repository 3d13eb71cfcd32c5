"""LAION's aesthetic predictors: a few linear layers on CLIP's embedding of the image; the prompt is not looked at.

The image tower is open_clip's, as in `clip`; there is no text tower. Knows nothing of names in a registry, of
downloads or of the files that the published weights come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sp_rerank.errors import UsageError
from sp_rerank.scorers.base import PixelScorer, embed, passes
from sp_rerank.scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from sp_rerank.scorers.clip import DualEncoder

_LAYERS_OF_V1 = ("",)
_LAYERS_OF_V2 = ("layers.0.", "layers.2.", "layers.4.", "layers.6.", "layers.7.")
"""How the names of the linear layers begin in the published files; between them v2 has its dropouts."""


class AestheticScorer(PixelScorer, ModelMixin):  # diffusers finds a component's base by its name in this module
    """How much people like the look of an image, whatever it shows; about 1..10.

    Source: v1 is one linear layer (github.com/LAION-AI/aesthetic-predictor, `sa_0_4_vit_l_14_linear.pth`), v2 five
    without activations (github.com/christophschuhmann/improved-aesthetic-predictor,
    `sac+logos+ava1-l14-linearMSE.pth`), both on the L2-normalised image embedding of OpenAI's CLIP ViT-L/14. The
    dropout between the layers of v2 did its work in training and is left out.

    Args:
        name: of the checkpoint, without its hash, for example "aesthetic-v2".
        embed_dim: d, the dimension of the embedding.
        vision_cfg: the fields of open_clip's `CLIPVisionCfg`.
        quick_gelu: whether the activation is OpenAI's approximation, as it is in OpenAI's weights.
        preprocess: `Preprocess.to_dict()`.
        hidden_sizes: outputs of the linear layers but the last, which has one; [] in v1, [1024, 128, 64, 16] in v2.
        license: of the weights.
        source: where the weights come from.

    Raises:
        UsageError: if parts of the configuration contradict each other, or name a network to be downloaded.
    """

    @register_to_config
    def __init__(
        self,
        name: str,
        embed_dim: int,
        vision_cfg: dict[str, Any],
        quick_gelu: bool,
        preprocess: dict[str, Any],
        hidden_sizes: list[int],
        license: str,
        source: str,
    ):
        super().__init__()
        if vision_cfg.get("timm_model_name"):
            raise UsageError(
                f"{name}: expected a tower built from open_clip's own layers, got "
                f"timm_model_name={vision_cfg['timm_model_name']!r}"
            )
        self.preprocess = Preprocess.from_dict(preprocess)
        if self.preprocess.size != vision_cfg["image_size"]:
            raise UsageError(
                f"{name}: preprocess size is {self.preprocess.size}, but vision_cfg image_size is "
                f"{vision_cfg['image_size']}; they must be equal"
            )
        self.visual = _build_vision_tower(embed_dim, CLIPVisionCfg(**vision_cfg), quick_gelu)
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise([embed_dim, *hidden_sizes, 1])))

    @classmethod
    def from_original(
        cls, head_state: dict[str, Tensor], clip: DualEncoder, *, name: str, source: str, license: str
    ) -> Self:
        """Put a published head on a copy of CLIP's image tower.

        Args:
            head_state: the state dict of the published file of v1 or v2, with its own names.
            clip: the CLIP whose embeddings the head was trained on.
            name: of the new scorer, without its hash.
            source: where head and tower come from.
            license: of the weights.

        Raises:
            UsageError: if names or shapes are not those of a head on this CLIP.
        """
        layers = _LAYERS_OF_V1 if "weight" in head_state else _LAYERS_OF_V2
        expected = {f"{layer}{kind}" for layer in layers for kind in ("weight", "bias")}
        if head_state.keys() != expected:
            raise UsageError(
                f"{name}: expected a head with weight and bias, or with those of layers.0, .2, .4, .6 and .7; "
                f"missing: {', '.join(sorted(expected - head_state.keys())) or 'none'}; "
                f"unexpected: {', '.join(sorted(head_state.keys() - expected)[:5]) or 'none'}"
            )
        hidden_sizes = [len(head_state[f"{layer}weight"]) for layer in layers[:-1]]
        config = {key: clip.config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu", "preprocess")}
        scorer = cls(name=name, hidden_sizes=hidden_sizes, license=license, source=source, **config)
        scorer.visual.load_state_dict(clip.clip.visual.state_dict())
        head = {
            f"{i}.{kind}": head_state[f"{layers[i]}{kind}"] for i in range(len(layers)) for kind in ("weight", "bias")
        }
        for key, value in scorer.head.state_dict().items():
            if head[key].shape != value.shape:
                raise UsageError(
                    f"{name}: expected the head's layer {key} with the shape {tuple(value.shape)}, which goes with "
                    f"{clip.config['name']}, got {tuple(head[key].shape)}"
                )
        scorer.head.load_state_dict(head)
        return scorer.eval()

    def encode_image(self, images: Tensor | Sequence[Image.Image], differentiable: bool = False) -> Tensor:
        """Embed images, with a gradient to the weights.

        Args:
            images: (n, 3, H, W) float in [0, 1], or n PIL images of any sizes; preprocessing is done here.
            differentiable: with a gradient to the pixels of a tensor too; see `Preprocess`.

        Returns:
            (n, d) float32 of L2 norm 1, on the module's device.
        """
        pixels = self.preprocess(images, device=self.device, differentiable=differentiable)
        return F.normalize(self.visual(pixels.to(self.dtype)).float(), dim=-1)

    def embed(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """`encode_image` without a gradient, in parts that fit the memory: (n, d) float32 of L2 norm 1, on the CPU."""
        return embed(self.encode_image, images)

    def _score_images(
        self, prompts: list[str], place: list[int], images: Tensor | Sequence[Image.Image], differentiable: bool
    ) -> Tensor:
        scores = torch.cat([self.encode_image(images[part], differentiable) for part in passes(len(images))])
        # In float32 whatever the weights are in: around 5 two neighbors in bfloat16 are .03 apart.
        layers: Any = self.head
        for layer in layers:
            scores = F.linear(scores, layer.weight.float(), layer.bias.float())
        return scores.squeeze(dim=1)
