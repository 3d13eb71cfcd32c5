"""generate(): what wins, what never wins, what is kept, and what a resumed run is."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
import torch
from PIL import Image
from support.doubles import SeededPipe
from support.runs import files_of

from sp_rerank.diffusion.sampler import Sampler
from sp_rerank.errors import NothingUsableError, TryAgainError, UsageError
from sp_rerank.generate import generate
from sp_rerank.replay import batch_of
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.storage.images import read_record

SCORER = BrightnessScorer()


def run(pipe, folder=None, **arguments):
    arguments = {"n": 100, "batch_size": 8, "guidance_scale": 1.0, **arguments}
    return generate("a lemon", pipe=pipe, scorer=SCORER, out=folder, **arguments)


def test_the_best_of_a_hundred_are_the_brightest(tmp_path):
    best = run(SeededPipe(), tmp_path / "run")
    means = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(s)).mean().item() for s in range(100)]
    expected = sorted(range(100), key=lambda s: -means[s])[:4]
    assert [r.candidate.seed for r in best] == expected
    assert [r.rank for r in best] == [1, 2, 3, 4]
    assert [r.score for r in best] == pytest.approx([means[s] for s in expected], abs=1e-6)


def test_without_a_folder_the_result_is_the_same(tmp_path):
    kept, written = run(SeededPipe(), top_k=3, seed=7), run(SeededPipe(), tmp_path / "run", top_k=3, seed=7)
    assert [(r.candidate.index, r.candidate.seed, r.score) for r in kept] == [
        (r.candidate.index, r.candidate.seed, r.score) for r in written
    ]
    assert [r.candidate.image.tobytes() for r in kept] == [r.candidate.image.tobytes() for r in written]


def test_the_folder_holds_everything(tmp_path):
    best = run(SeededPipe(), tmp_path / "run", n=20, seed=50)
    folder = RunDir.read(tmp_path / "run")
    assert folder.verify() == []
    assert sorted(folder.rows) == list(range(20))
    assert all(row.seed == 50 + row.index for row in folder.rows.values())
    assert {row.batch_size for row in folder.rows.values()} == {8, 4}
    assert (tmp_path / "run" / "grid.png").stat().st_size > 10_000
    top = sorted((tmp_path / "run" / "top").iterdir())
    assert [path.name for path in top] == [f"{r.rank:02d}_seed{r.candidate.seed}.png" for r in best]
    record = read_record(top[0])
    assert record is not None
    assert (record["prompt"], record["seed"], record["rank"]) == ("a lemon", best[0].candidate.seed, 1)
    assert record["scores"] == {"brightness": pytest.approx(best[0].score)}


def test_three_images_that_are_not_finite(tmp_path):
    def spoil(seeds, images):
        for place, seed in enumerate(seeds):
            if seed in (3, 50, 97):
                images[place] = float("nan") if seed != 50 else 1.0
                images[place, 0, 0, 0] = float("nan")

    best = run(SeededPipe(spoil), tmp_path / "run")
    rows = RunDir.read(tmp_path / "run").rows
    broken = [index for index, row in rows.items() if row.status == "nonfinite"]
    print(f"NaN in 3 of 100: {len(broken)} marked, {len({r.candidate.index for r in best} & set(broken))} in the top 4")
    assert broken == [3, 50, 97]
    assert not {r.candidate.index for r in best} & {3, 50, 97}


def test_more_than_a_tenth_not_finite(tmp_path):
    def spoil(seeds, images):
        images[[seed % 8 == 0 for seed in seeds]] = float("nan")

    with pytest.raises(NothingUsableError, match=r"13 of 100 .*dtype float32"):
        run(SeededPipe(spoil), tmp_path / "run")
    assert RunDir.read(tmp_path / "run").verify() == []


def test_flagged_images_never_win(tmp_path):
    brightest = [r.candidate.seed for r in run(SeededPipe(), top_k=5)]
    best = run(SeededPipe(flagged=brightest), tmp_path / "run")
    rows = RunDir.read(tmp_path / "run").rows
    assert sorted(i for i, row in rows.items() if row.status == "flagged") == sorted(brightest)
    print(f"5 flagged: {len({r.candidate.seed for r in best} & set(brightest))} of them in the top 4")
    assert not {r.candidate.seed for r in best} & set(brightest)


def test_all_flagged():
    with pytest.raises(NothingUsableError, match="the safety checker replaced 10"):
        run(SeededPipe(flagged=range(10)), n=10)


def test_the_accelerator_is_lost_at_batch_seven(tmp_path):
    calls = []

    def spoil(seeds, images):
        calls.append(seeds)
        if len(calls) == 7:
            raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    with pytest.raises(TryAgainError, match="resume"):
        run(SeededPipe(spoil), tmp_path / "cut")
    assert len(RunDir.read(tmp_path / "cut").rows) == 48
    resumed = SeededPipe()
    run(resumed, tmp_path / "cut", resume=True)
    assert len(resumed.made) == 7  # of 13 batches, 6 were done
    run(SeededPipe(), tmp_path / "whole")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_batch_that_was_cut_in_the_middle_is_made_whole(tmp_path):
    run(SeededPipe(), tmp_path / "whole", n=24)
    run(SeededPipe(), tmp_path / "cut", n=24)
    manifest = tmp_path / "cut" / "candidates.jsonl"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:11]) + b'{"index": 11, "se')
    pipe = SeededPipe()
    run(pipe, tmp_path / "cut", n=24, resume=True)
    assert pipe.made == [list(range(8, 16)), list(range(16, 24))]
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_stop_keeps_what_is_done(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(SeededPipe(), tmp_path / "run", stop=lambda: True)
    assert len(RunDir.read(tmp_path / "run").rows) == 8
    best = run(SeededPipe(), tmp_path / "run", resume=True)
    assert [r.candidate.seed for r in best] == [r.candidate.seed for r in run(SeededPipe())]


def test_a_finished_run_makes_nothing_again(tmp_path):
    first = run(SeededPipe(), tmp_path / "run", n=10)
    pipe = SeededPipe()
    again = run(pipe, tmp_path / "run", n=10)
    assert pipe.made == []
    assert [r.score for r in again] == [r.score for r in first]


def test_another_run_in_the_folder_is_refused(tmp_path):
    run(SeededPipe(), tmp_path / "run", n=10)
    before = files_of(tmp_path / "run")
    with pytest.raises(UsageError, match="seed"):
        run(SeededPipe(), tmp_path / "run", n=10, seed=5)
    assert files_of(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 3, "top_k": 4}, "top_k is 4; expected at most 3"),
        ({"top_k": 0}, "top_k is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"search": "magic"}, "no search 'magic': expected exhaustive, fast, steering, or a schedule"),
    ],
)
def test_wrong_arguments_write_nothing(tmp_path, wrong, message):
    with pytest.raises(UsageError, match=message):
        run(SeededPipe(), tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()


def test_what_stands_in_the_folder_counts(tmp_path):
    """A batch that is made again on another machine may differ: the first pixels and scores stay, and decide."""
    run(SeededPipe(), tmp_path / "run", n=16)
    manifest = tmp_path / "run" / "candidates.jsonl"
    manifest.write_bytes(b"".join(manifest.read_bytes().splitlines(keepends=True)[:11]))

    def drift(seeds, images):
        images.mul_(0.9)

    resumed = run(SeededPipe(drift), tmp_path / "run", n=16, top_k=16, resume=True)
    again = run(SeededPipe(), tmp_path / "run", n=16, top_k=16)
    rows = RunDir.read(tmp_path / "run").rows
    assert [(r.candidate.index, r.score) for r in resumed] == [(r.candidate.index, r.score) for r in again]
    assert all(r.score == rows[r.candidate.index].scores["brightness"] for r in resumed)


def test_a_sheet_of_very_many_stays_a_picture(tmp_path):
    run(SeededPipe(), tmp_path / "run", n=500, batch_size=100)
    with Image.open(tmp_path / "run" / "grid.png") as sheet:
        assert sheet.width * sheet.height < 12e6


def test_run_json_tells_how_it_was_made(tmp_path):
    run(SeededPipe(), tmp_path / "run", n=4, negative_prompt=None)
    config = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["schema"] == 2
    assert config["scorers"] == ["brightness"]
    assert config["versions"]["torch"] == version("torch")
    assert (config["n"], config["seed"], config["batch_size"], config["dtype"]) == (4, 0, 8, "float32")


@pytest.mark.parametrize("n", [1, 7, 8, 20, 23])
@pytest.mark.parametrize("batch_size", [3, 6, 8, 16])
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 99])
def test_a_batch_is_found_again_by_its_size(n, batch_size, limit):
    def spoil(seeds, images):
        if len(seeds) > limit:
            raise torch.OutOfMemoryError("planted")

    sampler = Sampler(SeededPipe(spoil), "a lemon", batch_size=batch_size, guidance_scale=1.0, num_inference_steps=1)
    for batch in sampler.batches({i: i for i in range(n)}):
        for index in batch.indices:
            assert batch_of(index, len(batch.indices), batch_size, range(n)) == list(batch.indices)


def test_several_prompts_are_made_with_one_pipeline(tmp_path):
    pipe, prompts = SeededPipe(), ["a lemon", "a cat", "a lemon"]
    found = generate(prompts, pipe=pipe, scorer=SCORER, out=tmp_path, n=6, seed=3, guidance_scale=1.0)
    assert len(pipe.made) == 2 * 2  # the third is the first
    assert [[r.prompt for r in result] for result in found] == [[prompt] * 4 for prompt in prompts]
    assert len(list(tmp_path.iterdir())) == 2
    alone = run(SeededPipe(), n=6, seed=3, batch_size=None)
    assert [(r.seed, r.score) for r in found[0]] == [(r.seed, r.score) for r in alone]
    assert [RunDir.read(result.folder).config.prompt for result in found if result.folder] == prompts


def test_of_several_prompts_all_are_checked_first():
    pipe = SeededPipe()
    with pytest.raises(UsageError, match="prompt is ''"):
        generate(["a lemon", ""], pipe=pipe, scorer=SCORER)
    assert pipe.made == []


def test_of_several_prompts_one_has_nothing_usable(caplog):
    class Flagging(SeededPipe):
        def __call__(
            self,
            prompt,
            num_inference_steps=5,
            num_images_per_prompt=1,
            generator=None,
            output_type="pt",
            return_dict=True,
        ):
            self.flagged = set(range(100)) if prompt == "a cat" else set()
            return super().__call__(prompt, num_inference_steps, 1.0, num_images_per_prompt, generator)

    found = generate(["a lemon", "a cat", "a dog"], pipe=Flagging(), scorer=SCORER, n=3)
    assert [len(result) for result in found] == [3, 0, 3]
    assert "'a cat': none of 3 images is usable" in caplog.text
