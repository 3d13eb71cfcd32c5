"""The published checkpoints, as data: what each is, where it lies, under which license.

Knows nothing of how a file is opened; importing it imports no model library. Licenses are those that the place named
states, and "unknown" where it states none. Commits are those in which the file is known to lie.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sp_rerank.errors import UsageError

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What open_clip calls its weights on the hub, the better one first."""

_PREFIX = "clip:"
_OWN_TOWERS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}

Form = Literal["open_clip", "siglip", "transformers", "image_reward", "blip_itm", "cycle_reward", "mps", "aesthetic"]


@dataclass(frozen=True, slots=True)
class Published:
    """One published checkpoint.

    Attributes:
        name: what `load_scorer` takes.
        summary: one line for people.
        size: of the file, for people; "" where unknown.
        scale: of the scores; for a dual encoder "cosine" or "logit", for the others what people should know of it.
        license: of the weights.
        form: whose names the tensors bear.
        files: names in the repository, the best first; or the one name that the file has elsewhere.
        repo: of the model hub, "owner/name"; "" where no hub has it.
        revision: 40 hex digits; None is the main branch, and the commit is recorded.
        url: where a person finds the file, if no hub has it.
        architecture: as open_clip names it; of a dual encoder only.
        preprocess: the arguments of `Preprocess`; of a dual encoder only.
        vocabulary: repository and revision of the vocabulary; of BLIP's networks and SigLIP only.
        length: of the file in bytes, where known.
        sha256: of the file, 64 hex digits, where known.
    """

    name: str
    summary: str
    size: str
    scale: str
    license: str
    form: Form
    files: tuple[str, ...]
    repo: str = ""
    revision: str | None = None
    url: str = ""
    architecture: str = ""
    preprocess: dict[str, Any] = field(default_factory=lambda: {"size": 224})
    vocabulary: tuple[str, str | None] | None = None
    length: int | None = None
    sha256: str = ""

    @property
    def folder(self) -> Path:
        """Where its converted form is kept: among the assets of huggingface_hub's cache, a folder a scorer."""
        from huggingface_hub import constants

        # The place that `cached_assets_path` names, which makes the folder: to ask is not to make.
        place = self.name.replace(":", "--").replace("/", "--")
        return Path(constants.HF_ASSETS_CACHE).expanduser() / "sp_rerank" / "scorers" / place

    @property
    def vocabulary_file(self) -> str:
        """What the vocabulary is called in its repository."""
        return "tokenizer.json" if self.form == "siglip" else "vocab.txt"

    def is_converted(self) -> bool:
        """Whether a converted form is in the cache."""
        return (self.folder / "config.json").is_file()

    def is_here(self) -> bool:
        """Whether it can be loaded without a download."""
        if self.is_converted() or not self.repo:
            return self.is_converted()
        from huggingface_hub import try_to_load_from_cache

        wanted = [(self.repo, self.files[0], self.revision)]
        wanted += [(self.vocabulary[0], self.vocabulary_file, self.vocabulary[1])] if self.vocabulary else []
        return all(isinstance(try_to_load_from_cache(repo, file, revision=at), str) for repo, file, at in wanted)


def find(name: str) -> Published | None:
    """The checkpoint of this name: a row of the table, or "clip:ARCH/TAG" for one that open_clip lists.

    Raises:
        UsageError: if open_clip lists no such checkpoint, or it is not of the two towers that it builds itself.
    """
    return _open_clip(name) if name.startswith(_PREFIX) else PUBLISHED.get(name)


def _open_clip(name: str) -> Published:
    """A row for open_clip's own checkpoint; source: open_clip 3.3, `open_clip.pretrained` and its model configs."""
    import open_clip

    architecture, _, tag = name.removeprefix(_PREFIX).partition("/")
    described, released = open_clip.get_model_config(architecture), open_clip.get_pretrained_cfg(architecture, tag)
    if described is None or not released:
        near = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none: no such architecture"
        raise UsageError(f"{name}: expected clip:ARCH/TAG out of open_clip's list; tags of {architecture!r}: {near}")
    if _is_siglip(described):
        return _siglip(name, described, released)
    foreign = sorted(described.keys() - _OWN_TOWERS)
    foreign += sorted(
        key for key in described["vision_cfg"] | described["text_cfg"] if key.startswith(("timm_", "hf_"))
    )
    if foreign:
        raise UsageError(
            f"{name}: expected towers that open_clip builds itself, its architecture asks for {foreign[0]}"
        )
    if (released["interpolation"], released["resize_mode"]) != ("bicubic", "shortest"):
        raise UsageError(
            f"{name}: expected a bicubic resize of the shortest edge, it wants "
            f"{released['interpolation']} and {released['resize_mode']!r}"
        )
    # A checkpoint trained with QuickGELU gives wrong scores with GELU, and open_clip only warns.
    exact = bool(released.get("quick_gelu")) and not described.get("quick_gelu")
    return Published(
        name=name,
        summary=f"{architecture} of open_clip, weights {tag}",
        size="",
        scale="cosine",
        license="MIT" if tag == "openai" else "unknown",
        form="open_clip",
        files=OPEN_CLIP_FILES,
        repo=released["hf_hub"].strip("/"),
        url=released["url"],
        architecture=f"{architecture}-quickgelu" if exact else architecture,
        preprocess={
            "size": described["vision_cfg"]["image_size"],
            "mean": list(released["mean"]),
            "std": list(released["std"]),
        },
    )


def _is_siglip(described: dict[str, Any]) -> bool:
    """Whether an architecture of open_clip's is SigLIP's: a vision transformer of timm's, a text tower of its own."""
    text, trunk = described["text_cfg"], described["vision_cfg"].get("timm_model_name", "")
    return "siglip" in trunk and "hf_model_name" not in text and "hf_tokenizer_name" in text


def _siglip(name: str, described: dict[str, Any], released: dict[str, Any]) -> Published:
    architecture, _, tag = name.removeprefix(_PREFIX).partition("/")
    return Published(
        name=name,
        summary=f"{architecture} of open_clip, weights {tag}",
        size="",
        scale="cosine",
        license="unknown",
        form="siglip",
        files=OPEN_CLIP_FILES,
        repo=released["hf_hub"].strip("/"),
        url=released["url"],
        architecture=architecture,
        preprocess={
            "size": described["vision_cfg"]["image_size"],
            "mean": list(released["mean"]),
            "std": list(released["std"]),
            "geometry": "squash",
        },
        vocabulary=(described["text_cfg"]["hf_tokenizer_name"], None),
    )


PUBLISHED = {
    row.name: row
    for row in (
        Published(
            name="clip-l",
            summary="OpenAI's CLIP ViT-L/14: does the image show the prompt",
            size="1.7 GB",
            scale="cosine",
            license="MIT",
            form="open_clip",
            files=OPEN_CLIP_FILES[:1],
            repo="timm/vit_large_patch14_clip_224.openai",
            revision="18d0535469bb561bf468d76c1d73aa35156c922b",
            architecture="ViT-L-14-quickgelu",
        ),
        Published(
            name="clip-h",
            summary="LAION's CLIP ViT-H/14, trained on LAION-2B",
            size="3.9 GB",
            scale="cosine",
            license="MIT",
            form="open_clip",
            files=OPEN_CLIP_FILES[:1],
            repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            revision="1c2b8495b28150b8a4922ee1c8edee224c284c0c",
            architecture="ViT-H-14",
        ),
        Published(
            name="hps-v1",
            summary="Human Preference Score 1 (Wu et al. 2023, arXiv 2303.14420), from CLIP ViT-L/14",
            size="1.7 GB",
            scale="cosine",
            license="unknown",
            form="open_clip",
            files=("hpc.pt",),
            url="https://github.com/tgxs002/align_sd#human-preference-classifier",
            architecture="ViT-L-14-quickgelu",
        ),
        Published(
            name="hps-v2",
            summary="Human Preference Score 2 (Wu et al. 2023, arXiv 2306.09341), from CLIP ViT-H/14",
            size="2.0 GB",
            scale="cosine",
            license="Apache-2.0",
            form="open_clip",
            files=("HPS_v2_compressed.pt",),
            repo="xswu/HPSv2",
            revision="697403c78157020a1ae59d23f111aa58ced35b0a",
            architecture="ViT-H-14",
            preprocess={"size": 224, "geometry": "longest_edge_pad"},
        ),
        Published(
            name="hps-v2.1",
            summary="Human Preference Score 2.1, the same network trained on better data",
            size="2.0 GB",
            scale="cosine",
            license="Apache-2.0",
            form="open_clip",
            files=("HPS_v2.1_compressed.pt",),
            repo="xswu/HPSv2",
            revision="697403c78157020a1ae59d23f111aa58ced35b0a",
            architecture="ViT-H-14",
            preprocess={"size": 224, "geometry": "longest_edge_pad"},
        ),
        Published(
            name="pickscore",
            summary="PickScore 1 (Kirstain et al. 2023, arXiv 2305.01569), from CLIP ViT-H/14",
            size="3.9 GB",
            scale="logit",
            license="unknown",
            form="transformers",
            files=("model.safetensors",),
            repo="yuvalkirstain/PickScore_v1",
            revision="a4e4367c6dfa7288a00c550414478f865b875800",
            architecture="ViT-H-14",
            preprocess={"size": 224, "crop": "floor"},
        ),
        Published(
            name="image-reward",
            summary="ImageReward 1.0 (Xu et al. 2023, arXiv 2304.05977), from BLIP large",
            size="1.8 GB",
            scale="about -2..2",
            license="Apache-2.0",
            form="image_reward",
            files=("ImageReward.pt",),
            repo="THUDM/ImageReward",
            revision="5736be03b2652728fb87788c9797b0570450ab72",
            vocabulary=("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"),
            length=1786880927,
            sha256="d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6",
        ),
        Published(
            name="blip-itm",
            summary="BLIP large's image-text matching (Li et al. 2022, arXiv 2201.12086), fine-tuned on COCO",
            size="1.8 GB",
            scale="log-odds",
            license="BSD-3-Clause",
            form="blip_itm",
            files=("model.safetensors",),
            repo="Salesforce/blip-itm-large-coco",
            revision="c0273606af96037e7a3b2fb0ff4ae9620b517be6",
            vocabulary=("Salesforce/blip-itm-large-coco", "c0273606af96037e7a3b2fb0ff4ae9620b517be6"),
        ),
        Published(
            name="cycle-reward",
            summary="CycleReward-Combo (Bahng et al. 2025, arXiv 2506.02095), from BLIP large: does image fit text",
            size="1.9 GB",
            scale="its own",
            license="MIT",
            form="cycle_reward",
            files=("CycleReward-Combo.pth",),
            url="https://github.com/hjbahng/cyclereward/releases/tag/v1.0.0",
            vocabulary=("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"),
        ),
        Published(
            name="cycle-reward-t2i",
            summary="CycleReward-T2I, trained on images of one text only",
            size="1.9 GB",
            scale="its own",
            license="MIT",
            form="cycle_reward",
            files=("CycleReward-T2I.pth",),
            url="https://github.com/hjbahng/cyclereward/releases/tag/v1.0.0",
            vocabulary=("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"),
        ),
        Published(
            name="mps",
            summary="Multi-dimensional Preference Score, overall (Zhang et al. 2024, CVPR), from CLIP ViT-H/14",
            size="",
            scale="logit",
            license="unknown",
            form="mps",
            files=("MPS_overall_checkpoint.pth",),
            url="https://github.com/Kwai-Kolors/MPS#download-the-mps-checkpoint",
        ),
        Published(
            name="aesthetic-v1",
            summary="LAION's aesthetic predictor 1, a linear layer on clip-l; ignores the prompt",
            size="4 kB and clip-l",
            scale="about 1..10",
            license="MIT",
            form="aesthetic",
            files=("sa_0_4_vit_l_14_linear.pth",),
            url="https://github.com/LAION-AI/aesthetic-predictor",
        ),
        Published(
            name="aesthetic-v2",
            summary="LAION's improved aesthetic predictor, five layers on clip-l; ignores the prompt",
            size="4 MB and clip-l",
            scale="about 1..10",
            license="unknown",
            form="aesthetic",
            files=("sac+logos+ava1-l14-linearMSE.pth",),
            url="https://github.com/christophschuhmann/improved-aesthetic-predictor",
            length=3714759,
            sha256="21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        ),
    )
}
"""The table, by name."""
