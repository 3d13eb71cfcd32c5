from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.bright_world import make_encoder, make_groups, make_loader

from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train import losses
from sp_rerank.train.data import PairBatch, PairOrder
from sp_rerank.train.encoding import EmbeddingCache, EncodedBatch
from sp_rerank.train.model import freeze
from sp_rerank.train.preferences import PreferenceGroup


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[PreferenceGroup]:
    return make_groups(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def scorer() -> DualEncoder:
    return make_encoder()


def gradients(
    scorer: DualEncoder,
    batch: PairBatch,
    micro_batch_size: int,
    autocast: bool = False,
    frozen: EmbeddingCache | None = None,
) -> dict[str, torch.Tensor]:
    """Of stage 2's loss, whose softmax spans the batch."""
    scorer.zero_grad()
    context = (lambda: torch.autocast("cpu", torch.bfloat16)) if autocast else nullcontext
    encoding = EncodedBatch(scorer, batch, micro_batch_size=micro_batch_size, seed=5, autocast=context, frozen=frozen)
    scale = scorer.clip.logit_scale.exp().detach()
    views, copies = batch.views(encoding.images, encoding.texts)
    gap = views.gap(scale)
    loss = losses.preference_loss(gap, batch.label)
    if copies is not None:
        loss = loss + losses.anti_interference_loss(*losses.distances(views, copies, "score-logit", scale))
    better = losses.better_minus_worse(gap, batch.label)
    total = (losses.softmax_weights(better, better, 1.0) * loss).sum()
    encoding.backward(*torch.autograd.grad(total, [encoding.images, encoding.texts]))
    return {name: p.grad.clone() for name, p in scorer.named_parameters() if p.grad is not None}


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest, as a share of the largest gradient; float32 rounds at 6e-8."""
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs) / largest


@pytest.mark.parametrize("micro_batch_size", [1, 3, 1000])
def test_a_micro_batch_has_the_gradient_of_the_whole(micro_batch_size: int, groups: list[PreferenceGroup]):
    scorer = make_encoder()
    batch = make_loader(groups, scorer, batch_size=6).load(0)
    whole = gradients(scorer, batch, 0)
    assert len(whole) == len(list(scorer.parameters())) - 1  # but for the logit scale
    found = difference(gradients(scorer, batch, micro_batch_size), whole)
    print(f"largest difference {found:.1e} of the largest gradient")
    assert found < 1e-6


@pytest.mark.parametrize("micro_batch_size", [0, 5])
@pytest.mark.parametrize(("trainable_image_blocks", "trainable_text_blocks"), [(-1, 0), (0, -1), (1, 1), (0, 0)])
def test_what_a_frozen_tower_makes_is_made_once(
    groups: list[PreferenceGroup], trainable_image_blocks: int, trainable_text_blocks: int, micro_batch_size: int
):
    scorer = make_encoder()
    freeze(scorer, trainable_image_blocks, trainable_text_blocks)
    frozen, loader = (
        EmbeddingCache(scorer, augment=False),
        make_loader(groups, scorer, batch_size=24, pairs_per_prompt=4),
    )
    encoded = {"image": 0, "text": 0}
    for kind in encoded:
        tower = getattr(scorer.clip, f"encode_{kind}")

        def counted(values: torch.Tensor, kind: str = kind, tower: Any = tower) -> torch.Tensor:
            encoded[kind] += len(values)
            return tower(values)

        setattr(scorer.clip, f"encode_{kind}", counted)
    for step in range(2):
        batch = loader.load(step)
        plain, kept = (gradients(scorer, batch, micro_batch_size, frozen=setting) for setting in (None, frozen))
        assert plain.keys() == kept.keys()
        assert not plain or difference(kept, plain) < 1e-6
    encoded |= {"image": 0, "text": 0}
    gradients(scorer, batch, 0, frozen=frozen)
    copies, images = len(batch.names), len(batch.names)
    assert encoded["image"] == copies + (0 if trainable_image_blocks == 0 else images)
    assert encoded["text"] == (0 if trainable_text_blocks == 0 else len(batch.tokens))


def test_a_frozen_embedding_does_not_depend_on_the_batch_it_was_met_in(groups: list[PreferenceGroup]):
    scorer = make_encoder()
    freeze(scorer, 0, 0)
    small, large = (make_loader(groups, scorer, batch_size=size).load(0) for size in (6, 60))

    def embed(*batches: PairBatch) -> dict[str, torch.Tensor]:
        frozen, made = EmbeddingCache(scorer, augment=False), {}
        for batch in batches:
            encoding = EncodedBatch(scorer, batch, micro_batch_size=0, seed=0, autocast=nullcontext, frozen=frozen)
            made |= dict(zip(batch.names, encoding.images, strict=False))
        return made

    alone, after = embed(large), embed(small, large)
    assert all(torch.equal(alone[name], after[name]) for name in alone)


def test_what_may_change_is_not_kept(groups: list[PreferenceGroup]):
    dropping, whole = make_encoder(dropout=0.3), make_encoder()
    for scorer in (dropping, whole):
        freeze(scorer, 0, 0)
    batch = make_loader(groups, whole).load(0)
    assert EmbeddingCache(whole, augment=False).images(batch, whole.clip.encode_image) is not None
    assert EmbeddingCache(whole, augment=True).images(batch, whole.clip.encode_image) is None
    assert EmbeddingCache(dropping, augment=False).images(batch, dropping.clip.encode_image) is None


def test_the_second_pass_drops_what_the_first_one_dropped(groups: list[PreferenceGroup]):
    scorer = make_encoder(dropout=0.3).train()
    batch = make_loader(groups, scorer, batch_size=6).load(0)
    one_pass, two_passes = gradients(scorer, batch, 0), gradients(scorer, batch, 1000)
    assert difference(two_passes, one_pass) < 1e-6
    assert difference(gradients(scorer.eval(), batch, 0), one_pass) > 0.01


def test_the_gradient_is_that_of_autograd_through_the_whole(groups: list[PreferenceGroup]):
    """Against a plain loop that encodes both images and the text of each pair by themselves."""
    scorer = make_encoder()
    loader = make_loader(groups, scorer, batch_size=6, pairs_per_prompt=3, copies=False)
    batch = loader.load(0)
    ours = gradients(scorer, batch, 2)
    scorer.zero_grad()
    gaps = []
    for group, index in PairOrder(groups, batch_size=6, pairs_per_prompt=3, seed=0).of_step(0):
        pair = groups[group].pairs[index]
        ends = [groups[group].images[i].open() for i in (pair.first, pair.second)]
        first, second = scorer.encode_image(ends) @ scorer.encode_text([groups[group].prompt])[0]
        gaps.append((first - second) * scorer.clip.logit_scale.exp().detach())
    gap = torch.stack(gaps)
    better = losses.better_minus_worse(gap, batch.label)
    (losses.softmax_weights(better, better, 1.0) * losses.preference_loss(gap, batch.label)).sum().backward()
    assert difference(ours, {name: p.grad for name, p in scorer.named_parameters() if p.grad is not None}) < 1e-6


def test_bfloat16_keeps_weights_embeddings_and_gradients_in_float32(groups: list[PreferenceGroup]):
    scorer = make_encoder()
    batch = make_loader(groups, scorer, batch_size=4).load(0)
    found = gradients(scorer, batch, 2, autocast=True)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    whole = torch.cat([gradient.flatten() for gradient in gradients(scorer, batch, 0).values()])
    half = torch.cat([gradient.flatten() for gradient in found.values()])
    assert torch.nn.functional.cosine_similarity(half, whole, dim=0) > 0.98


def test_an_empty_share_goes_through(groups: list[PreferenceGroup]):
    scorer = make_encoder()
    batch = make_loader(groups, scorer, batch_size=1, share=(0, 2)).load(0)
    assert len(batch) == 0
    views, copies = batch.views(torch.empty(0, 16), torch.empty(0, 16))
    assert copies is not None
    assert views.gap(1.0).shape == (0,)
    assert replace(batch, copied=False).views(torch.empty(0, 16), torch.empty(0, 16))[1] is None
    for micro_batch_size in (0, 2):
        encoding = EncodedBatch(scorer, batch, micro_batch_size=micro_batch_size, seed=0, autocast=nullcontext)
        encoding.backward(encoding.images, encoding.texts)
    assert all(p.grad is None for p in scorer.parameters())
