"""From pairs to tensors: which pairs a step takes, their images opened and perturbed once each.

What a step sees is a function of the seed and the step alone, however many processes share it, so that a resumed run
needs no memory of what was read. Knows nothing of losses, encoders or optimizers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sp_rerank.errors import UsageError
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.storage.perturbation import flip_and_crop
from sp_rerank.train.losses import Views
from sp_rerank.train.preferences import ImageReader, PreferenceGroup
from sp_rerank.train.recipe import Recipe

_THREADS = 8  # that open images; Pillow and torch let go of the interpreter while they work

Place = tuple[int, int]
"""Of a pair: the index of its group, and its own in the group."""


class PairOrder:
    """Which pairs a step takes: an endless sequence in which every pair comes once an epoch, in an order of its own.

    Args:
        groups: with their pairs.
        batch_size: Pairs in a step.
        pairs_per_prompt: How many pairs of one prompt come next to each other. They are chosen to share images: the
            first k images of a prompt, in a random order, make k (k - 1) / 2 pairs.
        seed: Decides the order.
        include_ties: Whether pairs without a better image are among them.

    Raises:
        UsageError: if there is no pair.
    """

    def __init__(
        self,
        groups: Sequence[PreferenceGroup],
        *,
        batch_size: int,
        pairs_per_prompt: int,
        seed: int,
        include_ties: bool = True,
    ):
        self._groups, self._batch_size, self._pairs_per_prompt, self._seed = groups, batch_size, pairs_per_prompt, seed
        self._kept = [
            [i for i, pair in enumerate(group.pairs) if include_ties or pair.label != 0.5] for group in groups
        ]
        self._pairs = sum(map(len, self._kept))
        if not self._pairs:
            which = "" if include_ties else " of which one is better"
            raise UsageError(f"expected at least one pair of images{which} to learn from, got none")
        self._known: tuple[int, list[Place]] = (-1, [])

    def __len__(self) -> int:
        """Pairs an epoch."""
        return self._pairs

    def of_step(self, step: int) -> list[Place]:
        """The pairs of a step counted from 0."""
        places = range(step * self._batch_size, (step + 1) * self._batch_size)
        return [self._epoch(place // self._pairs)[place % self._pairs] for place in places]

    def _epoch(self, epoch: int) -> list[Place]:
        if self._known[0] != epoch:
            rng = random.Random(f"order-{self._seed}-{epoch}")
            chunks = [chunk for index in range(len(self._groups)) for chunk in self._chunks(index, rng)]
            rng.shuffle(chunks)
            self._known = epoch, [place for chunk in chunks for place in chunk]
        return self._known[1]

    def _chunks(self, index: int, rng: random.Random) -> Iterator[list[Place]]:
        group = self._groups[index]
        turn = list(range(len(group.images)))
        rng.shuffle(turn)

        def images_so_far(place: Place) -> tuple[int, int]:
            pair = group.pairs[place[1]]
            this, other = turn[pair.first], turn[pair.second]
            return max(this, other), min(this, other)

        places = sorted(((index, pair) for pair in self._kept[index]), key=images_so_far)
        for start in range(0, len(places), self._pairs_per_prompt):
            yield places[start : start + self._pairs_per_prompt]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """The pairs of one step, or of one process's share of it, with each distinct image and prompt once.

    Attributes:
        pixels: (v n, 3, S, S) float32, preprocessed: n images, then their perturbed copies where v = 2.
        copied: whether there are copies.
        tokens: (m, L) int64, tokens of the m distinct prompts.
        first: (p,) int64, for each pair the index of its first image.
        second: (p,) int64, the index of its second image.
        prompt: (p,) the index of its prompt.
        label: (p,) float32, 1 where the first is better.
        names: Names of the n images, for messages.
    """

    pixels: Tensor
    copied: bool
    tokens: Tensor
    first: Tensor
    second: Tensor
    prompt: Tensor
    label: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Pairs."""
        return len(self.label)

    def to(self, device: torch.device) -> PairBatch:
        """The same on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("pixels", "tokens", "first", "second", "prompt", "label")
        }
        return replace(self, **moved)

    def views(self, images: Tensor, texts: Tensor) -> tuple[Views, Views | None]:
        """The embeddings of the pairs and of their copies, out of those of the distinct images and prompts.

        Args:
            images: (v n, d) of `pixels`.
            texts: (m, d) of `tokens`.
        """
        n = len(self.names)
        pairs = Views(images[self.first], images[self.second], texts[self.prompt])
        return pairs, (Views(images[self.first + n], images[self.second + n], pairs.text) if self.copied else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbations:
    """How images are perturbed: flipped at random, then center-cropped to a random side ratio.

    Attributes:
        seed: Decides the draws, together with the step and the image.
        copies: Whether each image gets a perturbed copy.
        augment: Whether the images themselves are perturbed.
        min_crop_ratio: Smallest side ratio of a crop, drawn from [min_crop_ratio, 1).
        flip_probability: Probability of a flip.
        preview_probability: Probability that a copy is made of one of the image's previews, where it has some.
    """

    seed: int
    copies: bool
    augment: bool
    min_crop_ratio: float
    flip_probability: float
    preview_probability: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Perturbations:
        """The perturbations of a training run."""
        return cls(
            seed=recipe.seed,
            copies=recipe.ai_weight > 0,
            augment=recipe.augment,
            min_crop_ratio=recipe.min_crop_ratio,
            flip_probability=recipe.flip_probability,
            preview_probability=recipe.preview_probability,
        )


class Loader:
    """Makes the batches: opens, perturbs and preprocesses, the next batch while the present one is used.

    Args:
        groups: with their images.
        order: which pairs a step takes.
        scorer: for its preprocessing and its tokenizer.
        reader: opens the images, and skips, counts and names those that cannot be read.
        perturbations: How images and their copies are perturbed.
        share: (index of this process, number of processes): each takes its part of every step's pairs.
    """

    def __init__(
        self,
        groups: Sequence[PreferenceGroup],
        order: PairOrder,
        scorer: DualEncoder,
        reader: ImageReader,
        perturbations: Perturbations,
        share: tuple[int, int] = (0, 1),
    ):
        self._groups, self._order, self._scorer, self._reader = groups, order, scorer, reader
        self._perturbations = perturbations
        self._share = share

    def load(self, step: int, apply: Callable[..., Iterable[Any]] = map) -> PairBatch:
        """The batch of a step counted from 0; a pair with an image that cannot be read is left out of it.

        Args:
            step: which.
            apply: `map`, or that of a pool of threads.

        Raises:
            NothingUsableError: if too many images cannot be read.
        """
        global_batch = self._order.of_step(step)
        index, count = self._share
        return self.load_pairs(
            step, global_batch[len(global_batch) * index // count : len(global_batch) * (index + 1) // count], apply
        )

    def load_pairs(self, step: int, places: Sequence[Place], apply: Callable[..., Iterable[Any]] = map) -> PairBatch:
        """A batch of these pairs, perturbed as that step perturbs them; see `load`."""
        wanted = dict.fromkeys(image for place in places for image in self._images_of(place))
        made = dict(zip(wanted, apply(lambda image: self._views_of(step, image), wanted), strict=True))
        usable = [place for place in places if all(made[image] is not None for image in self._images_of(place))]
        images = list(dict.fromkeys(image for place in usable for image in self._images_of(place)))
        prompts = list(dict.fromkeys(self._groups[group].prompt for group, _ in usable))
        size = self._scorer.preprocess.size
        blank = torch.empty(0, 3, size, size)
        versions = zip(*(made[image] for image in images), strict=True)
        pixels = torch.cat([blank, *(view for version in versions for view in version)])
        ends = [self._images_of(place) for place in usable]
        return PairBatch(
            pixels=pixels,
            copied=self._perturbations.copies,
            tokens=self._scorer.tokenize(prompts) if prompts else torch.empty(0, self._scorer.max_tokens).long(),
            first=_indices(images, [first for first, _ in ends]),
            second=_indices(images, [second for _, second in ends]),
            prompt=_indices(prompts, [self._groups[group].prompt for group, _ in usable]),
            label=torch.tensor([self._groups[group].pairs[pair].label for group, pair in usable]),
            names=tuple(self._groups[group].images[image].name for group, image in images),
        )

    def batches(self, first: int, end: int) -> Iterator[tuple[int, PairBatch]]:
        """The steps from `first` up to `end` with their batches; the next one is made meanwhile."""
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(_THREADS) as pool:
            coming = ahead.submit(self.load, first, pool.map) if first < end else None
            for step in range(first, end):
                assert coming is not None
                batch = coming.result()
                coming = ahead.submit(self.load, step + 1, pool.map) if step + 1 < end else None
                yield step, batch

    def _images_of(self, place: Place) -> tuple[Place, Place]:
        """(group, image) of both images of a pair."""
        group, index = place
        pair = self._groups[group].pairs[index]
        return (group, pair.first), (group, pair.second)

    def _views_of(self, step: int, image: Place) -> list[Tensor] | None:
        """The image and, if asked for, its copy, (1, 3, S, S) each; None if it cannot be read."""
        opened = self._reader.read(self._groups[image[0]].images[image[1]])
        if opened is None:
            return None
        # of the image alone, not of its place in the batch: the number of processes changes nothing
        rng = random.Random(f"view-{self._perturbations.seed}-{step}-{image[0]}-{image[1]}")
        views = [self._perturb(opened, rng) if self._perturbations.augment else opened]
        views += [self._perturb(self._preview_of(image, rng) or opened, rng)] if self._perturbations.copies else []
        return [self._scorer.preprocess([view], device="cpu") for view in views]

    def _preview_of(self, image: Place, rng: random.Random) -> Image.Image | None:
        """One of an image's previews, if the dice say so and it has some that can be read."""
        probability = self._perturbations.preview_probability
        if not probability or rng.random() >= probability:
            return None
        previews = self._groups[image[0]].images[image[1]].previews()
        return self._reader.read(rng.choice(previews)) if previews else None

    def _perturb(self, image: Image.Image, rng: random.Random) -> Image.Image:
        smallest = self._perturbations.min_crop_ratio
        ratio = smallest + (1 - smallest) * rng.random()
        return flip_and_crop(image, ratio, flip=rng.random() < self._perturbations.flip_probability)


def _indices(values: Sequence[Any], wanted: Sequence[Any]) -> Tensor:
    place = {value: index for index, value in enumerate(values)}
    return torch.tensor([place[value] for value in wanted], dtype=torch.int64)
