"""Run folders and schedules that are damaged or hostile: one line and an exit code, no traceback, nothing outside."""

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from support.doubles import SeededPipe
from support.mutations import TEXTS, mutations

from sp_rerank import cli
from sp_rerank.diffusion import loading
from sp_rerank.errors import SpRerankError
from sp_rerank.run.folder import RunDir
from sp_rerank.run.writer import add_scores

CODES = {0, 2, 3, 4, 74}
SCREENING = 'strategy = "screening"\nrounds = [{steps = 2, keep = 2}]\n'
MINI = ["--model", "mini", "--scorer", "brightness", "--n", "4", "--top-k", "1"]
SEARCHED = [*MINI, "--steps", "4", "--batch-size", "2"]
RECORDED = [*MINI, "--steps", "8", "--record"]
READING = (
    ["verify", "run"],
    ["gallery", "run"],
    ["gallery", "."],
    ["compare", "run"],
    ["replay", "run", "1"],
    ["replay", "run", "1", "--steps", "2"],
    ["plan", "run"],
    ["rank", "run", "--prompt", "x", "--scorer", "brightness"],
)
"""Every command that reads a run folder and makes no candidate of it."""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line in this process, in an empty folder: the exit code and what it printed to standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe())

    def called(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["sp-rerank", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(str(stop.value.code)), capsys.readouterr().err

    return called


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole recording, with the scores of two scorers."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr("sys.argv", ["sp-rerank", "generate", "a lemon", *RECORDED, "--out", str(folder)])
        cli.main()
    assert not stop.value.code
    add_scores(folder, {"other@000000000000": dict.fromkeys(range(4), 0.5)})
    return folder


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a screening that ended after its drafts."""
    place = tmp_path_factory.mktemp("cut")
    (place / "own.toml").write_text(SCREENING)
    calls: list[list[int]] = []

    def interrupt(seeds: list[int], _: object) -> None:
        calls.append(seeds)
        if len(calls) == 3:
            raise KeyboardInterrupt

    words = ["generate", "a lemon", *SEARCHED, "--search", str(place / "own.toml"), "--out", str(place / "run")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe(interrupt))
        patch.setattr("sys.argv", ["sp-rerank", *words])
        cli.main()
    assert stop.value.code == 130
    assert len((place / "run" / "stages.jsonl").read_bytes().splitlines()) == 4
    return place


def check(run: Run, words: list[str], damaged: bytes) -> int:
    """Call a command on a damaged file: its exit code, after a look at what it said."""
    code, said = run(*words)
    assert code in CODES, (words, damaged[:300], said)
    assert "Traceback" not in said, (words, damaged[:300], said)
    assert said.count("error: ") <= 1, (words, damaged[:300], said)
    assert max(map(len, said.splitlines()), default=0) < 1_500, (words, damaged[:300], said)
    return code


def opens(folder: Path) -> bool:
    try:
        return RunDir.read(folder).result is not None
    except SpRerankError:
        return False


def is_short_of_a_key(damaged: bytes, sound: bytes) -> bool:
    return len(damaged) < len(sound) and damaged.count(b'":') < sound.count(b'":')


def damaged_documents(sound: bytes) -> Iterator[bytes]:
    yield from mutations(json.loads(sound))
    document = json.loads(sound)
    for key in document:
        yield json.dumps({**document, key: 10**30}).encode()
    yield from (sound[: len(sound) * part // 8] for part in range(8))


def damaged_lines(sound: bytes) -> Iterator[bytes]:
    """A file of lines with its second line damaged."""
    first, second, *rest = sound.splitlines(keepends=True)
    for line in damaged_documents(second):
        yield b"".join([first, line.rstrip() + b"\n", *rest])


@pytest.mark.parametrize("name", ["run.json", "candidates.jsonl", "result.json"])
def test_a_damaged_file_of_a_run_is_one_line(name: str, recorded: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(recorded, folder)
    sound, codes = (folder / name).read_bytes(), []
    damaged_files = damaged_lines(sound) if name.endswith("l") else damaged_documents(sound)
    for number, damaged in enumerate(damaged_files):
        (folder / name).write_bytes(damaged)
        # a key that is missing is tried with every command, another fault with one of them in its turn
        asked = READING if opens(folder) and is_short_of_a_key(damaged, sound) else [READING[number % len(READING)]]
        for words in asked:
            (folder / name).write_bytes(damaged)
            codes.append(check(run, words, damaged))
            assert {path.name for path in tmp_path.iterdir()} <= {"run", "index.html", "plan.toml"}, (words, damaged)
    print(f"{name}: {len(codes)} mutations x commands, exit codes { {code: codes.count(code) for code in set(codes)} }")
    (folder / name).unlink()
    for words in READING:
        check(run, words, b"")
    (folder / name).write_bytes(sound)
    assert run("verify", "run")[0] == 0


@pytest.mark.parametrize("name", ["run.json", "candidates.jsonl", "stages.jsonl"])
def test_a_damaged_run_is_resumed_or_refused(name: str, cut: Path, run: Run, tmp_path: Path) -> None:
    folder, codes = tmp_path / "run", []
    shutil.copy(cut / "own.toml", tmp_path)
    sound = (cut / "run" / name).read_bytes()
    whole = b"\n".join(sound.splitlines()) + b"\n" if sound else b'{"index": 0}\n{"index": 1}\n'
    damaged_files = damaged_documents(sound) if name == "run.json" else damaged_lines(whole)
    for damaged in islice(damaged_files, 0, None, 3):  # each resumes a run: a third of them is enough
        shutil.copytree(cut / "run", folder)
        (folder / name).write_bytes(damaged)
        words = ["generate", "a lemon", *SEARCHED, "--search", "own.toml", "--out", "run", "--resume"]
        codes.append(check(run, words, damaged))
        assert {path.name for path in tmp_path.iterdir()} == {"run", "own.toml"}
        if codes[-1] == 0:
            assert RunDir.read(folder).verify() == []
        shutil.rmtree(folder)
    print(f"{name}: {len(codes)} mutations resumed, exit codes { {code: codes.count(code) for code in set(codes)} }")


WRONG_TOML = (
    "true", "-1", "0", "1" + "0" * 30, "1" * 5_000, "1e400", "0.5", "1.5", "nan", '""', '"x"', "[]", "[1]", "{}",
    "2026-01-01", "[" * 5_000 + "]" * 5_000,
)  # fmt: skip


def test_a_damaged_schedule_is_one_line(run: Run, tmp_path: Path) -> None:
    sound = {"strategy": '"screening"', "steps": "2", "keep": "2", "made_for": '{n = 4, model = "mini"}', "n": "4"}
    texts, codes = [text.encode("latin-1") for text in TEXTS], []
    for key in (*sound, "rounds", "unknown"):
        for value in (*WRONG_TOML, None):
            parts = {name: text for name, text in {**sound, key: value}.items() if text is not None}
            entry = ", ".join(f"{name} = {parts[name]}" for name in ("steps", "keep") if name in parts)
            made_for = parts.get("made_for") if key == "made_for" else f"{{n = {parts.get('n', 'x')}}}"
            lines = {"strategy": parts.get("strategy"), "rounds": parts.get("rounds", f"[{{{entry}}}]")}
            lines |= {"made_for": made_for} | ({"unknown": parts["unknown"]} if "unknown" in parts else {})
            texts.append("\n".join(f"{name} = {text}" for name, text in lines.items() if text).encode())
    for text in texts:
        (tmp_path / "own.toml").write_bytes(text)
        codes.append(check(run, ["generate", "a lemon", *SEARCHED, "--search", "own.toml", "--out", "run"], text))
        assert (codes[-1] == 0) == (tmp_path / "run").exists()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    print(f"{len(codes)} schedules, exit codes { {code: codes.count(code) for code in set(codes)} }")


def test_replays_that_lead_elsewhere_are_refused(recorded: Path, run: Run, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(recorded, folder)
    elsewhere.mkdir()
    (folder / "replays").symlink_to(elsewhere)
    code, said = run("replay", "run", "1")
    assert code == 74
    assert "replays" in said
    assert list(elsewhere.iterdir()) == []
