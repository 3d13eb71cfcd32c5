"""What a person meets first: help, version, prompts of files, names of options, and the words for how a run ended."""

import errno
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.doubles import SeededPipe

from sp_rerank import cli, load_scorer
from sp_rerank.diffusion import loading
from sp_rerank.diffusion.prompt_limits import Truncation
from sp_rerank.errors import StorageError, UsageError
from sp_rerank.generate import generate
from sp_rerank.run.folder import RunDir
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.storage import atomic

SEEDED = ["--model", "mini", "--scorer", "brightness", "--steps", "2"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command line in this process, in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe())

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sp-rerank", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(str(stop.value.code)), *capsys.readouterr()

    return called


@pytest.mark.parametrize("words", [[], ["bench"]])
def test_no_command_prints_the_help_as_help(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "Usage:" in out
    assert len(out.splitlines()) > 10


def test_the_version(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith("sp-rerank 0.")


def test_help_is_in_groups(run: Run) -> None:
    code, out, _ = run("generate", "--help")
    assert code == 0
    for group in ("Image", "Run", "Search"):
        assert f"─ {group} ─" in out
    assert "--show-completion" in run("--help")[1]


SCORER_OPTIONS = (
    "rank",
    "generate",
    "compare",
    "evaluate",
    "robustness",
    "correlate",
    "generate --also",
    "scorers convert --as",
)


@pytest.mark.parametrize("words", SCORER_OPTIONS)
def test_a_shell_completes_names_of_scorers(run: Run, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    line = f"sp-rerank {words if '--' in words else f'{words} --scorer'} hps"
    monkeypatch.setenv("_SP_RERANK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    code, out, _ = run()
    assert (code, out.split()) == (0, ["hps-v1", "hps-v2", "hps-v2.1"])


def test_one_image(run: Run) -> None:
    code, out, err = run("generate", "a lemon", *SEEDED, "--n", "1")
    assert code == 0, err
    assert len(out.splitlines()) == 1


def test_a_prompt_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a lemon\n"))
    code, out, err = run("generate", "-", *SEEDED, "--n", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["prompt"] == "a lemon"
    for text, lines in (("", 0), ("a lemon\na cat\n", 2)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        code, out, err = run("generate", "-", *SEEDED)
        assert (code, out) == (2, "")
        assert f"standard input holds {lines} lines; expected one" in err


def test_a_file_is_no_prompt(run: Run, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a lemon\n")
    code, out, err = run("generate", "prompts.txt", *SEEDED)
    assert (code, out) == (2, "")
    assert "'prompts.txt' is the name of a file" in err
    assert "$(cat prompts.txt)" in err
    assert run("generate", "x" * 5_000, *SEEDED, "--n", "1")[0] == 0  # no file has such a name


def test_a_lost_tail_is_a_line() -> None:
    line = str(Truncation("the image model", 30_000, 77, "a lemon " * 30_000 + "the end"))
    assert len(line) < 200
    assert "the end" in line


@pytest.mark.parametrize(("number", "words"), [(errno.EMFILE, "open files"), (errno.ENOLCK, "locks")])
def test_an_error_of_the_disk_names_the_limit(number: int, words: str) -> None:
    with pytest.raises(StorageError, match=words) as raised, atomic.storage_errors(Path("run")):
        raise OSError(number, "as the system words it")
    assert "permissions" not in str(raised.value)


def test_a_replay_is_a_png(run: Run, tmp_path: Path) -> None:
    assert run("generate", "a lemon", *SEEDED, "--n", "2", "--out", "run")[0] == 0
    code, _, err = run("replay", "run", "1", "--out", "r.jpg")
    assert code == 2
    assert "--out is 'r.jpg'; expected a name that ends in .png" in err
    assert not (tmp_path / "r.jpg").exists()


def test_the_rule_that_is_printed_is_the_one_that_ended_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", "a lemon", *SEEDED, "--n", "100", "--top-k", "1", "--batch-size", "5", "--out", "run"]
    code, _, err = run(*words, "--confidence", "0.04", "--max-seconds", "30")
    assert code == 0, err
    ended = json.loads(Path("run/result.json").read_text())["ended"]
    assert ended["by"] == "confidence"
    assert f"ended after 5 of 100: {ended['detail']}" in err.replace("\n", " ")


def test_a_run_that_goes_on_is_not_called_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", "a lemon", *SEEDED, "--n", "12", "--top-k", "1", "--batch-size", "2", "--out", "run"]
    words += ["--max-seconds", "0.5"]
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe(lambda *_: time.sleep(0.6)))
    assert run(*words)[0] == 0
    ended = RunDir.read("run").result
    assert ended is not None
    assert ended.ended.by == "max_seconds"
    made = ended.made

    def die(*_: object) -> None:
        raise SystemExit(137)  # nothing of the run is finished, as little as after a SIGKILL

    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe(die))
    assert run(*words, "--resume")[0] == 137
    assert RunDir.read("run").result is None
    assert run("gallery", "run")[0] == 0
    page = Path("run/index.html").read_text()
    assert f"{made} of 12 candidates so far" in page
    assert "rule ended" not in page


def test_too_few_scores_are_one_fault_everywhere(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run("generate", "a lemon", *SEEDED, "--n", "4", "--out", "run")[0] == 0
    (tmp_path / "images").mkdir()
    for level in range(4):
        Image.new("RGB", (8, 8), (level * 60,) * 3).save(tmp_path / "images" / f"{level}.png")

    def score(_: object, prompt: str, images: Any) -> torch.Tensor:
        return torch.ones(len(images) - 1)

    monkeypatch.setattr(BrightnessScorer, "score", score)
    for words in (
        ["generate", "a lemon", *SEEDED, "--n", "4", "--out", "other"],
        ["rank", "images", "--prompt", "x", "--scorer", "brightness"],
    ):
        code, _, err = run(*words)
        assert code == 2, (words, err)
        assert "scorer brightness" in err
        assert "expected a score for each of 4 images" in err


def test_python_is_answered_in_its_own_names() -> None:
    pipe, scorer = SeededPipe(), load_scorer("brightness")
    with pytest.raises(UsageError, match=r"^n is 0; expected"):
        generate("a lemon", pipe=pipe, scorer=scorer, n=0)
    with pytest.raises(
        TypeError, match=r"^generate\(\) got an unexpected keyword argument 'batch_szie'; did you mean 'batch_size'\?$"
    ):
        generate("a lemon", pipe=pipe, scorer=scorer, batch_szie=3)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("words", ["verify", "gallery", "replay", "pick", "compare", "plan", "label"])
def test_a_shell_completes_run_folders(run: Run, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    for name in ("runs/lemon", "runs/left/over", ".hidden"):
        Path(name).mkdir(parents=True)
    Path("runs/lemon/run.json").write_text("{}")
    Path("runs/letter.txt").write_text("")

    def offered(begun: str) -> list[str]:
        line = f"sp-rerank {words} {begun}"
        monkeypatch.setenv("_SP_RERANK_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", "2")
        return run()[1].split()

    assert offered("") == ["runs/"]
    assert offered("runs/le") == ["runs/left/", "runs/lemon"]
    assert offered("nowhere/x") == []


def test_the_environment_stands_in_for_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def load(spec: str, **more: Any) -> SeededPipe:
        asked.append((spec, more["device"]))
        return SeededPipe()

    monkeypatch.setattr(loading, "load_pipeline", load)
    for name, value in (("MODEL", "mini"), ("SCORER", "brightness"), ("DEVICE", "cpu"), ("OUT", "elsewhere")):
        monkeypatch.setenv(f"SP_RERANK_{name}", value)
    for prompt in ("a lemon", "a pear"):  # a place for many runs
        code, out, err = run("generate", prompt, "--steps", "2", "--n", "2")
        assert code == 0, err
        assert all(line.split("  ")[-1].split(" ")[-1].startswith("elsewhere/a-") for line in out.splitlines())
    assert asked == [("mini", "cpu")] * 2
    (folder,) = Path("elsewhere").glob("a-lemon-*")
    assert RunDir.read(folder).config.scorers[0].startswith("brightness")
    assert (
        run("generate", "a lemon", "--steps", "2", "--n", "2", "--scorer", "nothing")[0] == 2
    )  # an option counts more
    monkeypatch.setenv("SP_RERANK_DEVICE", "gpu7")
    assert "'gpu7'" in run("rank", str(folder / "images"), "--prompt", "x")[2]
    help = run("generate", "--help")[1]
    for name in ("MODEL", "SCORER", "DEVICE", "OUT"):
        assert f"SP_RERANK_{name}" in help
