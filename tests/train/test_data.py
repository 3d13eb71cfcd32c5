from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.bright_world import make_encoder, make_groups, make_loader

from sp_rerank.errors import NothingUsableError, UsageError
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train.data import PairOrder
from sp_rerank.train.preferences import PreferenceGroup


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[PreferenceGroup]:
    return make_groups(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def scorer() -> DualEncoder:
    return make_encoder()


def places_of(order: PairOrder, steps: int) -> list[tuple[int, int]]:
    return [place for step in range(steps) for place in order.of_step(step)]


@pytest.mark.parametrize("together", [1, 4])
def test_every_pair_comes_once_an_epoch(together: int, groups: list[PreferenceGroup]):
    order = PairOrder(groups, batch_size=12, pairs_per_prompt=together, seed=0)
    assert len(order) == 60
    first, second = places_of(order, 5), places_of(order, 10)[60:]
    assert set(Counter(first).values()) == set(Counter(second).values()) == {1}
    assert len(set(first)) == 60
    assert first != second


def test_the_order_depends_on_seed_and_step_alone(groups: list[PreferenceGroup]):
    order, again = (PairOrder(groups, batch_size=7, pairs_per_prompt=3, seed=1) for _ in range(2))
    expected = [order.of_step(step) for step in range(20)]
    assert [again.of_step(step) for step in reversed(range(20))] == expected[::-1]
    assert PairOrder(groups, batch_size=7, pairs_per_prompt=3, seed=2).of_step(0) != expected[0]


def test_a_batch_larger_than_an_epoch_goes_on_into_the_next(groups: list[PreferenceGroup]):
    assert Counter(Counter(PairOrder(groups, batch_size=150, pairs_per_prompt=1, seed=0).of_step(0)).values()) == {
        2: 30,
        3: 30,
    }


def test_pairs_that_come_together_share_images(groups: list[PreferenceGroup]):
    """Ten pairs of five images are a whole group; drawn apart they are of nearly twenty images."""

    def images(together: int) -> int:
        places = PairOrder(groups, batch_size=10, pairs_per_prompt=together, seed=0).of_step(0)
        pairs = [(group, groups[group].pairs[pair]) for group, pair in places]
        return len({(group, image) for group, pair in pairs for image in (pair.first, pair.second)})

    assert images(10) == 5
    assert images(1) > 12


def test_ties_can_be_left_out(groups: list[PreferenceGroup]):
    assert len(PairOrder(groups, batch_size=1, pairs_per_prompt=1, seed=0, include_ties=False)) == 54
    tied = [PreferenceGroup.ranked("x", groups[0].images[:3], (1, 1, 1))]
    assert len(PairOrder(tied, batch_size=1, pairs_per_prompt=1, seed=0)) == 3
    with pytest.raises(UsageError, match="of which one is better"):
        PairOrder(tied, batch_size=1, pairs_per_prompt=1, seed=0, include_ties=False)
    with pytest.raises(UsageError, match="at least one pair of images to"):
        PairOrder([], batch_size=1, pairs_per_prompt=1, seed=0)


def test_a_batch_holds_each_image_and_prompt_once(groups: list[PreferenceGroup], scorer: DualEncoder):
    batch = make_loader(groups, scorer, batch_size=20, pairs_per_prompt=10).load(0)
    assert len(batch) == 20
    assert len(batch.names) == len(set(batch.names)) == 10
    assert batch.pixels.shape == (2 * 10, 3, 32, 32)
    assert len(batch.tokens) == 2
    chosen = [
        groups[group].pairs[pair]
        for group, pair in PairOrder(groups, batch_size=20, pairs_per_prompt=10, seed=0).of_step(0)
    ]
    assert batch.label.tolist() == [pair.label for pair in chosen]


def test_pixels_are_the_scorer_s_own_preprocessing(groups: list[PreferenceGroup], scorer: DualEncoder):
    loader = make_loader(groups, scorer)
    batch = loader.load(3)
    for place, (group, index) in enumerate(PairOrder(groups, batch_size=8, pairs_per_prompt=1, seed=0).of_step(3)):
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
        batch = make_loader(groups, scorer, batch_size=60, **how).load(step)
        return dict(zip(batch.names, batch.pixels[len(batch.names) :], strict=True))

    drawn = [copies(step, preview_probability=1.0) for step in range(8)]
    spread = {name: [sample[name].std(dim=(1, 2)).max().item() for sample in drawn] for name in drawn[0]}
    assert max(spread.pop(str(seen))) < 1e-6, "one shade all over"
    assert len({sample[str(seen)].mean().item() for sample in drawn}) == 2, "each of the two is drawn sooner or later"
    assert spread and min(map(min, spread.values())) > 0.1, "an image without previews is perturbed as ever"
    assert copies(0)[str(seen)].std(dim=(1, 2)).max() > 0.1


def test_copies_are_drawn_anew_each_step_and_the_same_for_a_seed(groups: list[PreferenceGroup], scorer: DualEncoder):
    one = [PreferenceGroup(groups[0].prompt, groups[0].images[:2], groups[0].pairs[:1])]
    loader, again, other = (make_loader(one, scorer, batch_size=1, seed=seed, min_crop_ratio=0.3) for seed in (0, 0, 1))
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
    still = make_loader(groups, scorer, copies=False, augment=True, min_crop_ratio=1.0, flip_probability=0.0).load(0)
    assert torch.equal(still.pixels, plain.pixels)


def test_processes_share_a_step_s_pairs_and_see_what_one_would(groups: list[PreferenceGroup], scorer: DualEncoder):
    whole = make_loader(groups, scorer, batch_size=7).load(2)
    parts = [make_loader(groups, scorer, batch_size=7, share=(index, 3)).load(2) for index in range(3)]
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
    loader = make_loader(groups, scorer, batch_size=12)
    batch = loader.load(0)
    assert len(batch) == 12 - 3
    assert bad.name not in batch.names
    assert list(loader._reader.skipped) == [bad.name]
    with pytest.raises(NothingUsableError, match="1 of 8 images"):
        list(make_loader(groups, scorer, total=8, batch_size=12).batches(0, 1))
    alone = [PreferenceGroup("x", groups[0].images[:2], groups[0].pairs[:1])]
    empty = make_loader(alone, scorer, batch_size=3).load(0)
    assert len(empty) == 0
    assert empty.pixels.shape == (0, 3, 32, 32)
    assert empty.tokens.shape == (0, 16)
