"""The command line as a person meets it: results, exit codes, and text that does not do as it says."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from support.doubles import SeededPipe

from sp_rerank import cli, errors
from sp_rerank.diffusion import loading
from sp_rerank.scorers.brightness import BrightnessScorer
from sp_rerank.storage import images
from sp_rerank.storage.images import open_image, read_record

PROMPT = "a lemon wearing sunglasses on the beach"
MINI = ["--model", "mini", "--steps", "2"]
QUICK = ["--model", "mini", "--steps", "1", "--n", "2", "--top-k", "1"]
PAYLOADS = [
    "[/blue] a lemon", "[bold]a lemon", "[link=file:///etc]x[/link]", "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "a lemon\x1b[2J\x1b]0;owned\x07", "\x9b31m red", "a\rb", "a\tb\nc", "%s %n {x} {0}",
    "../../etc/passwd", "C:\\windows\\con", "con", "$(touch owned)", "`touch owned`", "'; DROP TABLE images; --",
    "レモン、ビーチで", "\u202egnp.nomel", "🍋" * 50, "--help me",
]  # fmt: skip

HEAVY = {"torch", "diffusers", "transformers", "open_clip", "accelerate", "scipy", "matplotlib"}
"""What takes a second or more to import, alone or with what it imports."""

PIPES = {}


@pytest.fixture
def sp_rerank(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def load_once(spec, **arguments):  # loading takes longer than one step
        if spec != "mini":
            return load(spec, **arguments)
        key = str(sorted(arguments.items()))
        if key not in PIPES:
            PIPES[key] = load(spec, **arguments)
        return PIPES[key]

    load = loading.load_pipeline
    monkeypatch.setattr(loading, "load_pipeline", load_once)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sp-rerank", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_generate_verify_replay_rank(sp_rerank, tmp_path):
    code, out, err = sp_rerank("generate", PROMPT, *MINI, "--n", "6", "--seed", "10", "--json")
    assert code == 0, err
    result = json.loads(out)
    run = Path(result["run"])
    assert run.parent == Path("runs")
    assert [row["rank"] for row in result["best"]] == [1, 2, 3, 4]
    best = result["best"][0]
    assert best["seed"] == 10 + best["index"]
    image = open_image(best["file"])
    assert image.size == (64, 64)
    parameters = read_record(best["file"])
    assert parameters is not None
    assert parameters["prompt"] == PROMPT
    assert open_image(run / "grid.png").width > 1000

    code, out, _ = sp_rerank("verify", str(run))
    assert code == 0
    assert "6 of 6 candidates" in out

    code, out, _ = sp_rerank("replay", str(run), str(best["index"]))
    assert code == 0
    assert "every pixel is the same" in out
    again = open_image(run / "replays" / f"{best['index']:05d}.png")
    assert again.tobytes() == image.tobytes()

    code, _, err = sp_rerank("replay", str(run), str(best["index"]), "--steps", "3", "--out", "more.png")
    assert code == 0, err
    assert open_image("more.png").tobytes() != image.tobytes()

    (run / "images" / "broken.png").write_bytes(b"not an image")
    words = ("rank", str(run / "images"), "--prompt", PROMPT, "--scorer", "stable-preference-mini")
    code, out, err = sp_rerank(*words, "--json")
    ranking = json.loads(out)["ranking"]
    assert code == 0
    assert "broken.png" in err
    assert len(ranking) == 6
    assert Path(ranking[0]["file"]).name == f"{best['index']:05d}.png"  # the saved image scores as the tensor did
    assert ranking[0]["score"] == pytest.approx(best["score"], abs=1e-6)
    code, out, _ = sp_rerank(*words, "--csv", "--top-k", "2")
    assert [row["rank"] for row in csv.DictReader(io.StringIO(out))] == ["1", "2"]


def test_a_run_grows_and_its_candidates_are_made_larger(sp_rerank):
    code, out, err = sp_rerank("generate", PROMPT, *MINI, "--n", "3", "--seed", "10", "--json")
    assert code == 0, err
    run = Path(json.loads(out)["run"])
    code, out, err = sp_rerank("replay", str(run), "1", "2", "--scale", "2", "--strength", "0.5", "--out", "large")
    assert code == 0, err
    assert out.split() == [str(Path("large") / f"0000{index}-x2-strength0.5.png") for index in (1, 2)]
    assert open_image("large/00002-x2-strength0.5.png").size == (128, 128)
    code, _, err = sp_rerank("replay", str(run), "1", "2", "--out", "one.png")
    assert (code, err) == (2, "error: --out is 'one.png'; expected a folder, for 2 candidates\n")
    code, _, err = sp_rerank("replay", str(run), "1", "--strength", "0.5")
    assert code == 2
    assert "--strength is 0.5; expected none without a scale" in err

    code, out, err = sp_rerank("generate", PROMPT, *MINI, "--seed", "10", "--more", "1", "--json")
    assert code == 0, err
    assert (json.loads(out)["run"], json.loads(out)["n"], json.loads(out)["made"]) == (str(run), 4, 4)
    code, _, err = sp_rerank("compare", str(run), str(run), "--sheet", "both.html")
    assert code == 2
    assert "was given twice" in err
    code, _, err = sp_rerank("generate", PROMPT, *MINI, "--n", "2", "--out", "other", "--steps", "1")
    assert code == 0, err
    code, out, err = sp_rerank("compare", str(run), "other", "--sheet", "both.html")
    assert code == 0, err
    assert "written: both.html" in err
    assert "other/images/00001.png" in Path("both.html").read_text()
    code, _, err = sp_rerank("compare", str(run), "other", "--sheet", "both.pdf")
    assert (code, err) == (2, "error: --sheet is 'both.pdf'; expected a name that ends in .html\n")
    code, out, _ = sp_rerank("gallery", str(run), "--one-file", "lemon.html")
    assert code == 0
    assert out.startswith("lemon.html, ")
    assert "data:image/png;base64," in Path("lemon.html").read_text()

    code, _, err = sp_rerank("generate", PROMPT, *MINI, "--more", "2")
    assert code == 2
    assert "--more is 2; expected none: there is no run of this kind in runs" in err


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' solver
def test_search_also_diverse_compare_gallery(sp_rerank):
    Path("plan.toml").write_text('strategy = "screening"\nrounds = [{steps = 2, keep = 3}]\n')
    words = ["--model", "mini", "--steps", "3", "--n", "8", "--top-k", "2", "--out", "run"]
    words += ["--search", "plan.toml", "--also", "brightness", "--diverse"]
    code, out, err = sp_rerank("generate", PROMPT, *words)
    assert code == 0, err
    assert "evaluations of the denoiser instead of" in err and "5 candidates were dropped on the way" in err
    code, out, _ = sp_rerank("generate", PROMPT, *words, "--json")  # it is complete: nothing is made again
    result = json.loads(out)
    assert code == 0
    assert result["made"] == 8
    assert result["dropped"] == 5
    assert len(result["best"]) == 2
    assert result["nfe"] == 8 * 2 + 3 * 4  # PNDM calls the denoiser once more than it has steps

    code, out, err = sp_rerank("compare", "run", "--no-keep")
    assert code == 0, err
    assert "stable-preference-mini would have chosen" in out and "brightness would have chosen" in out
    page = Path("run/index.html").read_text()
    assert "draft, 2 steps" in page and PROMPT in page
    assert sp_rerank("gallery", "run")[:2] == (0, "run/index.html\n")
    assert Path("run/index.html").read_text() == page
    code, _, err = sp_rerank("plan", "run")
    assert code == 2
    assert "no recording; make one with" in err


def test_an_end_is_explained(sp_rerank):
    words = ["--model", "mini", "--steps", "2", "--n", "6", "--top-k", "1", "--batch-size", "2", "--out", "run"]
    code, _, err = sp_rerank("generate", PROMPT, *words, "--max-evaluations", "7")
    assert code == 0, err
    assert "ended after 2 of 6: 6 evaluations are spent, another batch would pass 7" in err


@pytest.fixture
def greys(tmp_path):
    """A folder of images that get lighter, and one that is none."""
    for i in range(20):
        Image.new("RGB", (20 + i, 30), (i * 12, i * 12, 200)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    return tmp_path


def test_rank_by_several_scorers(sp_rerank, greys, monkeypatch):
    opened = []
    monkeypatch.setattr(images, "open_image", lambda path: (opened.append(path), open_image(path))[1])
    words = ("rank", str(greys), "--prompt", PROMPT)
    code, out, err = sp_rerank(*words, "--scorer", "brightness", "--scorer", "clip-mini", "--json")
    both = json.loads(out)
    assert code == 0
    assert len(opened) == 21
    assert "skipped 1 of 21 images" in err
    clip = both["scorers"][1]
    assert (both["scorer"], both["scorers"], clip.split("@")[0]) == ("brightness", ["brightness", clip], "clip-mini")
    assert len(both["skipped"]) == 1
    assert [Path(row["file"]).stem for row in both["ranking"]] == [str(i) for i in reversed(range(20))]
    assert [row["rank"] for row in both["ranking"]] == [row["ranks"]["brightness"] for row in both["ranking"]]
    assert all(row["score"] == row["scores"]["brightness"] for row in both["ranking"])

    code, out, _ = sp_rerank(*words, "--scorer", "clip-mini", "--json")
    alone = {row["file"]: (row["score"], row["rank"]) for row in json.loads(out)["ranking"]}
    assert {row["file"]: (row["scores"][clip], row["ranks"][clip]) for row in both["ranking"]} == alone

    code, out, _ = sp_rerank(*words, "--scorer", "brightness", "--scorer", "clip-mini", "--csv", "--top-k", "3")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["rank", "score", "file", f"score {clip}", f"rank {clip}"]
    assert [int(row[f"rank {clip}"]) for row in rows] == [alone[row["file"]][1] for row in rows]
    assert [float(row[f"score {clip}"]) for row in rows] == [alone[row["file"]][0] for row in rows]

    code, out, _ = sp_rerank(*words, "--scorer", "brightness", "--scorer", "clip-mini", "--top-k", "2")
    header, *lines = out.splitlines()
    assert header.split() == ["rank", "brightness", clip, "file"]
    assert len(lines) == 2
    score, rank = alone[str(greys / "19.png")]
    assert lines[0].split() == ["1", "0.8575", f"{score:.4f}", f"({rank})", str(greys / "19.png")]
    assert len({line.index(str(greys)) for line in lines} | {header.index("file")}) == 1
    assert sp_rerank(*words, "--scorer", "brightness", "--top-k", "1")[1].split() == [
        "1",
        "0.8575",
        lines[0].split()[-1],
    ]


def test_rank_where_no_file_is_an_image(sp_rerank, greys):
    for file in greys.glob("[0-9]*.png"):
        file.write_bytes(b"not an image")
    code, out, err = sp_rerank("rank", str(greys), "--prompt", "x", "--scorer", "brightness")
    assert code == 4
    assert out == ""
    assert "skipped 21 of 21 images" in err
    assert "could be read; expected PNG" in err


def test_rank_by_the_same_scorer_twice(sp_rerank, greys):
    code, out, err = sp_rerank("rank", str(greys), "--prompt", "x", "--scorer", "brightness", "--scorer", "brightness")
    assert code == 2
    assert out == ""
    assert "each once, got brightness, brightness" in err


@pytest.mark.parametrize(
    ("scores", "code", "message"),
    [
        (lambda n: torch.ones(n - 1), 2, "scorer brightness: expected a score for each of 16 images, a tensor of"),
        (lambda n: 1 / 0, 2, "scorer brightness failed: ZeroDivisionError: division by zero"),
        (lambda n: raise_(errors.HubUnavailableError("no network")), 69, "scorer brightness: no network"),
        (lambda n: torch.tensor([float("nan"), *[1.0] * (n - 1)]), 0, "skipped 1"),
    ],
)
def test_a_scorer_that_fails_is_named(sp_rerank, greys, monkeypatch, scores, code, message):
    monkeypatch.setattr(BrightnessScorer, "score", lambda self, prompt, pictures: scores(len(pictures)))
    got, out, err = sp_rerank("rank", str(greys), "--prompt", "x", "--scorer", "clip-mini", "--scorer", "brightness")
    assert (got, message in err) == (code, True), err
    assert out.count("not finite") == (code == 0) * 2  # one in each batch of 16


def raise_(error: Exception):
    raise error


def test_verify_finds_a_changed_image(sp_rerank):
    assert sp_rerank("generate", PROMPT, *QUICK, "--out", "run")[0] == 0
    with Path("run/images/00001.png").open("ab") as file:
        file.write(b"x")
    code, out, _ = sp_rerank("verify", "run")
    assert code == 74
    assert "00001.png" in out


def test_scorers_are_listed(sp_rerank):
    code, out, _ = sp_rerank("scorers", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows.keys() >= {"sp", "clip-mini", "hps-v2.1", "image-reward", "aesthetic-v2"}
    assert rows["hps-v2.1"].items() >= {"size": "2.0 GB", "scale": "cosine", "license": "Apache-2.0"}.items()
    lines = sp_rerank("scorers")[1].splitlines()
    assert lines[0].split() == ["name", "size", "scale", "license", "here", "about"]
    assert [line.split()[0] for line in lines[1:]] == [*rows]


def test_a_published_checkpoint_is_converted(sp_rerank, tmp_path, monkeypatch):
    described = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 8, "head_width": 8, "patch_size": 112},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    monkeypatch.setattr(open_clip, "get_model_config", lambda architecture: described)
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    vision, text = CLIPVisionCfg(**described["vision_cfg"]), CLIPTextCfg(**described["text_cfg"])
    torch.save({"state_dict": CLIP(8, vision, text).state_dict()}, "HPS_v2.1_compressed.pt")
    code, out, err = sp_rerank("scorers", "convert", "HPS_v2.1_compressed.pt", "--as", "hps-v2.1")
    assert code == 0, err
    name, folder = out.split()
    assert re.fullmatch(r"hps-v2\.1@[0-9a-f]{12}", name)
    assert Path(folder) == tmp_path / "assets" / "sp_rerank" / "scorers" / "hps-v2.1"
    here = {row["name"]: row["here"] for row in json.loads(sp_rerank("scorers", "--json")[1])}
    assert here["hps-v2.1"]
    code, out, _ = sp_rerank("scorers", "convert", "HPS_v2.1_compressed.pt", "--as", "hps-v2", "--out", "mine")
    assert code == 0
    assert Path("mine/config.json").is_file()
    code, _, err = sp_rerank("scorers", "convert", "HPS_v2.1_compressed.pt", "--as", "hps")
    assert code == 2
    assert "expected the name of a checkpoint" in err
    code, _, err = sp_rerank("scorers", "convert", "none.pt", "--as", "hps-v2")
    assert code == 74
    assert "none.pt cannot be read" in err


def test_doctor(sp_rerank):
    code, out, err = sp_rerank("doctor")
    assert code == 0, out + err
    assert out.count("ok ") == 7


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_prompt_is_only_text(sp_rerank, tmp_path, payload):
    code, out, err = sp_rerank("generate", *QUICK, "--json", "--", payload)
    assert code == 0, err
    result = json.loads(out)
    assert result["prompt"] == payload
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", err)
    run = (tmp_path / result["run"]).resolve()
    assert run.parent == tmp_path / "runs"
    assert json.loads((run / "run.json").read_text())["prompt"] == payload
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_prompt_is_only_text_to_the_terminal(sp_rerank, monkeypatch, payload):
    """The command to go on with is where a prompt is printed: nothing in it is obeyed by the terminal."""

    def interrupt(seeds, images):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe(interrupt))
    code, out, err = sp_rerank("generate", *QUICK, "--scorer", "brightness", "--", payload)
    assert code == 130, err
    assert out == ""
    assert "Go on with: sp-rerank generate" in err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", err)


def test_a_file_name_is_only_text_to_the_terminal(sp_rerank, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a\x1b[2J\u202e.png")
    code, out, err = sp_rerank("rank", ".", "--prompt", "x", "--scorer", "brightness")
    assert code == 0, err
    assert "a [2J .png" in out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out + err)


def test_a_prompt_that_is_too_long(sp_rerank, tmp_path):
    long = "a lemon on the beach " * 20 + "and a hidden tail"
    code, out, err = sp_rerank("generate", long, *QUICK, "--json")
    assert code == 0
    assert max(map(len, err.splitlines())) < 200
    assert err.count("and a hidden tail") == 2  # one line for the image model, one for the scorer
    stored = json.loads((tmp_path / json.loads(out)["run"] / "run.json").read_text())["truncated"]
    assert len(stored) == 2
    assert all("a lemon on the beach a lemon on the beach a lemon on the beach a lemon" in line for line in stored)
    code, _, err = sp_rerank("generate", long, *QUICK, "--strict", "--out", "strict")
    assert code == 2
    assert "too long" in err
    assert not Path("strict").exists()
    assert sp_rerank("generate", "x" * 5000, *QUICK)[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["generate", PROMPT, "--n", "0"], 2, "--n is 0; expected a whole number from 1"),
        (["generate", PROMPT, "--n", "3", "--top-k", "4"], 2, "--top-k is 4; expected at most 3"),
        (["generate", PROMPT, "--n", "many"], 2, "Invalid value for '--n'"),
        (["generate", "  "], 2, "expected text that says what"),
        (["generate", "\udcff"], 2, "expected text that says what"),
        (["generate", PROMPT, "--model", "mini", "--dtype", "fp16"], 2, "expected auto, float32"),
        (["generate", PROMPT, "--height", "100"], 2, "--height is 100; expected a multiple of 8"),
        (["generate", PROMPT, "--guidance-scale", "nan"], 2, "--guidance-scale is nan"),
        (["generate", PROMPT, "--model", "mini", "--steps", "1001"], 2, "expected at most 1000"),
        (["rank", ".", "--prompt", "x", "--top-k", "0"], 2, "Invalid value for '--top-k'"),
        (["rank", ".", "--prompt", "x"], 4, "no image in . could be read"),
        (["generate"], 2, "Missing argument"),
        (["paint"], 2, "No such command"),
        (["generate", PROMPT, "--model", "nothing"], 2, "expected one of mini, sd-v1.4"),
        (["generate", PROMPT, "--model", "/nowhere/at/all"], 2, "expected one of mini, sd-v1.4"),
        (["generate", PROMPT, "--model", "mini", "--scorer", "clip-mimi"], 2, "clip-mini"),
        (["generate", PROMPT, "--model", "mini", "--scheduler", "Magic"], 2, "expected one of"),
        (["generate", PROMPT, "--device", "tpu"], 2, "no device 'tpu'"),
        (
            ["generate", PROMPT, "--model", "CompVis/stable-diffusion-v1-4"],
            69,
            "hf download CompVis/stable-diffusion-v1-4",
        ),
        (["generate", PROMPT, *QUICK, "--out", "/proc/run"], 74, "/proc/run"),
        (["rank", "nowhere", "--prompt", "x"], 2, "nowhere"),
        (["rank", ".", "--prompt", " "], 2, "the prompt is empty"),
        (["verify", "nowhere"], 2, "nowhere"),
        (["replay", "nowhere", "1"], 2, "nowhere"),
    ],
)
def test_wrong_words(sp_rerank, tmp_path, words, code, message):
    got, out, err = sp_rerank(*words)
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_hub_out_of_reach_ends_with_the_download_that_is_missing(sp_rerank):
    code, _, err = sp_rerank("generate", PROMPT, "--model", "sd-v1.4")
    assert code == 69
    assert "CompVis/stable-diffusion-v1-4" in err
    assert "hf download CompVis/stable-diffusion-v1-4 --revision" in err


def test_the_folder_is_busy(sp_rerank, tmp_path):
    from filelock import FileLock

    assert sp_rerank("generate", PROMPT, *QUICK, "--out", "run")[0] == 0
    with FileLock(tmp_path / "run" / ".lock"):
        assert sp_rerank("generate", PROMPT, *QUICK, "--out", "run")[0] == 3


def test_nothing_is_usable_and_the_accelerator_is_lost(sp_rerank, monkeypatch):
    def fail(seeds, images):
        raise RuntimeError("CUDA error: device lost")

    words = ("generate", PROMPT, "--model", "mini", "--scorer", "brightness", "--n", "4", "--json")
    for pipe, code in ((SeededPipe(flagged=range(4)), 4), (SeededPipe(fail), 75)):
        monkeypatch.setattr(loading, "load_pipeline", lambda *_, pipe=pipe, **__: pipe)
        got, out, err = sp_rerank(*words, "--out", str(code))
        assert (got, out) == (code, ""), err
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: SeededPipe(flagged=[1]))
    code, out, _ = sp_rerank(*words, "--out", "some")
    assert code == 0
    assert json.loads(out)["flagged"] == 1
    assert len(json.loads(out)["best"]) == 3


def test_a_folder_of_the_first_schema_opens_and_says_that_it_cannot_be_replayed(sp_rerank, tmp_path):
    import shutil

    shutil.copytree(Path(__file__).parents[1] / "data" / "run_v1", tmp_path / "old")
    assert sp_rerank("verify", "old")[0] == 0
    code, _, err = sp_rerank("replay", "old", "0")
    assert code == 2
    assert "run.json does not hold 'guidance_scale'" in err


def test_a_foreign_folder_and_another_run(sp_rerank, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    assert sp_rerank("generate", PROMPT, *QUICK, "--out", "mine")[0] == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert sp_rerank("generate", PROMPT, *QUICK, "--out", "run")[0] == 0
    code, _, err = sp_rerank("generate", PROMPT, *QUICK, "--seed", "5", "--out", "run")
    assert code == 2
    assert "seed" in err
    assert sp_rerank("generate", PROMPT, *QUICK, "--out", "run")[0] == 0  # the same again: shown, not made


def test_a_broken_checkpoint(sp_rerank, tmp_path):
    import shutil

    shutil.copytree(loading.MINI, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = sp_rerank("generate", PROMPT, "--model", "model", "--n", "1", "--top-k", "1")
    assert code == 74
    assert "model" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["sp_rerank --help", "sp_rerank generate --help", "sp_rerank.train --help"])
def test_help_is_quick(command):
    """Quick, because nothing heavy is imported to print it."""
    program, *words = command.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = {words}\n"
        f"try: runpy.run_module({program!r}, run_name='__main__', alter_sys=True)\n"
        f"except SystemExit as stop: print([stop.code, *({HEAVY} & sys.modules.keys())])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0]", done.stdout + done.stderr


def test_importing_is_cheap():
    code = f"import sp_rerank, sp_rerank.cli, sys; print({HEAVY} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_interrupted_and_resumed(tmp_path, sp_rerank):
    """Ctrl-C: the batch in hand is finished, the command that goes on is printed, and it gives the very same folder."""
    import signal

    environment = {**os.environ, "DIFFUSERS_DISABLE_REMOTE_CODE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "sp_rerank", "generate", PROMPT, "--model", "mini", "--steps", "2"]
    command += ["--n", "16", "--batch-size", "4", "--out", "cut"]

    cut = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    manifest = tmp_path / "cut" / "candidates.jsonl"
    while not manifest.exists() or not manifest.stat().st_size:
        assert cut.poll() is None, cut.stderr and cut.stderr.read()
        time.sleep(0.01)
    cut.send_signal(signal.SIGINT)
    _, said = cut.communicate()
    done = len(manifest.read_text().splitlines())
    assert cut.returncode == 130, said
    assert done % 4 == 0
    (typed,) = re.findall(r"Go on with: (.*)", said)
    program, *words = shlex.split(typed)
    assert program == "sp-rerank"
    code, _, said = sp_rerank(*words)  # the printed command goes on
    assert code == 0, said
    code, _, said = sp_rerank(*["whole" if word == "cut" else word for word in words if word != "--resume"])
    assert code == 0, said
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(names) > 20
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    print(f"interrupted with {done} of 16 done, resumed: {len(names)} files identical")
