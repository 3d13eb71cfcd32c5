import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from parity import make_cycle_reward as cycle
from parity import make_image_reward as parity
from parity.difference import as_originals_read, difference
from PIL import Image
from transformers import BlipConfig, BlipForImageTextRetrieval

from sp_rerank.errors import UsageError
from sp_rerank.scorers.blip import BlipScorer, from_original
from sp_rerank.scorers.check import check_scorer
from sp_rerank.scorers.preprocess import Preprocess

GOLDEN = json.loads(parity.GOLDEN.read_text(encoding="utf-8"))
VOCABULARY = GOLDEN["vocabulary"]
PROMPTS = parity.PROMPTS
OF = {"name": "tiny", "source": "random weights", "license": "none", "head_width": parity.HEAD_WIDTH}
EDGE = 64


class ScorerPipeline(DiffusionPipeline):
    def __init__(self, scorer: Any):
        super().__init__()
        self.register_modules(scorer=scorer)


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    return parity.images()


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """ImageReward.pt in a small size, with BLIP's matching head beside it."""
    state = {key: torch.from_numpy(value) for key, value in parity.weights(GOLDEN["shapes"]).items()}
    return state | {GOLDEN["counted_positions"]: torch.arange(40)[None]}


@pytest.fixture(scope="module")
def blip(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BLIP's retrieval checkpoint in a small size, with what else lies in it."""
    state = {key.removeprefix("blip."): value for key, value in published.items() if not key.startswith("mlp.")}
    others = ("visual_encoder_m.cls_token", "vision_proj_m.bias", "image_queue", "ptr_queue", "temp", "text_decoder.x")
    return state | {key: torch.zeros(1) for key in others}


@pytest.fixture
def make_scorer() -> Callable[..., BlipScorer]:
    """The constructor with defaults: images of 64 pixels, patches of 16, two layers, random weights."""

    def make(**changes: Any) -> BlipScorer:
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = vision | {"hidden_size": 16, "encoder_hidden_size": 32, "vocab_size": len(VOCABULARY)}
        settings: dict[str, Any] = {
            "name": "tiny",
            "vision_cfg": vision | {"image_size": EDGE, "patch_size": 16, "layer_norm_eps": 1e-6},
            "text_cfg": text | {"max_position_embeddings": 40},
            "head": "reward",
            "preprocess": {"size": EDGE},
            "max_tokens": 35,
            "vocabulary": VOCABULARY,
            "license": "none",
            "source": "random weights",
        }
        scorer = BlipScorer(**(settings | changes)).eval()
        with torch.no_grad():  # the small initial weights of transformers would leave all scores alike
            generator = torch.Generator().manual_seed(0)
            for value in scorer.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * (1.5 / value.shape[-1] ** 0.5))
        return scorer

    return make


@pytest.fixture
def scorer(make_scorer: Callable[..., BlipScorer]) -> BlipScorer:
    return make_scorer()


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(1))


def scores_of(scorer: BlipScorer, pictures: dict[str, Image.Image]) -> torch.Tensor:
    """(prompts, images)"""
    plain = [as_originals_read(image) for image in pictures.values()]
    return torch.stack([scorer.score(text, plain) for text in PROMPTS.values()])


def test_images_and_prompts_are_those_of_the_golden_file(pictures: dict[str, Image.Image]):
    assert {name: parity.checksum(image) for name, image in pictures.items()} == GOLDEN["images"]
    assert GOLDEN["prompts"] == PROMPTS


def test_rewards_are_those_of_image_reward(published: dict[str, torch.Tensor], pictures: dict[str, Image.Image]):
    scorer = from_original(published, VOCABULARY, head="reward", **OF)
    scores = scores_of(scorer, pictures)
    expected = torch.tensor([list(GOLDEN["reward"][prompt].values()) for prompt in PROMPTS])
    share = difference("image-reward", "image-reward 1.5", scores, expected)
    for name in parity.AS_IT_IS:
        theirs = torch.tensor([GOLDEN["reward_as_it_is"][prompt][name] for prompt in PROMPTS])
        moved = (scores[:, list(pictures).index(name)] - theirs).abs().max() / expected.std()
        print(f"image-reward: {name} as it is: {moved:.1e}")
    assert share <= 1e-4


def test_rewards_are_those_of_cycle_reward(pictures: dict[str, Image.Image]):
    golden = json.loads(cycle.GOLDEN.read_text(encoding="utf-8"))
    state = {key: torch.from_numpy(value) for key, value in parity.weights(golden["shapes"]).items()}
    state[golden["counted_positions"]] = torch.arange(130)[None]
    scorer = from_original(state, golden["vocabulary"], head="cycle", **OF)
    plain = [as_originals_read(image) for image in pictures.values()]
    scores = torch.stack([scorer.score(text, plain) for text in cycle.PROMPTS.values()])
    expected = torch.tensor([list(row.values()) for row in golden["reward"].values()])
    assert scorer.max_tokens == 128
    assert difference("cycle-reward", "cyclereward 0.1.7", scores, expected) <= 1e-4


def test_matching_is_that_of_blip(blip: dict[str, torch.Tensor], pictures: dict[str, Image.Image]):
    scorer = from_original(blip, VOCABULARY, head="itm", **OF)
    assert scorer.preprocess.geometry == "squash"
    # the golden logits are of the same pixels as the golden rewards
    scorer.preprocess = Preprocess(scorer.preprocess.size)
    scores = scores_of(scorer, pictures)
    logits = torch.tensor([list(GOLDEN["matching"][prompt].values()) for prompt in PROMPTS])
    expected = logits[..., 1] - logits[..., 0]
    assert difference("blip-itm", "image-reward 1.5's BLIP, matching head", scores, expected) <= 1e-4
    probability = logits.softmax(-1)[..., 1]
    torch.testing.assert_close(scores.sigmoid(), probability, rtol=0, atol=1e-5)


def test_tokens_are_those_of_image_reward(make_scorer: Callable[..., BlipScorer]):
    ids, mask = make_scorer().tokenize(list(PROMPTS.values()))
    assert ids.tolist() == [GOLDEN["ids"][name] for name in PROMPTS]
    assert torch.equal(mask, (ids != VOCABULARY.index("[PAD]")).long())
    matching, _ = make_scorer(head="itm").tokenize(list(PROMPTS.values()))
    assert set(matching[:, 0].tolist()) == {VOCABULARY.index("[ENC]")}
    assert torch.equal(matching[:, 1:], ids[:, 1:])


def test_matching_is_that_of_transformers():
    """The same tensors by transformers' names, and its own processing of the tokens but for the first."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    vision = text | {"image_size": EDGE, "patch_size": 16, "layer_norm_eps": 1e-6, "initializer_range": 0.5}
    text |= {"vocab_size": len(VOCABULARY), "max_position_embeddings": 40, "initializer_range": 0.3}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8)
    theirs: Any = BlipForImageTextRetrieval(config).eval()
    ours = from_original(theirs.state_dict(), VOCABULARY, head="itm", **OF)
    pixels = ours.preprocess(images())
    for prompt in PROMPTS.values():
        ids, mask = (tokens.expand(5, -1) for tokens in ours.tokenize([prompt]))
        with torch.no_grad():
            logits = theirs(input_ids=ids, pixel_values=pixels, attention_mask=mask).itm_score
        torch.testing.assert_close(ours.score(prompt, images()), logits[:, 1] - logits[:, 0], rtol=0, atol=1e-5)


def test_it_keeps_the_contract_of_a_scorer(make_scorer: Callable[..., BlipScorer]):
    for head in ("reward", "itm"):
        check_scorer(make_scorer(head=head))


def test_tokens_are_counted_and_the_lost_tail_is_told(scorer: BlipScorer):
    counts = [scorer.count_tokens(PROMPTS[key]) for key in ("empty", "exactly 35", "36, the last is lost")]
    assert counts == [2, 35, 36]
    assert scorer.max_tokens == 35
    tails = [scorer.lost_tail(PROMPTS[key]) for key in ("empty", "exactly 35", "36, the last is lost", "cut in a word")]
    assert tails == ["", "", "beach", "s sunglasses"]
    assert scorer.lost_tail("Naïve " * 33 + " , A Café!  ") == ", A Café!"
    assert scorer.count_tokens(PROMPTS["5,000 characters"]) == 458


def test_padding_does_not_move_the_score(make_scorer: Callable[..., BlipScorer]):
    short, long = make_scorer(max_tokens=8), make_scorer(max_tokens=40)
    torch.testing.assert_close(short.score("a lemon", images()), long.score("a lemon", images()), rtol=0, atol=1e-5)


def test_the_prompt_matters(scorer: BlipScorer):
    assert (scorer.score("a lemon", images()) - scorer.score("two cats", images())).abs().max() > 1e-3


def test_each_image_and_each_distinct_prompt_is_read_once(scorer: BlipScorer, monkeypatch: pytest.MonkeyPatch):
    seen, read = [], []
    tower, tokenize = scorer.vision_model.forward, scorer.tokenize
    monkeypatch.setattr(scorer.vision_model, "forward", lambda pixels: (seen.append(len(pixels)), tower(pixels))[1])
    monkeypatch.setattr(scorer, "tokenize", lambda prompts: (read.extend(prompts), tokenize(prompts))[1])
    scores = scorer.score(["b", "a"] * 35, images(70))
    assert (seen, read) == ([64, 6], ["b", "a"])
    few = torch.stack([scorer.score(text, images(70)[i : i + 1])[0] for i, text in ((0, "b"), (69, "a"))])
    torch.testing.assert_close(scores[[0, 69]], few, rtol=0, atol=1e-5)


def test_images_of_different_sizes_are_scored_each_on_its_own(scorer: BlipScorer, pictures: dict[str, Image.Image]):
    alone = torch.cat([scorer.score("a lemon", [picture]) for picture in pictures.values()])
    torch.testing.assert_close(scorer.score("a lemon", list(pictures.values())), alone, rtol=0, atol=1e-5)


def test_only_the_image_that_is_not_finite_has_no_score(scorer: BlipScorer):
    damaged = images()
    damaged[2, 1, 5, 5] = torch.nan
    scores = scorer.score("a lemon", damaged)
    assert scores.isfinite().tolist() == [True, True, False, True, True]
    torch.testing.assert_close(scores[[0, 1, 3, 4]], scorer.score("a lemon", images())[[0, 1, 3, 4]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_same_float32_scores(dtype: torch.dtype, scorer: BlipScorer):
    expected = scorer.score("a lemon", images())
    scores = scorer.to(dtype=dtype).score("a lemon", images())
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.to(dtype).float())  # more digits than a half has
    torch.testing.assert_close(scores, expected, rtol=0, atol=0.05)


def test_the_number_of_prompts_must_fit(scorer: BlipScorer):
    with pytest.raises(UsageError, match="got 2 prompts, 5 images"):
        scorer.score(["a", "b"], images())
    assert scorer.score("a", images(0)).shape == scorer.score([], []).shape == (0,)


def test_all_weights_get_a_gradient_from_the_call_and_none_from_score(scorer: BlipScorer):
    scorer("a lemon", images()).sum().backward()
    assert [key for key, value in scorer.named_parameters() if value.grad is None] == []
    assert not scorer.score("a lemon", images()).requires_grad


def test_a_reloaded_scorer_is_the_same(published: dict[str, torch.Tensor], tmp_path: Path):
    scorer = from_original(published, VOCABULARY, head="reward", **OF)
    scorer.save_pretrained(tmp_path)
    reloaded = BlipScorer.from_pretrained(tmp_path)
    digest = hashlib.sha256((tmp_path / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert reloaded.name == scorer.name == f"tiny@{digest[:12]}"
    assert not reloaded.training
    assert torch.equal(reloaded.score("A Lemon", images()), scorer.score("A Lemon", images()))


def test_it_loads_in_half_precision(scorer: BlipScorer, tmp_path: Path):
    scorer.save_pretrained(tmp_path)
    half = BlipScorer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {value.dtype for value in half.state_dict().values()} == {torch.bfloat16}
    assert half.name == scorer.name
    expected = scorer.to(dtype=torch.bfloat16).score("a lemon", images())
    torch.testing.assert_close(half.score("a lemon", images()), expected, rtol=0, atol=1e-5)


def test_it_survives_as_a_component_of_a_pipeline(scorer: BlipScorer, tmp_path: Path):
    ScorerPipeline(scorer).save_pretrained(tmp_path)
    pipe: Any = ScorerPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe.scorer, BlipScorer)
    assert pipe.scorer.name == scorer.name


def test_the_stored_precision_is_kept(published: dict[str, torch.Tensor]):
    half = {key: value.half() if value.is_floating_point() else value for key, value in published.items()}
    scorer = from_original(half, VOCABULARY, head="reward", **OF)
    assert {value.dtype for value in scorer.state_dict().values()} == {torch.float16}
    assert scorer.score("a lemon", images()).isfinite().all()


def test_the_published_size_has_the_original_names_and_shapes():
    state = {key: torch.empty(shape, device="meta") for key, shape in GOLDEN["full_shapes"].items()}
    vocabulary = [*VOCABULARY, *(f"piece{i}" for i in range(30524 - len(VOCABULARY)))]
    scorer = from_original(state, vocabulary, head="reward", name="image-reward", source="none", license="none")
    vision, text = scorer.config["vision_cfg"], scorer.config["text_cfg"]
    assert (vision["image_size"], vision["patch_size"], vision["num_attention_heads"]) == (224, 16, 16)
    assert (vision["num_hidden_layers"], text["num_hidden_layers"], text["num_attention_heads"]) == (24, 12, 12)
    assert sum(value.numel() for value in scorer.parameters()) == 446_206_689


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s.pop("blip.visual_encoder.norm.bias"), "1 missing: vision_model.post_layernorm.bias"),
        (lambda s: s.pop("mlp.layers.7.bias"), "1 missing: score_head.4.bias"),
        (lambda s: s.update({"blip.other": torch.zeros(1)}), "1 unexpected: other"),
        (lambda s: s.update({"mlp.layers.7.bias": torch.zeros(2)}), r"1 of another shape: score_head.4.bias \(2,\) "),
        (lambda s: s.pop("blip.visual_encoder.pos_embed"), "position_embedding of 3 dimensions, found no such tensor"),
        (lambda s: s.update({"blip.visual_encoder.pos_embed": torch.zeros(7)}), r"found one of shape \(7,\)"),
        (lambda s: s.clear(), "expected a BLIP checkpoint"),
    ],
)
def test_tensors_that_do_not_fit_are_an_error(change: Callable, fault: str, published: dict[str, torch.Tensor]):
    state = dict(published)
    change(state)
    with pytest.raises(UsageError, match=fault):
        from_original(state, VOCABULARY, head="reward", **OF)


def test_the_checkpoint_of_the_other_head_is_refused(published: dict[str, torch.Tensor], blip: dict):
    with pytest.raises(UsageError, match=r"10 missing: score_head.0.bias"):
        from_original(blip, VOCABULARY, head="reward", **OF)
    with pytest.raises(UsageError, match=r"10 unexpected: mlp.layers.0.bias"):
        from_original(published, VOCABULARY, head="itm", **OF)
    with pytest.raises(UsageError, match="expected a head out of reward, cycle, itm, got 'other'"):
        from_original(published, VOCABULARY, head="other", **OF)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"preprocess": {"size": 32}}, "preprocess size is 32"),
        ({"vocabulary": [*VOCABULARY, "more"]}, "tokens in the vocabulary is"),
        ({"vocabulary": [*VOCABULARY[:-1], "more"]}, r"found no \[ENC\]"),
        ({"vocabulary": [*VOCABULARY[:-3], "lemon", *VOCABULARY[-2:]]}, "1 of them repeat"),
        ({"max_tokens": 41}, "expected max_tokens in 2..40, got 41"),
        ({"head": "other"}, "expected a head"),
        ({"vision_cfg": {"layers": 2}}, "expected fields of BlipVisionConfig, got layers"),
        ({"text_cfg": {"heads": 2}}, "expected fields of BlipTextConfig, got heads"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    change: dict, fault: str, make_scorer: Callable[..., BlipScorer]
):
    with pytest.raises(UsageError, match=fault):
        make_scorer(**change)
