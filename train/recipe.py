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
    "gap_scale": ("logit", "cosine", "normalized"),
    "ai_distance": ("embedding-cosine", "embedding-l2", "score-cosine", "score-logit"),
    "precision": ("float32", "bfloat16"),
}
_MOST_STEPS, _MOST_PAIRS, _MOST_BLOCKS = 10_000_000, 65_536, 1_000
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "steps": (1, _MOST_STEPS),
    "stage_1_steps": (0, _MOST_STEPS),
    "batch_size": (1, _MOST_PAIRS),
    "pairs_per_prompt": (1, _MOST_PAIRS),
    "micro_batch_size": (0, 4 * _MOST_PAIRS),
    "learning_rate": (0, 1),
    "warmup_steps": (0, _MOST_STEPS),
    "weight_decay": (0, 10),
    "beta_1": (0, 0.9999),
    "beta_2": (0, 0.99999),
    "epsilon": (1e-12, 1),
    "trainable_image_blocks": (-1, _MOST_BLOCKS),
    "trainable_text_blocks": (-1, _MOST_BLOCKS),
    "gate_b": (-1e6, 1e6),
    "gate_tau": (1e-6, 1e6),
    "temperature": (1e-6, 1e6),
    "ai_weight": (0, 1e6),
    "min_crop_ratio": (0.1, 1),
    "flip_probability": (0, 1),
    "preview_probability": (0, 1),
    "evaluate_every": (1, _MOST_STEPS),
    "save_every": (1, _MOST_STEPS),
    "validation_fraction": (0, 0.5),
}
_SHOWN = 80  # characters of a value in an error
_LONGEST = {"name": 100, "base": 4_096}

_RENAMED = {
    "batch": "batch_size",
    "pairs_together": "pairs_per_prompt",
    "ties": "include_ties",
    "micro_batch": "micro_batch_size",
    "warm_up": "warmup_steps",
    "image_blocks": "trainable_image_blocks",
    "text_blocks": "trainable_text_blocks",
    "crop_from": "min_crop_ratio",
    "flip_chance": "flip_probability",
    "preview_chance": "preview_probability",
    "validation_share": "validation_fraction",
}
"""What keys were called before; they are not read, an error names the key of today."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the result of a training run but the data.

    The defaults are what the slides of Stable Preference state (see `losses`), or our reading of what they leave open.
    A float may be given as an int.

    Attributes:
        name: Name of the scorer that comes out.
        base: Scorer to start from, as `load_scorer` takes it; a dual encoder.
        seed: Decides the order of the pairs, the perturbations and dropout.
        steps: Number of optimizer steps, both stages together.
        stage_1_steps: How many of them are stage 1; 0 is stage 2 alone, `steps` is stage 1 alone.
        weighting: "stages", or "uniform": the plain mean over the pairs, neither gate nor softmax.
        batch_size: Pairs in a step, over all processes.
        pairs_per_prompt: How many pairs of a prompt come in the same step, sharing images; 1 draws each on its own.
        include_ties: Whether pairs without a better image are learned from, with the label .5.
        micro_batch_size: Images or texts in a pass through an encoder, to save memory; 0 is all at once. The gradient
            is the same.
        learning_rate: The highest learning rate, reached after the warm-up.
        warmup_steps: Steps of linear warm-up; a cosine to 0 follows.
        weight_decay: AdamW's, on parameters of two dimensions and more.
        beta_1: AdamW's decay of the first moment.
        beta_2: AdamW's decay of the second moment.
        epsilon: AdamW's term in the denominator.
        trainable_image_blocks: How many of the last blocks of the image tower learn, with the norm and the projection
            behind them. 0 freezes the tower, and unperturbed images are encoded once; -1 trains all of it.
        trainable_text_blocks: The same for the text tower.
        gap_scale: Scale of dS in the gate and in the softmax, see `losses.scaled_gaps`.
        gate_b: Stage 1: the gap at which the gate is half open.
        gate_tau: Stage 1: how gradually the gate closes.
        temperature: Stage 2: temperature of the softmax.
        ai_weight: Weight of L_ai beside L_pref; 0 makes no perturbed copies.
        ai_distance: What L_ai measures, see `losses.distances`.
        augment: Whether the ranked images are themselves perturbed, as plain augmentation.
        min_crop_ratio: Smallest side ratio of a perturbation's center crop, drawn from [min_crop_ratio, 1).
        flip_probability: Probability that a perturbation flips the image horizontally.
        preview_probability: Probability that an image's copy is one of its previews, where it has some (see
            `preferences.ImageSource.previews`); it is flipped and cropped as well.
        precision: "float32", or "bfloat16" to compute in it where it is safe; the weights stay float32.
        gradient_checkpointing: Whether to recompute activations: less memory, a third more time.
        evaluate_every: Steps between validations.
        save_every: Steps between checkpoints.
        validation_fraction: Fraction of the prompts held out where no validation data are given; 0 for none.

    Raises:
        UsageError: if a value is out of its range or of another type.
    """

    name: str
    base: str
    seed: int = 0
    steps: int = 30_000
    stage_1_steps: int = 3_000
    weighting: str = "stages"
    batch_size: int = 64
    pairs_per_prompt: int = 1
    include_ties: bool = True
    micro_batch_size: int = 0
    learning_rate: float = 2e-6
    warmup_steps: int = 500
    weight_decay: float = 0.35
    beta_1: float = 0.9
    beta_2: float = 0.98
    epsilon: float = 1e-6
    trainable_image_blocks: int = -1
    trainable_text_blocks: int = -1
    gap_scale: str = "logit"
    gate_b: float = 0.1
    gate_tau: float = 0.05
    temperature: float = 1.0
    ai_weight: float = 1.0
    ai_distance: str = "embedding-cosine"
    augment: bool = False
    min_crop_ratio: float = 0.9
    flip_probability: float = 1.0
    preview_probability: float = 0.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    evaluate_every: int = 500
    save_every: int = 500
    validation_fraction: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            _check(field.name, str(field.type), value)
            if field.type == "float":  # AdamW refuses betas of two types
                object.__setattr__(self, field.name, float(value))
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
                near = [_RENAMED[key]] if key in _RENAMED else difflib.get_close_matches(key[:100], known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; expected keys out of {', '.join(known)}"
                raise UsageError(f"{where}: unknown key {shorten(key)}{hint}")
        missing = [key for key in ("name", "base") if key not in stored]
        if missing:
            raise UsageError(f"{where}: expected the keys 'name' and 'base', found no {missing[0]!r}")
        try:
            return cls(**stored)
        except UsageError as error:
            raise UsageError(f"{where}: {str(error).removeprefix('recipe: ')}") from error

    def with_overrides(self, assignments: Sequence[str]) -> Recipe:
        """The recipe with other values.

        Args:
            assignments: "key=value" each, the value as in TOML; a string may go without quotes.

        Raises:
            UsageError: if a key is unknown or a value not usable.
        """
        values = asdict(self)
        for assignment in assignments:
            key, sign, value = assignment.partition("=")
            if not sign:
                raise UsageError(f"expected key=value such as seed=1, got {shorten(assignment)}")
            try:
                values[key.strip()] = parse_toml(f"value = {value}")["value"]
            except ValueError:
                values[key.strip()] = value.strip()
        return Recipe.from_dict(values, self.name)

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
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)))
        )


def _check(name: str, kind: str, value: Any) -> None:
    """Raise UsageError for a value of another type, or out of its choices, range or length."""
    expected: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
    if type(value) not in expected[kind]:
        raise UsageError(f"recipe: {name} must be of type {kind}, got {shorten(value)}")
    if value not in _CHOICES.get(name, [value]):
        raise UsageError(f"recipe: {name} must be one of {', '.join(_CHOICES[name])}, got {shorten(value)}")
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    if not isinstance(value, str) and not low <= value <= high:
        raise UsageError(f"recipe: {name} must be from {low} to {high}, got {shorten(value)}")
    if name in _LONGEST and not (0 < len(value) <= _LONGEST[name] and value.isprintable()):
        raise UsageError(
            f"recipe: {name} must be text of 1 to {_LONGEST[name]} printable characters, got {shorten(value)}"
        )
    if name == "name" and ("@" in value or "/" in value):
        raise UsageError(f"recipe: name must hold neither @ nor /, got {shorten(value)}")


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
    is_file = name.lower().endswith(".toml")
    file = Path(name) if is_file else RECIPES / f"{name}.toml"
    if not file.is_file() or (not is_file and name not in recipe_names()):
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"expected a recipe out of {', '.join(recipe_names())} or a .toml file, got {name!r}{hint}")
    try:
        text = file.read_text(encoding="utf-8")
        return Recipe.from_dict(parse_toml(text), name)
    except UsageError:
        raise
    except ValueError as error:  # no UTF-8, no TOML
        raise UsageError(f"{file}: expected a recipe in TOML: {error}") from error
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML document holds.

    Raises:
        ValueError: if it is no TOML, or nested too deeply to be read.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def shorten(value: Any) -> str:
    """The value as Python writes it, cut where it is long: an error is one line that can be read."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a value nested too deeply
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
