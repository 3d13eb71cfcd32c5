"""What a training run is, as a value: read from TOML, checked, written beside the results.

Knows nothing of torch, data or models.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sp_rerank.errors import StorageError, UsageError

RECIPES = Path(__file__).with_name("recipes")

_CHOICES = {
    "weighting": ("stages", "uniform"),
    "gap_scale": ("logit", "cosine", "normalised"),
    "ai_distance": ("embedding-cosine", "embedding-l2", "score-cosine", "score-logit"),
    "precision": ("float32", "bfloat16"),
}
_RANGES = {
    "steps": (1, math.inf), "stage_1_steps": (0, math.inf), "batch": (1, math.inf), "pairs_together": (1, math.inf),
    "micro_batch": (0, math.inf), "warm_up": (0, math.inf), "image_blocks": (-1, math.inf),
    "text_blocks": (-1, math.inf), "evaluate_every": (1, math.inf), "save_every": (1, math.inf),
    "learning_rate": (0, 1), "weight_decay": (0, 10), "beta_1": (0, 0.9999), "beta_2": (0, 0.99999),
    "epsilon": (0, 1), "gate_tau": (1e-6, 1e6), "temperature": (1e-6, 1e6), "ai_weight": (0, 1e6),
    "gate_b": (-1e6, 1e6), "crop_from": (0.1, 1), "flip_chance": (0, 1),
    "preview_chance": (0, 1), "validation_share": (0, 0.5),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result of a training run but the data.

    The defaults are what the deck of Stable Preference states (see `losses`), or our reading of what it leaves open.

    Attributes:
        name: of the scorer that comes out.
        base: what it starts from, as `load_scorer` takes it; a dual encoder.
        seed: of the order of the pairs, of the perturbations and of dropout.
        steps: of the optimiser, both stages together.
        stage_1_steps: how many of them are stage 1; 0 is stage 2 alone, `steps` is stage 1 alone.
        weighting: "stages", or "uniform": the plain mean over the pairs, neither gate nor softmax.
        batch: pairs a step, over all processes.
        pairs_together: how many pairs of a prompt come in the same step, sharing images; 1 draws each on its own.
        ties: whether pairs without a better image are learned from, with the label .5; False leaves them out.
        micro_batch: images or texts a pass through an encoder, for memory; 0 is all at once. The gradient is the same.
        learning_rate: the highest, after the warm-up.
        warm_up: steps of linear warm-up; a cosine to 0 follows.
        weight_decay: on parameters of two dimensions and more.
        beta_1: AdamW's.
        beta_2: AdamW's.
        epsilon: AdamW's.
        image_blocks: how many of the last blocks of the image tower learn, with the norm and the projection behind
            them; 0 freezes the tower, and what it makes of an image that is not perturbed is made once; -1 trains all.
        text_blocks: likewise of the text tower.
        gap_scale: of dS in the gate and in the softmax, see `losses.scaled_gaps`.
        gate_b: of stage 1, where the gate is half open.
        gate_tau: of stage 1, how gradually it closes.
        temperature: of stage 2's softmax.
        ai_weight: of L_ai beside L_pref; 0 makes no perturbed copies.
        ai_distance: see `losses.distances`.
        augment: whether the images that are ranked are themselves perturbed, as plain augmentation.
        crop_from: the smallest side ratio of a perturbation's centre crop; it is drawn from [crop_from, 1).
        flip_chance: of a perturbation's horizontal flip.
        preview_chance: of an image's copy being one of its previews, flipped and cropped as well, where it has some:
            what the image looked like while it was made (see `preferences.ImageSource.previews`).
        precision: "bfloat16" computes in it where it is safe; the weights stay float32.
        gradient_checkpointing: less memory, a third more time.
        evaluate_every: steps between validations.
        save_every: steps between checkpoints.
        validation_share: of the prompts, held out where no validation data are given; 0 for none.

    Raises:
        UsageError: if a value is not in its range or not of its kind.
    """

    name: str
    base: str
    seed: int = 0
    steps: int = 30_000
    stage_1_steps: int = 3_000
    weighting: str = "stages"
    batch: int = 64
    pairs_together: int = 1
    ties: bool = True
    micro_batch: int = 0
    learning_rate: float = 2e-6
    warm_up: int = 500
    weight_decay: float = 0.35
    beta_1: float = 0.9
    beta_2: float = 0.98
    epsilon: float = 1e-6
    image_blocks: int = -1
    text_blocks: int = -1
    gap_scale: str = "logit"
    gate_b: float = 0.1
    gate_tau: float = 0.05
    temperature: float = 1.0
    ai_weight: float = 1.0
    ai_distance: str = "embedding-cosine"
    augment: bool = False
    crop_from: float = 0.9
    flip_chance: float = 1.0
    preview_chance: float = 0.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    evaluate_every: int = 500
    save_every: int = 500
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        kinds = {"str": str, "int": int, "float": (int, float), "bool": bool}
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, kinds[str(field.type)]) or (isinstance(value, bool) and field.type != "bool"):
                raise UsageError(f"recipe: {field.name} must be of type {field.type}, got {value!r}")
            if value not in _CHOICES.get(field.name, [value]):
                raise UsageError(
                    f"recipe: {field.name} must be one of {', '.join(_CHOICES[field.name])}, got {value!r}"
                )
            low, high = _RANGES.get(field.name, (-math.inf, math.inf))
            if not isinstance(value, str) and not low <= value <= high:
                raise UsageError(f"recipe: {field.name} must be from {low:g} to {high:g}, got {value!r}")
        if self.weighting == "stages" and self.stage_1_steps > self.steps:
            raise UsageError(f"recipe: stage_1_steps is {self.stage_1_steps}, more than the {self.steps} steps in all")

    @classmethod
    def from_dict(cls, stored: dict[str, Any], where: str = "recipe") -> Recipe:
        """A recipe out of plain values; the keys are the attributes above.

        Raises:
            UsageError: if a key is unknown, or one without a default is missing, or a value is not usable.
        """
        known = [field.name for field in fields(cls)]
        for key in stored:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; expected keys out of {', '.join(known)}"
                raise UsageError(f"{where}: unknown key {key!r}{hint}")
        missing = [key for key in ("name", "base") if key not in stored]
        if missing:
            raise UsageError(f"{where}: expected the keys 'name' and 'base', found no {missing[0]!r}")
        try:
            return cls(**stored)
        except UsageError as error:
            raise UsageError(f"{where}: {str(error).removeprefix('recipe: ')}") from error

    @property
    def sha256(self) -> str:
        """Of the recipe's values, whatever file or order they were written in."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def stage(self, step: int) -> int:
        """1 or 2 of a step counted from 0; 0 where there are no stages."""
        if self.weighting == "uniform":
            return 0
        return 1 if step < self.stage_1_steps else 2

    def learning_rate_at(self, step: int) -> float:
        """Of a step counted from 0: linear warm-up, then one cosine to 0 over both stages."""
        if step < self.warm_up:
            return self.learning_rate * (step + 1) / self.warm_up
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (step - self.warm_up) / max(1, self.steps - self.warm_up)))
        )


def changed(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with other values.

    Args:
        recipe: unchanged itself.
        assignments: "key=value" each, the value as in TOML; a string may go without quotes.

    Raises:
        UsageError: if a key is unknown or a value not usable.
    """
    values = asdict(recipe)
    for assignment in assignments:
        key, sign, value = assignment.partition("=")
        if not sign:
            raise UsageError(f"expected key=value such as seed=1, got {assignment!r}")
        try:
            values[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = value.strip()
    return Recipe.from_dict(values, recipe.name)


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by its name, or out of a TOML file.

    Args:
        name: one of `recipe_names()`, or a path that ends in .toml.

    Raises:
        UsageError: if there is no such recipe, or it is not TOML or not a recipe.
        StorageError: if the file cannot be read.
    """
    file = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not file.is_file() or (not name.endswith(".toml") and name not in recipe_names()):
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"expected a recipe out of {', '.join(recipe_names())} or a .toml file, got {name!r}{hint}")
    try:
        return Recipe.from_dict(tomllib.loads(file.read_text(encoding="utf-8")), name)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: expected a recipe in TOML: {error}") from error
    except OSError as error:
        if isinstance(error, UsageError):
            raise
        raise StorageError(f"{file} cannot be read: {error.strerror or error}") from error
