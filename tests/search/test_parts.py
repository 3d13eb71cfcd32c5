"""A run that grows: its first candidates stay as they are, and the new ones are those of a larger run."""

from __future__ import annotations

import json

import pytest
from support.blurred import BlurredPipe, run
from support.doubles import SeededPipe
from support.runs import files_of

from sp_rerank.replay import Replays
from sp_rerank.run.folder import RunDir

FAST = 'strategy = "screening"\nrounds = [{steps = 2, keep = 0.4}, {steps = 3, keep = 0.15}]\n'


def images(folder):
    """Bytes of the images by index, and the scores."""
    read = RunDir.read(folder)
    assert read.verify() == []
    return {index: (read.image_bytes(index), row.scores, row.stages) for index, row in sorted(read.rows.items())}


@pytest.mark.parametrize("how", [{"n": 40}, {"more": 24}])
def test_16_and_24_more_are_40_at_once_byte_for_byte(tmp_path, how):
    run(SeededPipe(), tmp_path / "grown", n=16)
    pipe = SeededPipe()
    result = run(pipe, tmp_path / "grown", **how)
    run(SeededPipe(), tmp_path / "whole", n=40)
    assert files_of(tmp_path / "grown") == files_of(tmp_path / "whole")
    assert pipe.made == [list(range(first, first + 8)) for first in (16, 24, 32)]
    assert (result.summary.n, result.summary.made, result.nfe) == (40, 40, 40 * 5)


def test_a_batch_that_was_cut_short_is_not_made_again(tmp_path):
    run(SeededPipe(), tmp_path / "grown", n=13)
    before = images(tmp_path / "grown")
    pipe = SeededPipe()
    run(pipe, tmp_path / "grown", n=40)
    assert pipe.made == [list(range(13, 16)), *(list(range(first, first + 8)) for first in (16, 24, 32))]
    after = images(tmp_path / "grown")
    assert {index: after[index] for index in before} == before
    run(SeededPipe(), tmp_path / "whole", n=40)
    assert after == images(tmp_path / "whole")  # this pipeline rounds alike in every batch
    assert json.loads((tmp_path / "grown" / "run.json").read_text())["grown"] == [13]


def test_growing_that_was_cut_short_is_resumed_to_the_same_bytes(tmp_path):
    for name in ("whole", "cut"):
        run(SeededPipe(), tmp_path / name, n=13)
    run(SeededPipe(), tmp_path / "whole", more=20)
    with pytest.raises(KeyboardInterrupt):
        run(SeededPipe(), tmp_path / "cut", more=20, stop=lambda: True)
    assert len(RunDir.read(tmp_path / "cut").rows) == 16
    run(SeededPipe(), tmp_path / "cut", more=20, resume=True)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_every_candidate_of_a_grown_run_is_replayed(tmp_path):
    """The sums of a batch depend on its size here, as on a real machine."""

    def round_by_batch(seeds, images):
        images.mul_(1 - len(seeds) / 50)

    for n in (5, 11, 30):
        run(SeededPipe(round_by_batch), tmp_path / "run", n=n)
    folder = RunDir.read(tmp_path / "run")
    assert folder.config.grown == (5, 11)
    again = Replays(folder, SeededPipe(round_by_batch))
    same = [again.write(i, tmp_path / f"{i}.png") for i in range(30)]
    assert same == [True] * 30


def test_a_search_takes_the_new_candidates_by_themselves(tmp_path):
    (tmp_path / "fast.toml").write_text(FAST)
    fast = {"search": tmp_path / "fast.toml", "top_k": 2}
    run(BlurredPipe(), tmp_path / "run", n=40, **fast)
    before = images(tmp_path / "run")
    progress = []
    result = run(BlurredPipe(), tmp_path / "run", more=20, progress=progress.append, **fast)
    after = images(tmp_path / "run")
    assert {index: after[index] for index in before} == before
    run(BlurredPipe(), tmp_path / "alone", n=20, seed=40, **fast)
    alone = images(tmp_path / "alone")
    assert [scores for _, *scores in list(after.values())[40:]] == [scores for _, *scores in alone.values()]
    rows = RunDir.read(tmp_path / "run").rows
    assert [row.status for row in rows.values()].count("ok") == 6 + 3
    assert result[0].score == max(row.scores["brightness"] for row in rows.values() if row.status == "ok")
    assert [(seen.done, seen.total) for seen in progress][-1] == (9, 9)
    assert all(seen.done <= seen.total for seen in progress)
    same = {
        index: Replays(RunDir.read(tmp_path / "run"), BlurredPipe()).write(index, tmp_path / "x.png") for index in rows
    }
    assert same == {index: True if row.status == "ok" else None for index, row in rows.items()}


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_search_that_grows_is_stopped_anywhere_and_resumed(tmp_path, after):
    (tmp_path / "fast.toml").write_text(FAST)
    fast = {"search": tmp_path / "fast.toml", "top_k": 2}
    for name in ("whole", "cut"):
        run(BlurredPipe(), tmp_path / name, n=40, **fast)
    run(BlurredPipe(), tmp_path / "whole", more=20, **fast)
    asked = []
    with pytest.raises(KeyboardInterrupt):
        run(BlurredPipe(), tmp_path / "cut", more=20, stop=lambda: asked.append(1) or len(asked) == after, **fast)
    run(BlurredPipe(), tmp_path / "cut", more=20, resume=True, **fast)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_more_of_a_run_in_memory_is_refused():
    with pytest.raises(ValueError, match="more is 3; expected none: a run that is kept in memory"):
        run(SeededPipe(), more=3)
