"""Which run a folder goes on with: a new one, its own, or its own with more candidates."""

from __future__ import annotations

import pytest
from support.runs import row_of, run_config, summary_of

from sp_rerank.errors import OptionError, UsageError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.opening import default_folder, open_as
from sp_rerank.run.writer import RunWriter


def write(folder, n=4, made=None, **changes):
    """A run folder with some of its candidates, concluded if it has all."""
    config = run_config(n, **changes)
    with RunWriter.start(folder, config) as run:
        run.commit([(row_of(b"x", index), b"x") for index in range(n if made is None else made)])
        if made is None:
            run.finish([0], summary_of(0, n=n))
    return config


def test_a_new_folder_takes_what_is_asked_for(tmp_path):
    asked = run_config(4)
    found = open_as(tmp_path / "run", asked)
    assert (found.config, found.schema, found.held, found.grows) == (asked, None, 0, False)


@pytest.mark.parametrize(("asked", "more", "n", "grown"), [(6, None, 6, ()), (7, 3, 7, ()), (1, 1, 5, ())])
def test_a_finished_run_of_whole_batches_grows_without_a_trace(tmp_path, asked, more, n, grown):
    write(tmp_path / "run", n=4)
    found = open_as(tmp_path / "run", run_config(asked), more)
    assert (found.config.n, found.config.grown, found.grows) == (n, grown, True)
    assert found.config == run_config(n)


def test_where_a_batch_was_cut_the_run_says_so(tmp_path):
    write(tmp_path / "run", n=3)
    config = open_as(tmp_path / "run", run_config(8)).config
    assert config.grown == (3,)
    assert [(part.start, part.stop) for part in config.parts()] == [(0, 3), (3, 4), (4, 8)]
    with RunWriter.start(tmp_path / "run", run_config(8)) as run:
        run.commit([(row_of(b"x", index), b"x") for index in range(3, 8)])
        run.finish([0], summary_of(0, n=8))
    assert RunDir.read(tmp_path / "run").config.grown == (3,)
    assert not open_as(tmp_path / "run", run_config(8)).grows  # asked for again, it is there
    assert open_as(tmp_path / "run", run_config(1), more=1).config.n == 9


def test_a_search_that_drops_takes_the_new_ones_by_themselves(tmp_path):
    search = {"strategy": "screening", "rounds": [[2, 20], [3, 5]]}
    grown = run_config(100, search=search).grown_to(160, run_config(1).stop).grown_to(161, run_config(1).stop)
    assert grown.grown == (100, 160)
    kept = [(part.start, part.stop, [entry.keep for entry in part.search.rounds]) for part in grown.parts()]
    assert kept == [(0, 100, [20, 5]), (100, 160, [12, 3]), (160, 161, [])]
    assert grown.parts()[2].search.strategy == "exhaustive"  # of one candidate there is nothing to choose


def test_fewer_candidates_than_there_are_is_refused(tmp_path):
    write(tmp_path / "run", n=4)
    with pytest.raises(OptionError, match=r"n is 3; expected at least 4, for .*run holds as many"):
        open_as(tmp_path / "run", run_config(3))


def test_another_run_does_not_grow(tmp_path):
    write(tmp_path / "run", n=4)
    with pytest.raises(UsageError, match=r"holds another run: steps is 2, not 9; choose another folder"):
        open_as(tmp_path / "run", run_config(8, steps=9))


def test_an_unfinished_run_is_resumed_before_it_grows(tmp_path):
    write(tmp_path / "run", n=4, made=2)
    with (
        pytest.raises(UsageError, match="holds 2 of 4 candidates of this run; resume it"),
        RunWriter.start(tmp_path / "run", run_config(8)),
    ):
        pass
    assert RunDir.read(tmp_path / "run").n == 4
    with RunWriter.start(tmp_path / "run", run_config(100), more=3, resume=True) as run:
        assert run.n == 4  # what was begun is ended first
    with RunWriter.start(tmp_path / "run", run_config(8), resume=True) as run:
        assert (run.n, run.missing) == (8, [2, 3, 4, 5, 6, 7])


def test_nothing_to_add_to(tmp_path):
    with pytest.raises(OptionError, match=r"more is 3; expected none: there is no run in .*run to add to"):
        open_as(tmp_path / "run", run_config(4), more=3)
    with pytest.raises(OptionError, match="there is no run of this kind in"):
        default_folder(tmp_path, run_config(4), more=3)


def test_while_it_grows_it_is_not_said_to_be_done(tmp_path):
    write(tmp_path / "run", n=4)
    assert RunDir.read(tmp_path / "run").result
    with RunWriter.start(tmp_path / "run", run_config(6)):
        growing = RunDir.read(tmp_path / "run")
        assert growing.result is None
        assert (growing.n, growing.missing, growing.verify()) == (6, [4, 5], [])


def test_a_run_that_a_rule_ended_goes_on_under_another_rule(tmp_path):
    ruled = write(tmp_path / "run", n=8, made=2, stop=run_config(1).stop.from_json({"confidence": 0.9}))
    with RunWriter.start(tmp_path / "run", ruled, resume=True) as run:
        run.finish([0], summary_of(0, n=8, by="confidence", detail="p = 0.95"))
    with RunWriter.start(tmp_path / "run", run_config(8)) as run:
        assert (run.missing, run.config.stop) == ([2, 3, 4, 5, 6, 7], run_config(8).stop)


def test_batches_stay_those_that_the_run_began_with(tmp_path, caplog):
    write(tmp_path / "run", n=4)
    assert open_as(tmp_path / "run", run_config(8, batch_size=4)).config.batch_size == 2
    assert "goes on in the batches that it began with, of 2, not of 4" in caplog.text


def test_the_folder_of_a_run_is_found_whatever_its_size(tmp_path):
    first = default_folder(tmp_path, run_config(4))
    write(first, n=4)
    assert default_folder(tmp_path, run_config(9)) == first
    second = default_folder(tmp_path, run_config(3))
    assert second.name == f"{first.name}-2"  # fewer than the first holds
    write(second, n=3)
    assert default_folder(tmp_path, run_config(3)) == second
    assert default_folder(tmp_path, run_config(100), more=1) == first
