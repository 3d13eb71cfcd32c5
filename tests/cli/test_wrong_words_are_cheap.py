"""A wrong word is answered within a second: in a process of its own, without torch, scipy or a model library."""

import json
import subprocess
import sys

import pytest
from PIL import Image

HEAVY = ("torch", "diffusers", "transformers", "open_clip", "scipy", "matplotlib")
"""What takes a second or more to import."""

SECONDS = 1.0  # of a CPU, start of the interpreter included

ASK = f"""
import contextlib, io, json, os, sys
from sp_rerank import cli
answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["sp-rerank", *words]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    answers.append([code, said.getvalue(), [name for name in {HEAVY} if name in sys.modules]])
    if len(answers) == 1:
        answers[0].append(sum(os.times()[:2]))
print(json.dumps(answers))
"""

WRONG = {
    "generate x --n 4 --top-k 9": "--top-k is 9; expected at most 4",
    "generate x --steps 0": "--steps is 0",
    "generate x --search nothing.toml": "--search is 'nothing.toml'; expected exhaustive, fast, steering",
    "generate x --model nothing": "no model 'nothing'",
    "generate x --model mini --dtype fp16": "no precision 'fp16'",
    "generate x --device tpu": "no device 'tpu'",
    "generate x --scorer clip-mimi": "did you mean 'clip-mini'?",
    "generate x --also 2*clip-mini+clip-mimi": "did you mean 'clip-mini'?",
    "rank . --prompt x --top-k 0": "Invalid value for '--top-k'",
    "rank nowhere --prompt x": "nowhere: expected an image file or a folder",
    "rank a.png --prompt x --scorer clip-mimi": "did you mean 'clip-mini'?",
    "rank a.png --prompt x --dtype fp16": "no precision 'fp16'",
    "rank a.png --prompt x --device tpu": "no device 'tpu'",
    "compare nowhere --scorer clip-mimi": "did you mean 'clip-mini'?",
    "batch make prompts.txt --scorer clip-mimi": "did you mean 'clip-mini'?",
    "batch make prompts.txt --search nothing.toml": "--search is 'nothing.toml'",
    "evaluate --scorer clip-mimi --data .": "did you mean 'clip-mini'?",
    "verify nowhere": "nowhere is not a run folder",
    "gallery nowhere": "nowhere",
    "replay nowhere 1": "nowhere is not a run folder",
    "bench score --dtype fp8": "--dtype is 'fp8'",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of WRONG gives, one after another in one process: what one imported the next would show."""
    folder = tmp_path_factory.mktemp("wrong")
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    (folder / "prompts.txt").write_text("a lemon\n")
    words = json.dumps([line.split() for line in WRONG])
    done = subprocess.run([sys.executable, "-c", ASK, words], cwd=folder, capture_output=True, text=True, check=True)
    return dict(zip(WRONG, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_word_imports_nothing_heavy(answers, line):
    code, said, heavy, *_ = answers[line]
    assert code == 2, said
    assert WRONG[line] in said
    assert heavy == []


def test_a_wrong_word_is_answered_within_a_second_of_a_cpu(answers):
    assert answers[next(iter(WRONG))][3] < SECONDS
