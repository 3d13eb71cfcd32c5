"""The commands of README and guides run, page by page, in the order in which they stand.

Each page has a folder of its own with the files that it speaks of. In the place of models that would be downloaded are
doubles: noise for a pipeline, brightness for a scorer; the embedded scorers are the real ones. Options that only make a
command take less time are added at its end. What needs another machine, a person or published weights is named in
ELSEWHERE with the reason.
"""

from __future__ import annotations

import csv
import functools
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.doubles import SeededPipe
from support.repository import ROOT, blocks, name
from support.tiny import build_sd_pipeline

from sp_rerank import cli, scorers
from sp_rerank.diffusion import loading
from sp_rerank.scorers.brightness import BrightnessScorer

PAGES = [
    "README.md", "docs/index.md", "docs/start/first-pictures.md", "docs/existing-pictures.md", "docs/gallery.md",
    "docs/searching.md", "docs/comparing.md", "docs/scorers.md", "docs/choosing.md", "docs/batches.md",
    "docs/training.md",
]  # fmt: skip
LATENT = {"docs/gallery.md", "docs/searching.md"}
"""Pages that need a pipeline with latents: Stable Diffusion's own classes with tiny random weights."""

ELSEWHERE = {
    r"^(pip|uvx|docker|torchrun|accelerate) ": "installs something, or starts another program",
    r"^(srun|#SBATCH|#!/bin)": "SLURM",
    r"^duckdb ": "DuckDB's own program; tests/batch/test_exports.py queries the table",
    r"s3://": "an object store",
    r"^python -m sp_rerank\.train\.mini|build/mini": "the images that the mini world is made of: hours",
    r"--base |--variant ": "files of one's own; tests/diffusion/test_checkpoints.py",
    r"^sp-rerank label ": "waits for a person; tests/label",
    r"^sp-rerank taste |sp@taste/": "a person's answers; tests/train/test_taste.py",
    r"--base |--lora |hub:OWNER": "weights and data of others, on a hub; tests/diffusion, tests/train",
    r"^sp-rerank scorers convert ": "published weights; tests/scorers/test_convert.py",
}
FASTER = {
    r"sp-rerank batch [^s]\S*\.txt": "--model mini --scorer brightness --also clip-mini --n 2 --steps 1",
    r"sp-rerank train ": "--set steps=2 --set batch_size=2 --set stage_1_steps=1 --tracker none",
    r"sp-rerank generate .*--record": "--n 30 --steps 20",
    r"sp-rerank generate .*--(search fast|confidence|max)": "--n 12",
    r"sp-rerank generate .*--search plan": "--n 30 --steps 20",
}
"""Commands, and what makes them take less time."""


class Painted(BrightnessScorer):
    """Brightness, under the name of a scorer whose weights are not here."""

    def __init__(self, spec: str) -> None:
        self.name = f"{spec}@double"


def lines(page: str) -> Iterator[tuple[str, str]]:
    """(place, command) of every command in the blocks without a language."""
    for block in blocks(ROOT / page):
        text = re.sub(r"\\\n", "", block.text)
        if block.language in ("", "bash"):
            for number, line in enumerate(text.splitlines()):
                if re.match(STARTS, line):
                    yield f"{page}:{block.line + number}", line


STARTS = r"(export|sp-rerank|pip|uvx|docker|torchrun|accelerate|srun|#SBATCH|#!/bin/bash|duckdb|python)(?= |$)"


def elsewhere(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in ELSEWHERE)


def prepare(folder: Path) -> None:
    """The files that the pages speak of."""
    (folder / "prompts.txt").write_text("a lemon\na pear\n")
    (folder / "pictures").mkdir()
    for level in (40, 160, 220):
        info = PngInfo()
        info.add_text("parameters", "a lemon on the beach\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1")
        Image.new("RGB", (64, 64), (level, 90, 60)).save(folder / "pictures" / f"{level}.png", pnginfo=info)
    for place in ("PREFERENCES", "TEST"):
        (folder / place).mkdir()
        for level in (40, 220):
            Image.new("RGB", (64, 64), (level, 90, 60)).save(folder / place / f"{level}.png")
        with (folder / place / "pairs.csv").open("w", newline="") as file:
            rows = [[f"a lemon {number}", "40.png", "220.png", number % 2] for number in range(6)]
            csv.writer(file).writerows([["prompt", "first", "second", "label"], *rows])


def scorer_of(spec: str, device: str = "cpu", dtype: Any = None) -> Any:
    """The embedded scorers and those of a folder as they are; a double for any other."""
    here = re.split(r"[+*]", spec)
    if all(part in ("clip-mini", "stable-preference-mini", "brightness", "0.5") or "@" in part for part in here):
        return load_scorer(spec, device=device, dtype=dtype)
    return Painted(spec)


load_scorer = functools.cache(scorers.load_scorer)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    pipe: Any = SeededPipe()
    if page in LATENT:
        pipe = build_sd_pipeline()
        pipe.register_to_config(_name_or_path=loading.MINI)
    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: pipe)
    monkeypatch.setattr(scorers, "load_scorer", scorer_of)
    ran = 0
    for place, line in lines(page):
        if elsewhere(line):
            continue
        if line.startswith("export "):
            for pair in shlex.split(line)[1:]:
                monkeypatch.setenv(*pair.split("=", 1))
            continue
        more = next((words for pattern, words in FASTER.items() if re.search(pattern, line)), "")
        words = list(expanded([*shlex.split(line, comments=True)[1:], *more.split()], tmp_path))
        for each in recorded(words) if "--record" in words else [words]:
            monkeypatch.setattr(sys, "argv", ["sp-rerank", *each])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            printed = capsys.readouterr()
            assert stop.value.code == 0, f"{place}: {line}\n{printed.out}{printed.err}"
        ran += 1
    assert ran, f"{page} has no command that runs; take it from PAGES"


def recorded(words: Sequence[str]) -> Iterator[list[str]]:
    """The recording that a page shows, and three others, as it says: `plan` needs four prompts."""
    for number in range(1, 5):
        yield [
            word.replace("the snow", f"the snow {number}").replace("recordings/1", f"recordings/{number}")
            for word in words
        ]


def expanded(words: Sequence[str], folder: Path) -> Iterator[str]:
    """Words with a star as a shell expands them, and the run folder that the page names by its hash as this one is."""
    for word in words:
        if "*" in word and "/" in word:
            yield from sorted(str(path.relative_to(folder)) for path in folder.glob(word) if path.is_dir())
        elif re.fullmatch(r"runs/[a-z-]+-[0-9a-f]{8}", word):
            yield str(next(folder.glob(f"{word[:-8]}*")).relative_to(folder))
        else:
            yield word


def test_every_page_with_commands_is_run_or_has_none_to_run():
    with_commands = {
        name(page)
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        if "reports" not in page.parts and any(not elsewhere(line) for _, line in lines(name(page)))
    }
    assert with_commands == set(PAGES)


def test_every_reason_still_stands_for_a_command():
    every = [line for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] for _, line in lines(name(page))]
    unused = [pattern for pattern in [*ELSEWHERE, *FASTER] if not any(re.search(pattern, line) for line in every)]
    assert unused == []


def test_a_double_is_a_scorer():
    assert Painted("hps-v2.1").score("a", torch.ones(2, 3, 4, 4)).tolist() == [1, 1]
