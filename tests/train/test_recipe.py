import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from support.bright_world import make_encoder

from sp_rerank.errors import UsageError
from sp_rerank.scorers.published import PUBLISHED
from sp_rerank.train import recipe
from sp_rerank.train.losses import DISTANCES, GAP_SCALES
from sp_rerank.train.model import build_optimizer
from sp_rerank.train.recipe import RECIPES, Recipe, read_recipe, recipe_names

SHIPPED = ["mini", "clip-l", "clip-h", "clip-h-hps"]


def write(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


def test_the_recipes_that_ship_are_read_and_have_a_twin():
    assert recipe_names() == sorted([*SHIPPED, *(f"{name}-ce" for name in SHIPPED)])
    for name in SHIPPED:
        ours, twin = read_recipe(name), read_recipe(f"{name}-ce")
        assert ours.weighting == "stages"
        assert (twin.weighting, twin.ai_weight) == ("uniform", 0)
        assert ours.base in PUBLISHED or ours.base == "clip-mini"
        method = (
            "name", "weighting", "stage_1_steps", "gap_scale", "gate_b", "gate_tau", "temperature", "ai_weight",
            "ai_distance",
        )  # fmt: skip
        assert replace(twin, **{key: getattr(ours, key) for key in method}) == ours


@pytest.mark.parametrize("name", SHIPPED)
def test_each_opens_with_its_command_time_and_result(name: str):
    head = (RECIPES / f"{name}.toml").read_text().split("\n\n")[0]
    for expected in (f"train {name} --data", "expected time:", "expected result:"):
        assert expected in head


def test_what_can_be_chosen_is_what_the_losses_know():
    for key, values in (("ai_distance", DISTANCES), ("gap_scale", GAP_SCALES)):
        for value in values:
            assert getattr(Recipe(name="x", base="y", **{key: value}), key) == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('learning_rat = 1e-4', "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("zebra = 1", "unknown key 'zebra'; expected keys out of name, base"),
        ('steps = "many"', "steps must be of type int, got 'many'"),
        ("steps = true", "steps must be of type int, got True"),
        ("steps = 0", "steps must be from 1 to 10000000, got 0"),
        ("learning_rate = nan", "learning_rate must be from 0 to 1, got nan"),
        ('gap_scale = "std"', "gap_scale must be one of logit, cosine, normalized, got 'std'"),
        ("steps = 100", "stage_1_steps is 3000, more than the 100 steps in all"),
        ("[nested]\nsteps = 1", "unknown key 'nested'"),
        ("steps = ", "expected a recipe in TOML"),
        (f"steps = {10**30}", "steps must be from 1 to 10000000, got 1000000000"),
        (f"steps = {'9' * 5_000}", "expected a recipe in TOML: Exceeds the limit"),
        (f"weight_decay = 1{'0' * 400}", "weight_decay must be from 0 to 10, got 1000"),
        ("learning_rate = inf", "learning_rate must be from 0 to 1, got inf"),
        ("epsilon = 0", "epsilon must be from 1e-12 to 1, got 0"),
        ("seed = -1", "seed must be from 0 to 9223372036854775807, got -1"),
        (f"steps = {'[' * 5_000}{']' * 5_000}", "expected a recipe in TOML: nested too deeply"),
        (f"a{'.a' * 5_000} = 1", "unknown key 'a'"),
        ('weighting = ["stages"]', "weighting must be of type str, got"),
        ("tracker = 2026-01-01", "unknown key 'tracker'"),
    ],
)  # fmt: skip
def test_a_typo_is_an_error_that_says_what_to_do(text: str, fault: str, tmp_path: Path):
    with pytest.raises(UsageError, match=fault.replace("(", r"\(")):
        read_recipe(write(tmp_path, f'name = "x"\nbase = "clip-h"\n{text}\n'))


@pytest.mark.parametrize(("old", "new"), recipe._RENAMED.items())
def test_a_key_of_before_is_an_error_that_names_the_key_of_today(old: str, new: str, tmp_path: Path):
    assert new in {field.name for field in fields(Recipe)}
    with pytest.raises(UsageError, match=f"unknown key '{old}'; did you mean '{new}'"):
        read_recipe(write(tmp_path, f'name = "x"\nbase = "clip-h"\n{old} = 1\n'))


@pytest.mark.parametrize("name", ["", "a@b", "../up", "two\nlines", "x" * 101])
def test_a_name_that_a_scorer_cannot_bear_is_refused(name: str):
    with pytest.raises(UsageError, match="name must") as error:
        Recipe(name=name, base="clip-h")
    assert "\n" not in str(error.value)


def test_every_number_has_limits():
    numbers = {field.name for field in fields(Recipe) if field.type in ("int", "float")}
    assert numbers == set(recipe._RANGES)
    assert all(math.isfinite(low) and math.isfinite(high) for low, high in recipe._RANGES.values())


def test_a_float_may_be_written_as_an_integer():
    """AdamW refuses betas of two types: `beta_1 = 0` came out of TOML as an int."""
    whole = Recipe(name="x", base="y", beta_1=0, learning_rate=1)
    assert whole == Recipe(name="x", base="y", beta_1=0.0, learning_rate=1.0)
    assert whole.sha256 == Recipe(name="x", base="y", beta_1=0.0, learning_rate=1.0).sha256
    build_optimizer(make_encoder(), whole)


def test_a_recipe_needs_a_name_and_a_base(tmp_path: Path):
    with pytest.raises(UsageError, match="found no 'base'"):
        read_recipe(write(tmp_path, 'name = "x"'))


@pytest.mark.parametrize("name", ["min", "none.toml", "../recipes/mini", ""])
def test_an_unknown_recipe_is_an_error(name: str):
    with pytest.raises(UsageError, match="expected a recipe out of clip-h, "):
        read_recipe(name)


def test_values_can_be_changed_by_assignments():
    recipe = read_recipe("mini")
    other = recipe.with_overrides(["seed=3", "gap_scale=cosine", "learning_rate=1e-5", "augment=true", 'name="a"'])
    assert (other.seed, other.gap_scale, other.learning_rate, other.augment, other.name) == (
        3,
        "cosine",
        1e-5,
        True,
        "a",
    )
    assert recipe.with_overrides([]) == recipe
    with pytest.raises(UsageError, match="did you mean 'seed'"):
        recipe.with_overrides(["sed=3"])
    with pytest.raises(UsageError, match="expected key=value"):
        recipe.with_overrides(["seed"])


def test_the_hash_follows_every_value():
    recipe = Recipe(name="x", base="y")
    hashes = {recipe.sha256}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        kinds = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.01, str: lambda v: v}
        other = {"weighting": "uniform", "gap_scale": "cosine", "ai_distance": "score-logit", "precision": "bfloat16"}
        new = other.get(field.name, "z" if isinstance(value, str) else kinds[type(value)](value))
        hashes.add(replace(recipe, **{field.name: new}).sha256)
    assert len(hashes) == len(fields(recipe)) + 1


def test_one_schedule_runs_through_both_stages():
    recipe = Recipe(name="x", base="y", steps=100, stage_1_steps=30, warmup_steps=10, learning_rate=1.0)
    assert [recipe.stage(step) for step in (0, 29, 30, 99)] == [1, 1, 2, 2]
    assert recipe.learning_rate_at(0) == pytest.approx(0.1)
    assert recipe.learning_rate_at(9) == recipe.learning_rate_at(10) == pytest.approx(1.0)
    assert recipe.learning_rate_at(55) == pytest.approx(0.5)
    rates = [recipe.learning_rate_at(step) for step in range(10, 100)]
    assert rates == sorted(rates, reverse=True)
    assert recipe.learning_rate_at(30) == pytest.approx(0.5 * (1 + math.cos(math.pi * 20 / 90)))
    assert rates[-1] < 0.001
    assert replace(recipe, weighting="uniform").stage(0) == 0
