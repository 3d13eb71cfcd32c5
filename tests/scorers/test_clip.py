import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import image_transform
from PIL import Image

from sp_rerank.errors import SpRerankError, StorageError, UsageError
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.clip import DualEncoder

WEIGHTS = "diffusion_pytorch_model.safetensors"

PROMPTS = {
    "empty": "",
    "plain": "A lemon, wearing Sunglasses on the beach",
    "emoji": "🍋😎 on the 🏖️, naïve café 日本語 &amp; <b>",
    "exactly 77": " ".join(["lemon"] * 75),
    "122": " ".join(["lemon"] * 100 + ["beach"] * 20),
    "5,000 characters": "sunglasses " * 454 + "beach.",
    "one word of 5,000": "a" * 5000,
}


class ScorerPipeline(DiffusionPipeline):
    def __init__(self, scorer: Any):
        super().__init__()
        self.register_modules(scorer=scorer)


@pytest.fixture(scope="module")
def clip_encoder(make_encoder: Callable[..., DualEncoder]) -> DualEncoder:
    """With CLIP's own vocabulary."""
    text_cfg = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    return make_encoder(text_cfg=text_cfg, merges=None)


@pytest.fixture
def saved(encoder: DualEncoder, tmp_path: Path) -> Path:
    encoder.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def images(count: int = 5, edge: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_scores_are_those_of_open_clip(
    quick_gelu: bool, make_encoder: Callable[..., DualEncoder], pictures: list[Image.Image]
):
    text_cfg = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    ours = make_encoder(text_cfg=text_cfg, merges=None, quick_gelu=quick_gelu)
    vision = CLIPVisionCfg(**ours.config["vision_cfg"])
    theirs = CLIP(16, vision, CLIPTextCfg(**text_cfg), quick_gelu=quick_gelu).eval()
    theirs.load_state_dict(ours.clip.state_dict())
    transform = image_transform(64, is_train=False)
    with torch.no_grad():
        embedded = theirs.encode_image(torch.stack([transform(image) for image in pictures]), normalize=True)
        for prompt in PROMPTS.values():
            expected = embedded @ theirs.encode_text(open_clip.tokenize([prompt]), normalize=True)[0]
            torch.testing.assert_close(ours.score(prompt, pictures), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_tokens_are_those_of_open_clip(prompt: str, clip_encoder: DualEncoder):
    assert torch.equal(clip_encoder.tokenize([prompt]), open_clip.tokenize([prompt]))


def test_tokens_are_counted_and_the_lost_tail_is_told(clip_encoder: DualEncoder):
    counts = [clip_encoder.count_tokens(PROMPTS[key]) for key in ("empty", "exactly 77", "122")]
    assert counts == [2, 77, 122]
    assert clip_encoder.lost_tail(PROMPTS["exactly 77"]) == ""
    assert clip_encoder.lost_tail(PROMPTS["exactly 77"] + " beach") == "beach"
    assert clip_encoder.lost_tail(PROMPTS["122"]) == " ".join(["lemon"] * 25 + ["beach"] * 20)


def test_a_vocabulary_of_its_own_is_used(encoder: DualEncoder):
    start, end = 512 + 4, 512 + 5
    assert encoder.tokenize(["Lemon"])[0, :3].tolist() == [start, 512 + 3, end]
    assert encoder.count_tokens("lemons") == 2 + 3  # lemo, n, s</w>
    assert encoder.lost_tail("lemon " * 75 + "beach") == "beach"


def test_it_keeps_the_contract_of_a_scorer(encoder: DualEncoder):
    check_scorer(encoder)


def test_a_logit_is_the_cosine_times_the_learned_scale(make_encoder: Callable[..., DualEncoder]):
    cosine, logit = make_encoder(), make_encoder(score_scale="logit")
    scale = cosine.clip.logit_scale.exp().item()
    torch.testing.assert_close(logit.score("x", images()), cosine.score("x", images()) * scale)


def test_many_images_are_scored_in_passes_like_few(encoder: DualEncoder):
    many = images(130)
    few = torch.cat([encoder.score("lemon", many[start : start + 10]) for start in range(0, 130, 10)])
    torch.testing.assert_close(encoder.score("lemon", many), few, rtol=0, atol=1e-5)


def test_each_distinct_prompt_is_encoded_once(encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch):
    encoded: list[str] = []
    encode = encoder.encode_text
    monkeypatch.setattr(encoder, "encode_text", lambda prompts: (encoded.extend(prompts), encode(prompts))[1])
    scores = encoder.score(["b", "a", "b", "b", "a"], images())
    assert encoded == ["b", "a"]
    expected = torch.stack([encoder.score(text, images())[i] for i, text in enumerate("babba")])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_images_of_different_sizes_are_scored_each_on_its_own(encoder: DualEncoder, pictures: list[Image.Image]):
    alone = torch.cat([encoder.score("x", [picture]) for picture in pictures])
    torch.testing.assert_close(encoder.score("x", pictures), alone, rtol=0, atol=1e-5)


def test_only_the_image_that_is_not_finite_has_no_score(encoder: DualEncoder):
    damaged = images()
    damaged[2, 1, 5, 5] = torch.nan
    scores = encoder.score("x", damaged)
    assert scores.isfinite().tolist() == [True, True, False, True, True]
    torch.testing.assert_close(scores[[0, 1, 3, 4]], encoder.score("x", images())[[0, 1, 3, 4]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same_float32_scores(
    dtype: torch.dtype, make_encoder: Callable[..., DualEncoder]
):
    expected = make_encoder().score("lemon", images())
    scores = make_encoder().to(dtype=dtype).score("lemon", images())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.02)


def test_the_number_of_prompts_must_fit(encoder: DualEncoder):
    with pytest.raises(UsageError, match="got 2 prompts, 5 images"):
        encoder.score(["a", "b"], images())
    assert encoder.score("a", images(0)).shape == encoder.score([], []).shape == (0,)


def test_weights_get_a_gradient_from_the_call_and_none_from_score(encoder: DualEncoder):
    encoder("lemon", images()).sum().backward()
    gradients = {key: value.grad is not None for key, value in encoder.named_parameters()}
    assert [key for key, present in gradients.items() if not present] == ["clip.logit_scale"]
    assert not encoder.score("lemon", images()).requires_grad


def test_embeddings_have_norm_one(encoder: DualEncoder):
    for embedded in (encoder.encode_image(images()), encoder.encode_text(["a", "", "b"])):
        torch.testing.assert_close(embedded.norm(dim=-1), torch.ones(len(embedded)))
        assert embedded.shape[1] == 16
        assert embedded.dtype == torch.float32


def test_a_reloaded_encoder_is_the_same(encoder: DualEncoder, saved: Path):
    reloaded = DualEncoder.from_pretrained(saved)
    digest = hashlib.sha256((saved / WEIGHTS).read_bytes()).hexdigest()
    assert reloaded.name == encoder.name == f"tiny@{digest[:12]}"
    assert not reloaded.training
    assert torch.equal(reloaded.score("Lemon", images()), encoder.score("Lemon", images()))


def test_the_name_follows_the_weights_and_not_their_precision(saved: Path):
    encoder = DualEncoder.from_pretrained(saved)
    name = encoder.name
    assert encoder.to(dtype=torch.float16).name == name
    assert DualEncoder.from_pretrained(saved, torch_dtype=torch.float16).name == name
    trained = DualEncoder.from_pretrained(saved).train()
    with torch.no_grad():
        trained.clip.logit_scale += 1
    assert trained.eval().name != name


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_it_survives_as_a_component_of_a_pipeline(encoder: DualEncoder, tmp_path: Path, variant: str | None):
    ScorerPipeline(encoder).save_pretrained(tmp_path, variant=variant)
    library, name = json.loads((tmp_path / "model_index.json").read_text())["scorer"]
    assert (library, name) == ("sp_rerank.scorers.clip", "DualEncoder")
    pipe: Any = ScorerPipeline.from_pretrained(tmp_path, variant=variant)
    assert isinstance(pipe.scorer, DualEncoder)
    assert pipe.scorer.name == encoder.name


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda tensors: tensors.pop("clip.ln_final.bias"), "1 missing: clip.ln_final.bias"),
        (lambda tensors: tensors.update({"other": torch.zeros(1)}), "1 unexpected: other"),
        (lambda tensors: tensors.update({"clip.ln_final.bias": torch.zeros(8)}), "1 of another shape: clip.ln_final"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(change: Callable, fault: str, saved: Path):
    rewrite(saved, change)
    with pytest.raises(UsageError, match=fault):
        DualEncoder.from_pretrained(saved)


def test_a_truncated_file_is_an_error(saved: Path):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(StorageError, match="damaged"):
        DualEncoder.from_pretrained(saved)


class Exploit:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_pickle_is_not_opened(saved: Path, tmp_path: Path):
    (saved / WEIGHTS).unlink()
    marker = tmp_path / "marker"
    (saved / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Exploit(marker)))
    with pytest.raises(UsageError, match=f"found no {WEIGHTS}"):
        DualEncoder.from_pretrained(saved)
    assert not marker.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', "missing"])
def test_a_configuration_that_describes_nothing_is_an_error(text: str, saved: Path):
    if text == "missing":
        config = json.loads((saved / "config.json").read_text())
        text = json.dumps({key: value for key, value in config.items() if key != "embed_dim"})
    (saved / "config.json").write_text(text)
    with pytest.raises(SpRerankError) as caught:
        DualEncoder.from_pretrained(saved)
    assert caught.value.exit_code in (2, 74)


def test_the_folder_of_another_model_is_refused(saved: Path):
    config = json.loads((saved / "config.json").read_text()) | {"_class_name": "UNet2DConditionModel"}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="is a UNet2DConditionModel's"):
        DualEncoder.from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"preprocess": {"size": 32}}, "preprocess size is 32"),
        ({"merges": None}, "tokens in the vocabulary is 49408"),
        ({"score_scale": "percent"}, "score_scale must be"),
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, "timm_model_name"),
        ({"text_cfg": {"hf_model_name": "somebody/bert"}}, "hf_model_name"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    change: dict, fault: str, make_encoder: Callable[..., DualEncoder]
):
    with pytest.raises(UsageError, match=fault):
        make_encoder(**change)


def test_a_configuration_of_the_old_spelling_is_read(encoder: DualEncoder, tmp_path: Path):
    encoder.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    assert '"license": "none"' in file.read_text()
    file.write_text(file.read_text().replace('"license"', '"licence"'))
    loaded = DualEncoder.from_pretrained(tmp_path)
    assert loaded.config["license"] == "none"
    assert loaded.name == encoder.name
