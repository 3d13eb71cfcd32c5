import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from support.bright_training import RECIPE as RECIPE_OF_TWO
from support.bright_world import make_encoder, make_groups, make_recipe
from support.children import in_child
from support.scored_groups import gray

from sp_rerank import load_scorer
from sp_rerank.errors import FolderBusyError, NothingUsableError, UsageError
from sp_rerank.scorers.clip import DualEncoder
from sp_rerank.train import checkpoints
from sp_rerank.train.data import Loader, PairBatch
from sp_rerank.train.loop import Outcome, train, validate
from sp_rerank.train.preferences import PreferenceGroup
from sp_rerank.train.recipe import Recipe
from sp_rerank.train.step import MOST_FAILURES

WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPE = make_recipe()
POSIX = pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL are POSIX")


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> list[PreferenceGroup]:
    return make_groups(tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> list[PreferenceGroup]:
    return make_groups(tmp_path_factory.mktemp("unseen"), prompts=3, seed=1)


def metrics(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def steps(out: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(out) if "loss" in row]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def after(count: int) -> Callable[[], bool]:
    """A `stop` that says yes after so many steps."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= count


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, groups: list[PreferenceGroup], unseen: list[PreferenceGroup]
) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("trained") / "run"
    return out, train(make_recipe(), groups, scorer=make_encoder(), out=out, validation=unseen)


def test_it_learns_what_decides(trained: tuple[Path, Outcome], unseen: list[PreferenceGroup]):
    out, outcome = trained
    assert outcome.first_accuracy is not None
    assert outcome.best_accuracy is not None
    assert outcome.first_accuracy < 0.6 < 0.95 < outcome.best_accuracy
    scorer = load_scorer(f"sp@{outcome.folder}")
    assert isinstance(scorer, DualEncoder)
    right, total = validate(scorer, unseen)
    assert right / total == outcome.best_accuracy
    assert total == 27  # of each group's ten pairs one is a tie
    found = {row["step"]: row["validation_accuracy"] for row in metrics(out) if "loss" not in row}
    assert list(found) == [0, 10, 20, 25]
    assert outcome.best_step == next(step for step, accuracy in found.items() if accuracy == outcome.best_accuracy)


def test_the_scorer_says_where_it_comes_from(trained: tuple[Path, Outcome], groups: list[PreferenceGroup]):
    out, outcome = trained
    base = make_encoder()
    scorer: Any = load_scorer(f"sp@{out / 'last'}")
    for part in (base.name, make_recipe().sha256, checkpoints.data_sha256(groups), "step 25"):
        assert part in scorer.config["source"]
    assert scorer.name.startswith("bright@")
    assert f"step {outcome.best_step}" in json.loads((out / "best" / "config.json").read_text())["source"]
    assert scorer.config["preprocess"] == base.config["preprocess"]


def test_stages_follow_one_another_in_the_figures(trained: tuple[Path, Outcome]):
    rows = steps(trained[0])
    assert [row["stage"] for row in rows] == [1] * 10 + [2] * 15
    assert all(0 < row["gate"] <= 1 for row in rows[:10])
    assert {row["gate"] for row in rows[10:]} == {None}
    for row in rows:
        assert 1 <= row["effective"] <= row["pairs"] == 8
        assert row["gradient_share"] is None or 0 < row["gradient_share"] <= 1
    rates = [row["learning_rate"] for row in rows]
    assert rates == [make_recipe().learning_rate_at(step) for step in range(25)]
    assert rates[9] > rates[10] > rates[11]


def test_uniform_weights_are_the_plain_mean(tmp_path: Path, groups: list[PreferenceGroup]):
    recipe = make_recipe(steps=3, weighting="uniform", ai_weight=0.0)
    outcome = train(recipe, groups, scorer=make_encoder(), out=tmp_path)
    assert outcome.folder == tmp_path / "last"
    for row in steps(tmp_path):
        assert (row["stage"], row["interference"], row["gradient_share"]) == (0, 0, 1)
        assert row["effective"] == pytest.approx(8)
        assert row["loss"] == pytest.approx(row["preference"])


@pytest.mark.parametrize("micro_batch_size", [0, 5])
def test_a_resumed_run_is_the_same_to_the_bit(
    micro_batch_size: int, tmp_path: Path, groups: list[PreferenceGroup], unseen: list[PreferenceGroup]
):
    """25 steps against 13 + 12, with dropout."""
    recipe = make_recipe(micro_batch_size=micro_batch_size, save_every=100)

    def run(out: Path, **how: Any) -> None:
        train(recipe, groups, scorer=make_encoder(dropout=0.3), out=out, validation=unseen, **how)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(cut, stop=after(13))
    assert [row["step"] for row in steps(cut)] == list(range(1, 14))
    run(cut, resume=True)
    assert metrics(cut) == metrics(whole)
    for name in ("best", "last"):
        ours, theirs = (load_file(out / name / WEIGHTS) for out in (cut, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    first, second = (load_file(whole / name / WEIGHTS) for name in ("best", "last"))
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_a_finished_run_resumed_does_nothing(trained: tuple[Path, Outcome], groups: list, unseen: list):
    out, outcome = trained
    before = tree(out)
    again = train(make_recipe(), groups, scorer=make_encoder(), out=out, validation=unseen, resume=True)
    assert again == outcome
    assert tree(out) == before


def test_a_run_with_something_else_is_refused_and_nothing_is_overwritten(
    trained: tuple[Path, Outcome], tmp_path: Path, groups: list, unseen: list
):
    out, _ = trained
    before = tree(out)

    def refused(fault: str, folder: Path = out, recipe: Recipe = RECIPE, learned: Any = groups, **how: Any) -> None:
        with pytest.raises(UsageError, match=fault):
            train(recipe, learned, scorer=how.pop("scorer", make_encoder()), out=folder, validation=unseen, **how)

    refused(r"differs in recipe.seed, recipe.temperature;", recipe=make_recipe(seed=1, temperature=1.0), resume=True)
    refused("differs in data;", learned=groups[1:], resume=True)
    refused("differs in base;", scorer=make_encoder(dropout=0.0, name="other"), resume=True)
    refused("resume it, or begin anew")
    assert tree(out) == before
    (tmp_path / "thesis.txt").write_text("mine")
    refused("expected a new or empty folder", folder=tmp_path)
    refused("expected a new or empty folder", folder=tmp_path / "thesis.txt")
    assert tree(tmp_path) == {"thesis.txt": b"mine"}


def test_a_run_of_a_newer_version_is_refused(tmp_path: Path, groups: list):
    train(make_recipe(steps=10), groups, scorer=make_encoder(), out=tmp_path)
    for file in (tmp_path / "checkpoints" / "latest.json", tmp_path / "training.json"):
        stored = json.loads(file.read_text())
        file.write_text(json.dumps(stored | {"schema": 99}))
        with pytest.raises(UsageError, match="expected schema 1, got 99"):
            train(make_recipe(steps=10), groups, scorer=make_encoder(), out=tmp_path, resume=True)


class Fixed:
    """Scores that are given, whatever the images show."""

    name = "fixed"

    def __init__(self, *scores: float):
        self.scores = scores

    def score(self, prompt: Any, images: Any) -> torch.Tensor:
        return torch.tensor(self.scores)


@pytest.mark.parametrize("ranks", [[1, 2], [2, 1]])
@pytest.mark.parametrize("scores", [(math.nan, 0.0), (0.0, math.nan), (1.0, 1.0)])
def test_a_score_that_is_not_finite_orders_no_pair_rightly(scores: tuple, ranks: list, tmp_path: Path):
    group = PreferenceGroup.ranked("x", gray(tmp_path, 10, 20), ranks)
    assert validate(Fixed(*scores), [group]) == (0, 1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("scores", "ranks", "right"), [((2.0, 1.0), [1, 2], 1), ((2.0, 1.0), [2, 1], 0)])
def test_a_pair_is_right_where_the_better_image_scores_higher(scores: tuple, ranks: list, right: int, tmp_path: Path):
    group = PreferenceGroup.ranked("x", gray(tmp_path, 10, 20), ranks)
    assert validate(Fixed(*scores), [group]) == (right, 1)  # pyright: ignore[reportArgumentType]


def test_validation_names_a_scorer_that_gives_too_few_scores(tmp_path: Path):
    group = PreferenceGroup.ranked("x", gray(tmp_path, 10, 20), [1, 2])
    with pytest.raises(UsageError, match="scorer fixed: expected a score for each of 2 images"):
        validate(Fixed(1.0), [group])  # pyright: ignore[reportArgumentType]


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, groups: list):
    with FileLock(tmp_path / ".lock"), pytest.raises(FolderBusyError, match="another process is writing there"):
        train(make_recipe(), groups, scorer=make_encoder(), out=tmp_path)
    assert tree(tmp_path) == {}


@contextmanager
def planted(first: int, end: int) -> Iterator[None]:
    """An infinite pixel in the batches of some steps."""
    load = Loader.load

    def load_damaged(self: Loader, step: int, *rest: Any) -> PairBatch:
        batch = load(self, step, *rest)
        if first <= step < end:
            batch.pixels[0, 0, 0, 0] = torch.inf
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loader, "load", load_damaged)
        yield


def test_a_loss_that_is_not_finite_is_left_out(tmp_path: Path, groups: list, caplog: pytest.LogCaptureFixture):
    with planted(2, 2 + MOST_FAILURES):
        train(make_recipe(steps=10), groups, scorer=make_encoder(), out=tmp_path)
    rows = steps(tmp_path)
    assert [row["step"] for row in rows if row["left_out"]] == [3, 4, 5]
    assert rows[2]["loss"] is None
    assert all(row["loss"] is not None for row in (*rows[:2], *rows[5:]))
    assert rows[1]["logit_scale"] == rows[4]["logit_scale"]
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "last" / WEIGHTS).values())
    assert "step 3: the loss or its gradient is not finite; its images: " in caplog.text


def test_four_such_steps_in_a_row_stop_it(tmp_path: Path, groups: list):
    with planted(2, 9), pytest.raises(NothingUsableError, match=r"step 6: .*\.png.* lower learning_rate"):
        train(make_recipe(steps=10), groups, scorer=make_encoder(), out=tmp_path)


def test_too_many_unreadable_images_stop_it(tmp_path: Path):
    damaged = make_groups(tmp_path, prompts=2)
    damaged[1].images[0].path.write_bytes(b"")
    with pytest.raises(NothingUsableError, match="1 of 10 images cannot be read"):
        train(make_recipe(), damaged, scorer=make_encoder(), out=tmp_path / "run")


@POSIX
def test_killed_at_random_times_it_ends_as_if_it_had_not_been(
    tmp_path: Path, groups: list[PreferenceGroup], unseen: list[PreferenceGroup]
):
    recipe = make_recipe(steps=10, stage_1_steps=4, evaluate_every=2, save_every=1, batch_size=4)

    def run(out: Path, resume: bool) -> None:
        train(recipe, groups, scorer=make_encoder(dropout=0.3), out=out, validation=unseen[:1], resume=resume)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    # a child as well: with another number of threads sums come out differently
    assert in_child(lambda: run(whole, False))
    log, rng, kills = cut / "metrics.jsonl", random.Random(0), 0

    def written() -> int:
        return log.stat().st_size if log.exists() else 0

    for _ in range(8):
        # a row has 300 to 450 bytes and is followed by a validation, a checkpoint or both
        start, more = written(), rng.randint(1, 1000)
        kills += not in_child(lambda: run(cut, True), lambda start=start, more=more: written() - start > more)
    assert in_child(lambda: run(cut, True))
    assert metrics(cut) == metrics(whole)
    for name in ("best", "last"):
        assert tree(cut)[f"{name}/{WEIGHTS}"] == tree(whole)[f"{name}/{WEIGHTS}"]
    print(f"killed {kills} times")
    assert kills >= 3


@POSIX
def test_two_processes_reach_the_losses_of_one(tmp_path: Path):
    found = []
    images = tmp_path / "images"
    images.mkdir()
    command = [sys.executable, "-m", "support.bright_training", str(tmp_path / "two"), str(images), "2"]
    # what other tests of this process have told accelerate through the environment is not for this one
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "TORCH"))}
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, timeout=110, capture_output=True, text=True, cwd=tests, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    groups = make_groups(images)
    train(RECIPE_OF_TWO, groups, scorer=make_encoder(), out=tmp_path / "one", validation=groups[:3])
    for name in ("one", "two"):
        found.append([row.get("loss", row.get("validation_accuracy")) for row in metrics(tmp_path / name)])
    difference = max(abs(a - b) for a, b in zip(*found, strict=True))
    print(f"largest difference of a loss {difference:.1e}")
    assert difference < 1e-5
    one, two = (load_file(tmp_path / name / "last" / WEIGHTS) for name in ("one", "two"))
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-3


def test_bfloat16_and_recomputation_learn_the_same_in_float32_weights(tmp_path: Path, groups: list):
    rows = {}
    for name, changes in {
        "plain": {},
        "recomputed": {"gradient_checkpointing": True},
        "half": {"precision": "bfloat16", "micro_batch_size": 3},
    }.items():
        scorer = make_encoder()
        train(make_recipe(steps=10, **changes), groups, scorer=scorer, out=tmp_path / name)
        rows[name] = [row["loss"] for row in steps(tmp_path / name)]
        assert {p.dtype for p in scorer.parameters()} == {torch.float32}
    assert rows["recomputed"] == pytest.approx(rows["plain"], abs=1e-5)
    assert rows["half"] == pytest.approx(rows["plain"], abs=0.1)
    assert rows["half"] != rows["plain"]


def test_only_the_last_blocks_learn(tmp_path: Path, groups: list):
    before = make_encoder().state_dict()
    scorer = make_encoder()
    train(make_recipe(steps=3, trainable_image_blocks=1, trainable_text_blocks=0), groups, scorer=scorer, out=tmp_path)
    moved = {key for key, value in scorer.state_dict().items() if not torch.equal(value, before[key])}
    behind = {key for key in before if key.startswith(("clip.visual.ln_post", "clip.visual.proj"))}
    last = {key for key in before if key.startswith("clip.visual.transformer.resblocks.1.")}
    assert moved == last | behind | {"clip.logit_scale"}


@pytest.mark.parametrize("start", [0.01, 4.6])
def test_the_logit_scale_stays_in_its_range(start: float, tmp_path: Path, groups: list):
    scorer = make_encoder()
    torch.nn.init.constant_(scorer.clip.logit_scale, start)
    train(make_recipe(steps=8, learning_rate=0.05, warmup_steps=0), groups, scorer=scorer, out=tmp_path)
    scales = [row["logit_scale"] for row in steps(tmp_path)]
    assert all(1 <= scale <= 100.001 for scale in scales)


def test_a_tracker_that_is_missing_says_how_to_get_it(tmp_path: Path, groups: list):
    with pytest.raises(UsageError, match=r"expected a tracker out of .*tensorboard.*, none, got 'board'"):
        train(make_recipe(), groups, scorer=make_encoder(), out=tmp_path / "a", tracker="board")
    assert not (tmp_path / "a").exists()  # before the work
    if find_spec("tensorboard") is None:
        with pytest.raises(UsageError, match=r"pip install 'sp-rerank\[train\]'"):
            train(make_recipe(), groups, scorer=make_encoder(), out=tmp_path / "b", tracker="tensorboard")
    else:
        train(make_recipe(steps=10), groups, scorer=make_encoder(), out=tmp_path / "b", tracker="tensorboard")
        assert list((tmp_path / "b" / "tensorboard").iterdir())
