"""`sp-rerank batch` as a person meets it: results, exit codes, what is refused and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.batch_worlds import poisoned

from sp_rerank import cli
from sp_rerank.batch.ledger import Failure, Ledger
from sp_rerank.batch.order import Models, Order
from sp_rerank.batch.packs import Pack
from sp_rerank.batch.prompt_batch import BatchSettings, PromptBatch
from sp_rerank.batch.prompts import PromptRow, rows_of
from sp_rerank.batch.shards import Shard, accelerators, parse_shard
from sp_rerank.batch.units import key_of
from sp_rerank.batch.worker import UnitMaker
from sp_rerank.errors import OptionError, UsageError

MINI = ["--model", "mini", "--scorer", "brightness", "--n", "2", "--steps", "1", "--top-k", "1"]


@pytest.fixture
def sp_rerank(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["sp-rerank", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def test_a_list_is_made_and_made_no_second_time(sp_rerank, tmp_path):
    (tmp_path / "p.csv").write_text("id,prompt,n,kind\na,a lemon,3,fruit\nb,a cat,,pet\n")
    code, out, err = sp_rerank("batch", "p.csv", *MINI)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["a", "b"]
    assert "2 prompts, 2 to be made here: batches/p" in err
    ledger = Ledger("batches/p")
    assert [row.meta for row in ledger.rows()] == [{"kind": "fruit"}, {"kind": "pet"}]
    code, out, err = sp_rerank("batch", "p.csv", *MINI)
    assert (code, out) == (0, "")
    assert "2 prompts, 0 to be made here" in err
    code, out, _ = sp_rerank("batch", "status", "batches/p")
    assert (code, out) == (0, "2 done (5 candidates), 0 failed, 0 left\n")

    # other options, other lists
    for words, said in (
        (["--n", "3"], "n is 2, not 3"),
        (["--steps", "2"], "steps is 1, not 2"),
        (["--keep", "all"], "keep is top, not all"),
    ):
        code, _, err = sp_rerank("batch", "p.csv", *MINI, *words)
        assert (code, len(err.splitlines())) == (2, 1)
        assert said in err
    (tmp_path / "q.csv").write_text("id,prompt,n,kind\na,a lemon tree,3,fruit\nb,a cat,,pet\n")
    code, _, err = sp_rerank("batch", "q.csv", *MINI, "-o", "batches/p")
    assert code == 2
    assert "the row 'a' was {'n': 3, 'prompt': 'a lemon'}, is {'n': 3, 'prompt': 'a lemon tree'} now" in err
    (tmp_path / "q.csv").write_text("id,prompt,n,kind\na,a lemon,3,fruit\n")
    code, _, err = sp_rerank("batch", "q.csv", *MINI, "-o", "batches/p")
    assert code == 2 and "1 of its 2 rows are not in this one" in err

    # a row that was added is made
    (tmp_path / "p.csv").write_text("id,prompt,n,kind\na,a lemon,3,fruit\nb,a cat,,pet\nc,a dog,,pet\n")
    code, out, err = sp_rerank("batch", "p.csv", *MINI)
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["c"])


def test_failures_are_named_and_made_due_again(sp_rerank, tmp_path):
    ledger = Ledger("batches/p")
    ledger.add_prompts(rows_of(["a", "b", "c"]))
    ledger.fail(Failure("1", "failed", "this\x1b[2J prompt", 1))
    code, out, _ = sp_rerank("batch", "status", "batches/p")
    assert (code, out.splitlines()[0]) == (0, "0 done (0 candidates), 1 failed, 2 left")
    assert out.splitlines()[1] == "1  failed after 1: this [2J prompt"
    code, out, _ = sp_rerank("batch", "status", "batches/p", "--json")
    assert json.loads(out)["failures"] == [{"id": "1", "status": "failed", "tries": 1, "error": "this\x1b[2J prompt"}]
    code, out, _ = sp_rerank("batch", "retry", "batches/p")
    assert (code, out.split()[0]) == (0, "1")
    assert ledger.failures() == []


def test_a_batch_with_failures_ends_with_4(sp_rerank, tmp_path):
    (tmp_path / "p.txt").write_text("a\n" + "many words " * 200 + "\n")
    code, out, err = sp_rerank("batch", "p.txt", *MINI, "--strict")
    assert code == 4, err
    assert "1 of 2 prompts failed: `sp-rerank batch status batches/p` names them" in err
    assert "1  failed: the prompt is too long" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["p.txt", "--n", "0"], "--n is 0"),
        (["p.txt", "--shard", "2/2"], "--shard is '2/2'; expected I/N"),
        (["p.txt", "--shard", "auto"], "--shard is 'auto'; expected I/N"),
        (["p.txt", "--max-failed", "many"], "--max-failed is 'many'"),
        (["p.txt", "--keep", "run", "--out", "memory:///x"], "--keep is 'run'"),
        (["p.txt", "--more", "3"], "--more is 3; expected none"),
        (["none.txt"], "none.txt: expected a file with prompts, found none"),
        (["latin.txt"], "latin.txt: line 1 is not UTF-8"),
        (["rows.csv"], "row '0': top_k is 4; expected at most 2"),
        (["p.txt", "--search", "nowhere"], "--search is 'nowhere'; expected exhaustive, fast, steering"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(sp_rerank, tmp_path, monkeypatch, words, said):
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "p.txt").write_text("a\n")
    (tmp_path / "latin.txt").write_bytes(b"ol\xe9\n")
    (tmp_path / "rows.csv").write_text("prompt,n\na,2\n")
    code, out, err = sp_rerank("batch", *words, "--top-k", "4")
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert said in err


def test_a_place_without_a_batch(sp_rerank):
    code, _, err = sp_rerank("batch", "status", "nothing")
    assert code == 2
    assert "nothing holds no batch" in err
    code, _, err = sp_rerank("batch", "retry", "nothing")
    assert code == 2


def test_shards():
    assert parse_shard("3/16") == Shard(3, 16)
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}
    assert parse_shard("auto", {**array, "SLURM_ARRAY_TASK_STEP": "2"}) == Shard(3, 4)
    assert parse_shard("auto/9", {"JOB_COMPLETION_INDEX": "8"}) == Shard(8, 9)
    assert parse_shard("auto", {"RANK": "1", "WORLD_SIZE": "2"}) == Shard(1, 2)
    assert parse_shard("auto", {"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}) == Shard(0, 3)
    for text, environment in (
        ("auto", {}), ("auto", {"JOB_COMPLETION_INDEX": "8"}), ("4/4", {}), ("1", {}), ("a/b", {}), ("-1/3", {}),
        ("1/0", {}),
    ):  # fmt: skip
        with pytest.raises(OptionError):
            parse_shard(text, environment)


def test_accelerators():
    assert accelerators({"CUDA_VISIBLE_DEVICES": "2,5"}) == ["2", "5"]
    assert accelerators({"CUDA_VISIBLE_DEVICES": "2,5", "LOCAL_RANK": "1"}) == ["5"]
    assert accelerators({"CUDA_VISIBLE_DEVICES": ""}) == accelerators({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_a_function_that_workers_cannot_find_is_refused():
    with pytest.raises(UsageError, match="worker processes can import"):
        Models.of(lambda: poisoned())
    assert Models.of(poisoned).function == "support.batch_worlds:poisoned"


def test_shards_are_a_partition(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add_prompts(rows_of(map(str, range(10))))
    parts = []
    for index in range(3):
        batch = PromptBatch(map(str, range(10)), tmp_path, settings=BatchSettings(shard=Shard(index, 3)))
        parts.append([row_id for pack in batch.due() for row_id in pack.due])
    assert parts == [["0", "3", "6", "9"], ["1", "4", "7"], ["2", "5", "8"]]


def test_status_of_ten_thousand_units_needs_no_engine(tmp_path, clock):
    ledger = Ledger(tmp_path)
    maker = UnitMaker(Order(str(tmp_path), Models.of(poisoned), {"n": 4, "steps": 1, "guidance_scale": 1.0}))
    assert [outcome.status for outcome in maker.make(Pack.of(PromptRow("x", "a")))] == ["ok"]
    data = (tmp_path / key_of("x")).read_bytes()
    (tmp_path / key_of("x")).unlink()
    ledger.add_prompts(rows_of(map(str, range(10_001))))
    for number in range(10_000):
        path = tmp_path / key_of(str(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    began = clock()
    status = Ledger(tmp_path).status()
    seconds = clock() - began
    print(f"\nstatus of {status.done} units: {seconds:.2f} s of CPU")
    assert (status.done, status.left, status.images) == (10_000, 1, 40_000)
    assert seconds < 5


def test_importing_the_commands_stays_cheap():
    heavy = ("ray", "pyarrow", "duckdb", "obstore", "torch")
    code = f"import sys, sp_rerank.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout == "[]\n"
