"""The run folder in one process: what it takes, what it refuses, what it finds wrong. Crashes are in crash/."""

import errno
import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import row_of, run_config, summary_of

from sp_rerank.config import RunConfig
from sp_rerank.errors import FolderBusyError, StorageError, UsageError
from sp_rerank.run import records
from sp_rerank.run.folder import RunDir
from sp_rerank.run.layout import run_folder_name
from sp_rerank.run.records import Row
from sp_rerank.run.writer import RunWriter
from sp_rerank.storage import atomic

GOLDEN = Path(__file__).parents[1] / "data" / "run_v1"
CONFIG = run_config()


def commit(run, index, png=None, **changes):
    png = png or b"image %d" % index
    run.commit([(row_of(png, index, **changes), png)])
    return run.rows[index]


def make(folder, indices=range(5), config=CONFIG):
    with RunWriter.start(folder, config) as run:
        for index in indices:
            commit(run, index)
    return folder


def edit_line(folder, number, **changes):
    path = folder / "candidates.jsonl"
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **changes})
    path.write_text("\n".join(lines) + "\n")


# What is written is what is read


def test_a_run_is_read_as_it_was_written(tmp_path):
    with RunWriter.start(tmp_path / "deep" / "run", CONFIG) as run:
        row = commit(run, 3, b"three", scores={"a": None, "b": 0.1}, status="nonfinite")
        assert run.missing == [0, 1, 2, 4]
    read = RunDir.read(tmp_path / "deep" / "run")
    assert read.rows == {3: row}
    assert row.scores == {"a": None, "b": 0.1}
    assert row.file == "images/00003.png"
    assert read.config == CONFIG
    assert read.image(3).read_bytes() == b"three"
    assert read.verify() == []


def test_run_json_has_its_keys_sorted_and_no_time(tmp_path):
    text = (make(tmp_path / "run") / "run.json").read_text()
    assert text == json.dumps({**CONFIG.to_json(), "schema": 2}, sort_keys=True, indent=2) + "\n"


@given(
    st.integers(0, 10**9),
    st.integers(-(2**63), 2**64),
    st.sampled_from(["ok", "flagged", "nonfinite"]),
    st.dictionaries(st.text(max_size=9), st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
@settings(max_examples=50)
def test_a_row_survives_its_line(index, seed, status, scores):
    row = Row(index, seed, status, scores, "0f" * 32, 0, 1)
    line = row.to_line()
    assert Row.from_line(line) == row
    assert line.count(b"\n") == 1


def test_resume_makes_a_batch_whole_again_and_keeps_what_is_there(tmp_path, caplog):
    folder = make(tmp_path / "run", [0, 1])
    with RunWriter.start(folder, CONFIG, resume=True) as run:
        before = (folder / "candidates.jsonl").read_bytes()
        assert commit(run, 0) == run.rows[0]
        assert caplog.messages == []
        assert commit(run, 1, b"another") == run.rows[1]
        assert caplog.messages == ["candidate 1 came out different when made again; the first one is kept"]
        assert (folder / "candidates.jsonl").read_bytes() == before
    assert RunDir.read(folder).verify() == []


def test_any_order_of_commits_ends_in_one_manifest(tmp_path):
    for name, indices in (("up", range(5)), ("mixed", [4, 0, 3, 1, 2])):
        with RunWriter.start(tmp_path / name, CONFIG) as run:
            for index in indices:
                commit(run, index)
            run.finish([4])
        assert RunDir.read(tmp_path / name).verify() == []
    manifests = {(tmp_path / name / "candidates.jsonl").read_bytes() for name in ("up", "mixed")}
    assert len(manifests) == 1


def test_finish_again_replaces_the_best_and_leaves_other_files(tmp_path):
    folder = make(tmp_path / "run")
    with RunWriter.start(folder, CONFIG) as run:
        run.finish([4, 0, 2], present=lambda run: (run.path / "grid.png").write_bytes(b"grid"))
        first = {path.name: path.read_bytes() for path in (folder / "top").iterdir()}
        assert first == {"01_seed44.png": b"image 4", "02_seed40.png": b"image 0", "03_seed42.png": b"image 2"}
        assert (folder / "grid.png").read_bytes() == b"grid"
        (folder / "top" / "mine.png").write_bytes(b"kept")
        run.finish([4, 1])
        run.finish([4, 1])
    assert sorted(path.name for path in (folder / "top").iterdir()) == ["01_seed44.png", "02_seed41.png", "mine.png"]
    assert not (folder / "grid.png").exists()


def test_finish_refuses_a_changed_image_and_an_absent_candidate(tmp_path):
    folder = make(tmp_path / "run", range(4))
    with RunWriter.start(folder, CONFIG, resume=True) as run:
        run.image(2).write_bytes(b"scribble")
        with pytest.raises(StorageError, match="changed since"):
            run.finish([2])
        with pytest.raises(UsageError, match="no candidate 4; it holds 4 of 5"):
            run.finish([4])


@pytest.mark.parametrize(
    "changes",
    [{"status": "fine"}, {"batch_size": 0}, {"seed": 1.0}, {"nfe": -1}, {"index": 5}, {"index": True}],
)
def test_a_wrong_value_is_not_committed(tmp_path, changes):
    with RunWriter.start(tmp_path / "run", CONFIG) as run:
        with pytest.raises(ValueError, match=r"should be|outside 0\.\.4"):
            commit(run, changes.pop("index", 0), **changes)
        assert RunDir.read(run.path).rows == {}
        assert run.verify() == []


# What a folder must be


def test_a_part_of_the_run_asks_for_resume(tmp_path):
    folder = make(tmp_path / "run", [0, 1])
    with pytest.raises(UsageError, match="holds 2 of 5 candidates of this run; resume it"):
        make(folder)


def test_a_complete_run_opens_with_everything(tmp_path):
    folder = make(tmp_path / "run")
    with RunWriter.start(folder, CONFIG) as run:
        assert run.missing == []
        assert len(run.rows) == 5


def test_nothing_committed_is_nothing_to_lose(tmp_path):
    folder = make(tmp_path / "run", [])
    assert RunDir.read(make(folder)).missing == []


def test_another_run_is_refused_with_its_differences(tmp_path):
    folder = make(tmp_path / "run")
    other = replace(CONFIG, prompt="x" * 5000, seed=1, steps=3, model=None, revision="abc")
    with pytest.raises(UsageError) as refused:
        make(folder, config=other)
    message = str(refused.value)
    assert "prompt is 'a lemon', not 'xxx" in message
    assert "model is 'mini', not not set; revision is not set, not 'abc' and 2 more" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500


def test_a_tuple_in_the_configuration_is_no_difference(tmp_path):
    config = replace(CONFIG, pipe_kwargs={"size": (512, 512)})
    folder = make(tmp_path / "run", config=config)
    make(folder, config=config)


@pytest.mark.parametrize(
    "changes", [{"n": 0}, {"n": True}, {"guidance_scale": float("nan")}, {"pipe_kwargs": {"x": float("inf")}}]
)
def test_a_configuration_that_cannot_be_stored(tmp_path, changes):
    with pytest.raises(ValueError):
        make(tmp_path / "run", config=replace(CONFIG, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="not a run folder"):
        make(tmp_path)
    with pytest.raises(UsageError, match="not a run folder"):
        RunDir.read(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_reading_no_folder_makes_none(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        RunDir.read(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_path_that_cannot_be_a_folder(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as refused:
        make(tmp_path / name)
    assert len(str(refused.value).splitlines()) == 1


def test_a_second_writer_is_refused(tmp_path):
    folder = tmp_path / "run"
    with RunWriter.start(folder, CONFIG):
        with pytest.raises(FolderBusyError, match="another process"):
            make(folder)
        with pytest.raises(UsageError, match="another run"):
            make(folder, config=replace(CONFIG, seed=1))
    make(folder)


def test_room_is_checked_before_anything_is_made(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3_000_000))
    with (
        pytest.raises(StorageError, match=r"need about 5\.0 MB, 3\.0 MB are free"),
        RunWriter.start(folder, CONFIG, image_bytes=1_000_000),
    ):
        pass
    assert not (folder / "run.json").exists()
    make(folder, range(4))
    with RunWriter.start(folder, CONFIG, resume=True, image_bytes=1_000_000) as run:
        assert run.missing == [4]


# Damage


def test_resume_makes_damaged_images_again(tmp_path, caplog):
    folder = make(tmp_path / "run")
    whole = (folder / "candidates.jsonl").read_bytes()
    (folder / "images" / "00001.png").unlink()
    (folder / "images" / "00003.png").write_bytes(b"scribble")
    with RunWriter.start(folder, CONFIG, resume=True) as run:
        assert run.missing == [1, 3]
        assert caplog.messages == [
            "images/00001.png: missing; it is made again",
            "images/00003.png: changed since it was committed (sha256 differs); it is made again",
        ]
        assert run.verify() == []
        for index in run.missing:
            commit(run, index)
        run.finish([3])
    assert RunDir.read(folder).verify() == []
    assert (folder / "candidates.jsonl").read_bytes() == whole


def test_a_torn_last_line_is_dropped(tmp_path):
    folder = make(tmp_path / "run", [0, 1])
    path = folder / "candidates.jsonl"
    whole = path.read_bytes()
    for length in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:length])
        assert list(RunDir.read(folder).rows) == [0]
    with RunWriter.start(folder, CONFIG, resume=True) as run:
        assert run.verify() == []
        assert path.read_bytes() == whole[: whole.index(b"\n") + 1]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        b"null",
        b"[" * 100_000,
        b'{"index": NaN}',
        b"\0\0\0",
        b'{"index": 1' + b"0" * 5000 + b"}",
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = make(tmp_path / "run") / "candidates.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(StorageError, match=r"candidates\.jsonl: line 3 is damaged") as refused:
        RunDir.read(path.parent)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "../../etc/passwd"},
        {"file": "images/../../secret"},
        {"file": "/etc/passwd"},
        {"file": "C:\\x"},
        {"file": None},
        {"index": 0},
        {"index": -1, "file": "images/-0001.png"},
        {"index": "../x", "file": "images/../x.png"},
        {"status": ["ok"]},
        {"scores": {"test": "high"}},
        {"scores": {"test": 10**400}},
        {"sha256": "0"},
    ],
)
def test_a_line_of_other_content_is_refused(tmp_path, changes):
    folder = make(tmp_path / "run")
    edit_line(folder, 2, **changes)
    with pytest.raises(StorageError, match="line 2 is damaged"):
        RunDir.read(folder)


def test_verify_names_each_problem(tmp_path):
    folder = make(tmp_path / "run")
    edit_line(folder, 5, index=7, file="images/00007.png")
    (folder / "images" / "00001.png").unlink()
    (folder / "images" / "00002.png").write_bytes(b"scribble")
    (folder / "images" / "notes.txt").write_bytes(b"")
    durable_leftover = folder / "images" / f"00003.png{atomic.TEMPORARY_SUFFIX}"
    durable_leftover.write_bytes(b"")
    assert RunDir.read(folder).verify() == [
        "candidate 7 is outside 0..4",
        "images/00001.png: missing",
        "images/00002.png: changed since it was committed (sha256 differs)",
        "images/00007.png: missing",
        f"images/{durable_leftover.name}: left by an interrupted write",
        "images/00004.png: not in candidates.jsonl",
        "images/notes.txt: not in candidates.jsonl",
    ]


def test_opening_removes_what_is_ours_only(tmp_path):
    folder = make(tmp_path / "run", [0, 1])
    ours = [folder / f"grid.png{atomic.TEMPORARY_SUFFIX}", folder / "images" / "00004.png"]
    theirs = [folder / "notes.part", folder / "images" / "00009.png", folder / "images" / "me.png"]
    for path in ours + theirs:
        path.write_bytes(b"")
    with RunWriter.start(folder, CONFIG, resume=True):
        pass
    assert [path for path in ours if path.exists()] == []
    assert [path for path in theirs if not path.exists()] == []


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_out_of_the_folder_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"image 2")
    folder = make(tmp_path / "run")
    run = RunDir.read(folder)
    run.image(2).unlink()
    (folder / "images" / "00002.png").symlink_to(outside)
    with pytest.raises(StorageError, match="leads out of the run folder"):
        run.image(2)
    assert len(run.verify()) == 1

    (folder / "candidates.jsonl").unlink()
    (folder / "candidates.jsonl").symlink_to(outside)
    with pytest.raises(StorageError, match="leads out"), RunWriter.start(folder, CONFIG):
        pass
    assert outside.read_bytes() == b"image 2"


class Disk:
    """Stands in for os.fsync and fails at its n-th call."""

    def __init__(self, monkeypatch):
        self.calls, self.fails_at = 0, 0
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor):
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(descriptor)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_disk_that_fills_up_leaves_a_sound_folder(tmp_path, monkeypatch, call):
    with RunWriter.start(tmp_path / "run", CONFIG) as run:
        commit(run, 0)
        disk = Disk(monkeypatch)
        disk.fails_at = call
        with pytest.raises(StorageError, match="No space left on device; free some space") as refused:
            commit(run, 1)
        assert disk.calls == call
        assert len(str(refused.value).splitlines()) == 1
        assert list(RunDir.read(run.path).rows) == [0]
        assert run.verify() == []
        assert commit(run, 1).index == 1
    assert RunDir.read(run.path).verify() == []


# Versions


def test_the_golden_folder_of_schema_1_opens():
    run = RunDir.read(GOLDEN)
    assert run.verify() == []
    assert run.missing == []
    assert run.config.prompt == "a lemon wearing sunglasses, 日本"
    assert [(row.seed, row.status, row.scores) for row in run.rows.values()] == [
        (42, "ok", {"test": 0.25, "other": 1.0}),
        (43, "flagged", {"test": -1.5, "other": 2.0}),
        (44, "nonfinite", {"test": None, "other": None}),
    ]


def test_a_resumed_golden_folder_is_brought_to_this_schema(tmp_path):
    folder = shutil.copytree(GOLDEN, tmp_path / "run")
    grid = (folder / "grid.png").read_bytes()
    with RunWriter.start(folder, RunDir.read(folder).config) as run:
        run.finish([0], present=lambda run: (run.path / "grid.png").write_bytes(grid))
    rows = (folder / "candidates.jsonl").read_text()
    assert json.loads((folder / "run.json").read_text())["schema"] == 2
    assert rows.count('"nfe": 3') == 3
    assert "unet_evaluations" not in rows
    for path in GOLDEN.glob("images/*.png"):
        assert (folder / path.relative_to(GOLDEN)).read_bytes() == path.read_bytes()
    assert RunDir.read(folder).rows == RunDir.read(GOLDEN).rows


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (99, "made by a newer sp-rerank: schema 99, this one reads 2"),
        (0, "not of sp-rerank"),
        (None, "not of sp-rerank"),
    ],
)
def test_other_schemas_are_refused(tmp_path, schema, message):
    folder = make(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({**CONFIG.to_json(), "schema": schema}))
    for open_run in (RunDir.read, make):
        with pytest.raises(UsageError, match=message):
            open_run(folder)


def test_an_older_schema_goes_through_every_migration(monkeypatch):
    monkeypatch.setattr(records, "SCHEMA", 3)
    monkeypatch.setitem(records.MIGRATIONS, 1, lambda config: {**config, "revision": "1"})
    monkeypatch.setitem(records.MIGRATIONS, 2, lambda config: {**config, "revision": config["revision"] + "2"})
    assert RunDir.read(GOLDEN).config.revision == "12"


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_damaged_run_json_is_named(tmp_path, text):
    folder = make(tmp_path / "run")
    (folder / "run.json").write_text(text)
    with pytest.raises(StorageError, match=r"run\.json is damaged"):
        RunDir.read(folder)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "n is missing; expected a whole number from 1"),
        ({"n": "5"}, "n is '5'; expected a whole number from 1"),
        ({"n": 10**30}, "n is 1000000"),
        ({"n": 5, "steps": 0}, "steps is 0; expected a whole number from 1"),
        ({"n": 5, "search": {"strategy": "halving", "buckets": [4]}}, "unknown key 'buckets'"),
        ({"n": 5, "search": 7}, "search is 7: expected a strategy's name or a table"),
        ({"n": 5, "stop": {"confidence": 7}}, "confidence: expected a probability"),
        ({"n": 5, "flavor": 1}, "unknown key 'flavor'"),
    ],
)
def test_a_key_of_run_json_that_is_not_usable_is_named(tmp_path, record, message):
    folder = make(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps({**record, "schema": 2}))
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        RunDir.read(folder)
    assert str(folder / "run.json") in str(refused.value)


def test_result_json_is_written_last_and_goes_when_the_run_goes_on(tmp_path):
    folder = make(tmp_path / "run", [0, 1])
    with RunWriter.start(folder, CONFIG, resume=True) as run:
        drawn: list = []
        run.finish([1], summary_of(1, by="max_seconds"), lambda run: drawn.append(run.result))
    assert drawn == [summary_of(1, by="max_seconds")]
    assert RunDir.read(folder).result == summary_of(1, by="max_seconds")
    with RunWriter.start(folder, CONFIG, resume=True):
        assert RunDir.read(folder).result is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"ended": {"by": "luck", "detail": ""}}'])
def test_a_damaged_result_json_is_named(tmp_path, text):
    folder = make(tmp_path / "run")
    (folder / "result.json").write_text(text)
    with pytest.raises(StorageError, match=r"result\.json is damaged"):
        assert RunDir.read(folder).result
    assert len(RunDir.read(folder).verify()) == 1


def test_verify_beside_a_healthy_writer(tmp_path):
    with RunWriter.start(tmp_path / "run", CONFIG) as run:
        commit(run, 0)
        (run.path / "images" / "00001.png").write_bytes(b"not committed yet")
        reader = RunDir.read(run.path)
        assert reader.being_written
        assert reader.verify() == []
    assert RunDir.read(run.path).verify() == ["images/00001.png: not in candidates.jsonl"]
    assert not RunDir.read(run.path).being_written


# Names

RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in "123456789")}


def check_folder_name(prompt, out):
    name = run_folder_name(RunConfig(prompt=prompt, n=1))
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 10 <= len(name) <= 49
    assert name not in RESERVED
    assert (out / name).resolve().parent == out.resolve()
    return name


@pytest.mark.parametrize("prompt", ["../../x", "C:\\x", "con", "x" * 5000, "眼鏡をかけたレモン", "", "..", "/etc"])
def test_a_folder_named_by_a_prompt_is_inside(tmp_path, prompt):
    name = check_folder_name(prompt, tmp_path)
    make(tmp_path / name, config=replace(CONFIG, prompt=prompt))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@given(st.text())
@settings(max_examples=50)
def test_a_folder_named_by_any_prompt_is_inside(prompt):
    check_folder_name(prompt, Path.cwd())


def test_names_tell_configurations_apart():
    name = run_folder_name(RunConfig(prompt="A lemon, on the béach!", n=1))
    assert name.startswith("a-lemon-on-the-beach-")
    assert name == run_folder_name(RunConfig(n=1, prompt="A lemon, on the béach!"))
    assert name != run_folder_name(RunConfig(prompt="A lemon, on the béach!", n=1, steps=2))
    assert name == run_folder_name(RunConfig(prompt="A lemon, on the béach!", n=2))  # a run can grow


def test_nothing_is_logged_in_a_plain_run(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="sp_rerank"):
        make(tmp_path / "run")
    assert caplog.messages == []
