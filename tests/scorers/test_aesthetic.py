import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import image_transform
from parity.difference import difference
from PIL import Image
from torch import nn

from sp_rerank.diffusion.prompt_limits import truncations
from sp_rerank.errors import UsageError
from sp_rerank.scorers.aesthetic import AestheticScorer
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.types import Scorer

WEIGHTS = "diffusion_pytorch_model.safetensors"


def original_head(version: str) -> nn.Module:
    """The heads as their repositories build them, on an embedding of 16."""
    torch.manual_seed(7)
    if version == "v1":
        return nn.Linear(16, 1).eval()
    head = nn.Module()
    head.layers = nn.Sequential(
        nn.Linear(16, 32), nn.Dropout(0.2), nn.Linear(32, 12), nn.Dropout(0.2), nn.Linear(12, 8), nn.Dropout(0.1),
        nn.Linear(8, 4), nn.Linear(4, 1),
    )  # fmt: skip
    head.forward = head.layers.forward
    return head.eval()


def build(clip: DualEncoder, version: str = "v2") -> AestheticScorer:
    state = original_head(version).state_dict()
    return AestheticScorer.from_original(state, clip, name=f"tiny-{version}", source="random weights", license="none")


@pytest.fixture(params=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def scorer(encoder: DualEncoder, version: str) -> AestheticScorer:
    return build(encoder, version)


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_scores_are_those_of_the_originals(
    quick_gelu: bool, version: str, make_encoder: Callable[..., DualEncoder], pictures: Sequence[Image.Image]
):
    ours = build(make_encoder(quick_gelu=quick_gelu), version)
    config = make_encoder().config
    clip = CLIP(16, CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"]), quick_gelu).eval()
    clip.load_state_dict(make_encoder().clip.state_dict())
    transform, head = image_transform(64, is_train=False), original_head(version)
    with torch.no_grad():
        embedded = clip.encode_image(torch.stack([transform(image) for image in pictures]))
        expected = head(embedded / embedded.norm(dim=-1, keepdim=True))[:, 0]
    assert expected.std() > 1e-3
    label = f"aesthetic-{version}{', quick_gelu' if quick_gelu else ''}"
    assert difference(label, "open_clip 3.3 and torch's layers", ours.score("x", pictures), expected) <= 1e-4


def test_it_keeps_the_contract_of_a_scorer(scorer: AestheticScorer):
    check_scorer(scorer)
    assert isinstance(scorer, Scorer)


def test_the_prompt_has_no_influence(scorer: AestheticScorer):
    expected = scorer.score("a lemon", images())
    assert torch.equal(scorer.score("", images()), expected)
    assert torch.equal(scorer.score(list("abcde"), images()), expected)
    with pytest.raises(UsageError, match="got 2 prompts, 5 images"):
        scorer.score(["a", "b"], images())


def test_no_prompt_is_too_long_for_it(scorer: AestheticScorer):
    assert truncations(SimpleNamespace(), scorer, "a lemon " * 1000) == []


def test_only_the_image_that_is_not_finite_has_no_score(scorer: AestheticScorer):
    damaged = images()
    damaged[2, 1, 5, 5] = torch.nan
    scores = scorer.score("x", damaged)
    assert scores.isfinite().tolist() == [True, True, False, True, True]
    torch.testing.assert_close(scores[[0, 1, 3, 4]], scorer.score("x", images())[[0, 1, 3, 4]], rtol=0, atol=1e-5)


def test_many_images_are_scored_in_passes_like_few(encoder: DualEncoder):
    scorer, many = build(encoder), images(70)
    few = torch.cat([scorer.score("x", many[:35]), scorer.score("x", many[35:])])
    torch.testing.assert_close(scorer.score("x", many), few, rtol=0, atol=1e-5)
    assert scorer.score("x", images(0)).shape == scorer.score([], []).shape == (0,)


def test_a_reloaded_scorer_is_the_same(scorer: AestheticScorer, version: str, tmp_path: Path):
    scorer.save_pretrained(tmp_path)
    reloaded = AestheticScorer.from_pretrained(tmp_path)
    assert reloaded.name == scorer.name
    assert reloaded.name.startswith(f"tiny-{version}@")
    assert torch.equal(reloaded.score("x", images()), scorer.score("x", images()))
    keys = safetensors.torch.load_file(tmp_path / WEIGHTS).keys()
    assert {key.split(".")[0] for key in keys} == {"visual", "head"}


def test_tensors_that_do_not_fit_are_an_error(encoder: DualEncoder, tmp_path: Path):
    build(encoder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"hidden_sizes": [32, 12, 8]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"2 unexpected: head\.4\.bias, head\.4\.weight"):
        AestheticScorer.from_pretrained(tmp_path)


def test_weights_get_a_gradient_from_the_call_and_none_from_score(encoder: DualEncoder):
    scorer = build(encoder)
    scorer("x", images()).sum().backward()
    assert all(value.grad is not None for value in scorer.parameters())
    assert not scorer.score("x", images()).requires_grad


def test_half_precision_does_not_round_the_score(encoder: DualEncoder):
    scorer = build(encoder, "v1")
    with torch.no_grad():
        scorer.head[0].bias.fill_(5)
    expected, scores = scorer.score("x", images(40)), scorer.to(dtype=torch.bfloat16).score("x", images(40))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.05)
    assert len(set(scores.tolist())) == 40  # in bfloat16 the scores near 5 are .03 apart


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda head: head.pop("layers.6.bias"), r"missing: layers\.6\.bias"),
        (lambda head: head.update({"layers.9.bias": torch.zeros(1)}), r"unexpected: layers\.9\.bias"),
        (lambda head: head.clear(), r"expected a head with weight and bias"),
        (lambda head: head.update({"layers.0.weight": torch.zeros(32, 768)}), r"layer 0\.weight .*got \(32, 768\)"),
        (lambda head: head.update({"layers.4.weight": torch.zeros(8, 9)}), r"layer 2\.weight .*got \(8, 9\)"),
        (lambda head: head.update({"layers.7.weight": torch.zeros(2, 4)}), r"layer 4\.weight .*got \(2, 4\)"),
    ],
)
def test_another_head_is_refused(change: Callable, fault: str, encoder: DualEncoder):
    state = original_head("v2").state_dict()
    change(state)
    with pytest.raises(UsageError, match=fault):
        AestheticScorer.from_original(state, encoder, name="tiny", source="", license="")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"preprocess": {"size": 32}}, "preprocess size is 32"),
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, "timm_model_name"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(change: dict, fault: str, encoder: DualEncoder):
    config = {key: encoder.config[key] for key in ("name", "embed_dim", "vision_cfg", "quick_gelu", "preprocess")}
    with pytest.raises(UsageError, match=fault):
        AestheticScorer(**(config | {"hidden_sizes": [], "license": "", "source": ""} | change))
