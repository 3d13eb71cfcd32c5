from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.bright_world import make_encoder, make_groups

from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train import losses
from sp_rerank.train.batches import Batch, Encoding, Frozen, Loader, PairOrder
from sp_rerank.train.model import freeze
from sp_rerank.train.preferences import ImageReader, PreferenceGroup


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[PreferenceGroup]:
    return make_groups(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def scorer() -> DualEncoder:
    return make_encoder()


def make_loader(groups: list[PreferenceGroup], scorer: DualEncoder, total: int | None = None, **changes: Any) -> Loader:
    order = PairOrder(groups, batch=changes.pop("batch", 8), together=changes.pop("together", 1), seed=0)
    settings: dict[str, Any] = {"seed": 0, "copies": True, "augment": False, "crop_from": 0.9, "flip_chance": 1.0}
    return Loader(groups, order, scorer, ImageReader(total), **(settings | changes))


def places_of(order: PairOrder, steps: int) -> list[tuple[int, int]]:
    return [place for step in range(steps) for place in order.of_step(step)]


@pytest.mark.parametrize("together", [1, 4])
def test_every_pair_comes_once_an_epoch(together: int, groups: list[PreferenceGroup]):
    order = PairOrder(groups, batch=12, together=together, seed=0)
    assert len(order) == 60
    first, second = places_of(order, 5), places_of(order, 10)[60:]
    assert set(Counter(first).values()) == set(Counter(second).values()) == {1}
    assert len(set(first)) == 60
    assert first != second


def test_the_order_depends_on_seed_and_step_alone(groups: list[PreferenceGroup]):
    order, again = (PairOrder(groups, batch=7, together=3, seed=1) for _ in range(2))
    expected = [order.of_step(step) for step in range(20)]
    assert [again.of_step(step) for step in reversed(range(20))] == expected[::-1]
    assert PairOrder(groups, batch=7, together=3, seed=2).of_step(0) != expected[0]


def test_a_batch_larger_than_an_epoch_goes_on_into_the_next(groups: list[PreferenceGroup]):
    assert Counter(Counter(PairOrder(groups, batch=150, together=1, seed=0).of_step(0)).values()) == {2: 30, 3: 30}


def test_pairs_that_come_together_share_images(groups: list[PreferenceGroup]):
    """Ten pairs of five images are a whole group; drawn apart they are of nearly twenty images."""

    def images(together: int) -> int:
        places = PairOrder(groups, batch=10, together=together, seed=0).of_step(0)
        pairs = [(group, groups[group].pairs[pair]) for group, pair in places]
        return len({(group, image) for group, pair in pairs for image in (pair.first, pair.second)})

    assert images(10) == 5
    assert images(1) > 12


def test_ties_can_be_left_out(groups: list[PreferenceGroup]):
    assert len(PairOrder(groups, batch=1, together=1, seed=0, ties=False)) == 54
    tied = [PreferenceGroup.ranked("x", groups[0].images[:3], (1, 1, 1))]
    assert len(PairOrder(tied, batch=1, together=1, seed=0)) == 3
    with pytest.raises(UsageError, match="of which one is better"):
        PairOrder(tied, batch=1, together=1, seed=0, ties=False)
    with pytest.raises(UsageError, match="at least one pair of images to"):
        PairOrder([], batch=1, together=1, seed=0)


def test_a_batch_holds_each_image_and_prompt_once(groups: list[PreferenceGroup], scorer: DualEncoder):
    batch = make_loader(groups, scorer, batch=20, together=10).load(0)
    assert len(batch) == 20
    assert len(batch.names) == len(set(batch.names)) == 10
    assert batch.pixels.shape == (2 * 10, 3, 32, 32)
    assert len(batch.tokens) == 2
    chosen = [groups[group].pairs[pair] for group, pair in PairOrder(groups, batch=20, together=10, seed=0).of_step(0)]
    assert batch.label.tolist() == [pair.label for pair in chosen]


def test_pixels_are_the_scorer_s_own_preprocessing(groups: list[PreferenceGroup], scorer: DualEncoder):
    loader = make_loader(groups, scorer)
    batch = loader.load(3)
    for place, (group, index) in enumerate(PairOrder(groups, batch=8, together=1, seed=0).of_step(3)):
        pair = groups[group].pairs[index]
        for end, image in ((batch.first, pair.first), (batch.second, pair.second)):
            expected = scorer.preprocess([groups[group].images[image].open()])
            assert torch.equal(batch.pixels[end[place]], expected[0])
        assert torch.equal(batch.tokens[batch.prompt[place]], scorer.tokenize([groups[group].prompt])[0])


def test_a_copy_may_be_what_the_image_looked_like_on_its_way(tmp_path: Path, scorer: DualEncoder):
    groups = make_groups(tmp_path)
    seen = groups[0].images[0].path
    for k, shade in enumerate((10, 240), start=1):
        Image.new("RGB", (32, 32), (shade,) * 3).save(seen.with_name(f"{seen.stem}.preview-{k}.png"))
    assert [source.path.stem for source in groups[0].images[0].previews()] == [
        f"{seen.stem}.preview-{k}" for k in (1, 2)
    ]
    assert not groups[0].images[1].previews()

    def copies(step: int, **how: float) -> dict[str, torch.Tensor]:
        batch = make_loader(groups, scorer, batch=60, **how).load(step)
        return dict(zip(batch.names, batch.pixels[len(batch.names) :], strict=True))

    drawn = [copies(step, preview_chance=1.0) for step in range(8)]
    spread = {name: [one[name].std(dim=(1, 2)).max().item() for one in drawn] for name in drawn[0]}
    assert max(spread.pop(str(seen))) < 1e-6, "one shade all over"
    assert len({one[str(seen)].mean().item() for one in drawn}) == 2, "each of the two is drawn sooner or later"
    assert spread and min(min(one) for one in spread.values()) > 0.1, "an image without previews is perturbed as ever"
    assert copies(0)[str(seen)].std(dim=(1, 2)).max() > 0.1


def test_copies_are_drawn_anew_each_step_and_the_same_for_a_seed(groups: list[PreferenceGroup], scorer: DualEncoder):
    one = [PreferenceGroup(groups[0].prompt, groups[0].images[:2], groups[0].pairs[:1])]
    loader, again, other = (make_loader(one, scorer, batch=1, seed=seed, crop_from=0.3) for seed in (0, 0, 1))
    first, second = loader.load(0).pixels, loader.load(1).pixels
    assert torch.equal(first[:2], second[:2])
    assert not torch.equal(first[2:], second[2:])
    assert torch.equal(again.load(1).pixels, second)
    assert not torch.equal(other.load(1).pixels[2:], second[2:])


def test_augmentation_changes_the_images_themselves(groups: list[PreferenceGroup], scorer: DualEncoder):
    plain = make_loader(groups, scorer, copies=False).load(0)
    augmented = make_loader(groups, scorer, copies=False, augment=True).load(0)
    assert plain.names == augmented.names
    assert plain.pixels.shape == augmented.pixels.shape == (len(plain.names), 3, 32, 32)
    assert not torch.equal(plain.pixels, augmented.pixels)
    still = make_loader(groups, scorer, copies=False, augment=True, crop_from=1.0, flip_chance=0.0).load(0)
    assert torch.equal(still.pixels, plain.pixels)


def test_processes_share_a_step_s_pairs_and_see_what_one_would(groups: list[PreferenceGroup], scorer: DualEncoder):
    whole = make_loader(groups, scorer, batch=7).load(2)
    parts = [make_loader(groups, scorer, batch=7, share=(index, 3)).load(2) for index in range(3)]
    assert sum(len(part) for part in parts) == 7
    assert torch.cat([part.label for part in parts]).equal(whole.label)
    for end in ("first", "second"):
        pieces = [part.pixels[getattr(part, end)] for part in parts]
        assert torch.equal(torch.cat(pieces), whole.pixels[getattr(whole, end)])
        copies = [part.pixels[getattr(part, end) + len(part.names)] for part in parts]
        assert torch.equal(torch.cat(copies), whole.pixels[getattr(whole, end) + len(whole.names)])


def test_batches_come_in_order_and_are_those_of_their_steps(groups: list[PreferenceGroup], scorer: DualEncoder):
    loader = make_loader(groups, scorer)
    steps = list(loader.batches(4, 7))
    assert [step for step, _ in steps] == [4, 5, 6]
    assert all(torch.equal(batch.pixels, loader.load(step).pixels) for step, batch in steps)
    assert list(loader.batches(3, 3)) == []


def test_an_image_that_cannot_be_read_takes_its_pairs_with_it(tmp_path: Path, scorer: DualEncoder):
    groups = make_groups(tmp_path, prompts=2, images=4)
    bad = groups[0].images[1]
    bad.path.write_bytes(b"no picture")
    loader = make_loader(groups, scorer, batch=12)
    batch = loader.load(0)
    assert len(batch) == 12 - 3
    assert bad.name not in batch.names
    assert list(loader._reader.skipped) == [bad.name]
    with pytest.raises(NothingUsableError, match="1 of 8 images"):
        list(make_loader(groups, scorer, total=8, batch=12).batches(0, 1))
    alone = [PreferenceGroup("x", groups[0].images[:2], groups[0].pairs[:1])]
    empty = make_loader(alone, scorer, batch=3).load(0)
    assert (len(empty), empty.pixels.shape, empty.tokens.shape) == (0, (0, 3, 32, 32), (0, 16))


def gradients(
    scorer: DualEncoder, batch: Batch, micro_batch: int, autocast: bool = False, frozen: Frozen | None = None
) -> dict[str, torch.Tensor]:
    """Of stage 2's loss, whose softmax spans the batch."""
    scorer.zero_grad()
    context = (lambda: torch.autocast("cpu", torch.bfloat16)) if autocast else nullcontext
    encoding = Encoding(scorer, batch, micro_batch=micro_batch, seed=5, autocast=context, frozen=frozen)
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


@pytest.mark.parametrize("micro_batch", [1, 3, 1000])
def test_a_micro_batch_has_the_gradient_of_the_whole(micro_batch: int, groups: list[PreferenceGroup]):
    scorer = make_encoder()
    batch = make_loader(groups, scorer, batch=6).load(0)
    whole = gradients(scorer, batch, 0)
    assert len(whole) == len(list(scorer.parameters())) - 1  # but for the logit scale
    found = difference(gradients(scorer, batch, micro_batch), whole)
    print(f"largest difference {found:.1e} of the largest gradient")
    assert found < 1e-6


@pytest.mark.parametrize("micro_batch", [0, 5])
@pytest.mark.parametrize(("image_blocks", "text_blocks"), [(-1, 0), (0, -1), (1, 1), (0, 0)])
def test_what_a_frozen_tower_makes_is_made_once(
    groups: list[PreferenceGroup], image_blocks: int, text_blocks: int, micro_batch: int
):
    scorer = make_encoder()
    freeze(scorer, image_blocks, text_blocks)
    frozen, loader = Frozen(scorer, augment=False), make_loader(groups, scorer, batch=24, together=4)
    encoded = {"image": 0, "text": 0}
    for kind in encoded:
        tower = getattr(scorer.clip, f"encode_{kind}")

        def counted(values: torch.Tensor, kind: str = kind, tower: Any = tower) -> torch.Tensor:
            encoded[kind] += len(values)
            return tower(values)

        setattr(scorer.clip, f"encode_{kind}", counted)
    for step in range(2):
        batch = loader.load(step)
        plain, kept = (gradients(scorer, batch, micro_batch, frozen=one) for one in (None, frozen))
        assert plain.keys() == kept.keys()
        assert not plain or difference(kept, plain) < 1e-6
    encoded |= {"image": 0, "text": 0}
    gradients(scorer, batch, 0, frozen=frozen)
    copies, images = len(batch.names), len(batch.names)
    assert encoded["image"] == copies + (0 if image_blocks == 0 else images)
    assert encoded["text"] == (0 if text_blocks == 0 else len(batch.tokens))


def test_a_frozen_embedding_does_not_depend_on_the_batch_it_was_met_in(groups: list[PreferenceGroup]):
    scorer = make_encoder()
    freeze(scorer, 0, 0)
    small, large = (make_loader(groups, scorer, batch=size).load(0) for size in (6, 60))

    def embed(*batches: Batch) -> dict[str, torch.Tensor]:
        frozen, made = Frozen(scorer, augment=False), {}
        for batch in batches:
            encoding = Encoding(scorer, batch, micro_batch=0, seed=0, autocast=nullcontext, frozen=frozen)
            made |= dict(zip(batch.names, encoding.images, strict=False))
        return made

    alone, after = embed(large), embed(small, large)
    assert all(torch.equal(alone[name], after[name]) for name in alone)


def test_what_may_change_is_not_kept(groups: list[PreferenceGroup]):
    dropping, whole = make_encoder(dropout=0.3), make_encoder()
    for scorer in (dropping, whole):
        freeze(scorer, 0, 0)
    batch = make_loader(groups, whole).load(0)
    assert Frozen(whole, augment=False).images(batch, whole.clip.encode_image) is not None
    assert Frozen(whole, augment=True).images(batch, whole.clip.encode_image) is None
    assert Frozen(dropping, augment=False).images(batch, dropping.clip.encode_image) is None


def test_the_second_pass_drops_what_the_first_one_dropped(groups: list[PreferenceGroup]):
    scorer = make_encoder(dropout=0.3).train()
    batch = make_loader(groups, scorer, batch=6).load(0)
    one_pass, two_passes = gradients(scorer, batch, 0), gradients(scorer, batch, 1000)
    assert difference(two_passes, one_pass) < 1e-6
    assert difference(gradients(scorer.eval(), batch, 0), one_pass) > 0.01


def test_the_gradient_is_that_of_autograd_through_the_whole(groups: list[PreferenceGroup]):
    """Against a plain loop that encodes both images and the text of each pair by themselves."""
    scorer = make_encoder()
    loader = make_loader(groups, scorer, batch=6, together=3, copies=False)
    batch = loader.load(0)
    ours = gradients(scorer, batch, 2)
    scorer.zero_grad()
    gaps = []
    for group, index in PairOrder(groups, batch=6, together=3, seed=0).of_step(0):
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
    batch = make_loader(groups, scorer, batch=4).load(0)
    found = gradients(scorer, batch, 2, autocast=True)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    whole = torch.cat([gradient.flatten() for gradient in gradients(scorer, batch, 0).values()])
    half = torch.cat([gradient.flatten() for gradient in found.values()])
    assert torch.nn.functional.cosine_similarity(half, whole, dim=0) > 0.98


def test_an_empty_share_goes_through(groups: list[PreferenceGroup]):
    scorer = make_encoder()
    batch = make_loader(groups, scorer, batch=1, share=(0, 2)).load(0)
    assert len(batch) == 0
    views, copies = batch.views(torch.empty(0, 16), torch.empty(0, 16))
    assert copies is not None
    assert views.gap(1.0).shape == (0,)
    assert replace(batch, copied=False).views(torch.empty(0, 16), torch.empty(0, 16))[1] is None
    for micro_batch in (0, 2):
        encoding = Encoding(scorer, batch, micro_batch=micro_batch, seed=0, autocast=nullcontext)
        encoding.backward(encoding.images, encoding.texts)
    assert all(p.grad is None for p in scorer.parameters())
