"""Plain words in code, templates and pages: names that were given up do not come back. The spelling is codespell's."""

from __future__ import annotations

import re
import tokenize

from support.repository import ROOT, modules, name, texts

PLAIN = {
    r"he|him|his": "it, or the name of the thing",
    r"nought": "0, or zero",
    r"likewise": "say it again",
    r"nobody|everybody": "no candidate, every scorer: the noun",
}
RENAMED = {
    r"unet_evaluations": "nfe",
    r"carry_out": "run_search",
    r"_Tally|_conclude": "the store of run/",
    r"cut_state": "slice_state",
    r"side_by_side": "open_trajectories",
    r"act_out": "simulate",
    r"class Steadiness": "class Robustness",
    r"suited": "default_settings",
    r"warm_up": "warmup_steps",
    r"pairs_together": "pairs_per_prompt",
    r"flip_chance": "flip_probability",
    r"crop_from": "min_crop_ratio",
    r"validation_share": "validation_fraction",
    r"--until": "--confidence",
    r"configuration\.py|generation\.py|existing\.py|repetition\.py|rescoring\.py|durable\.py": "the file's new name",
}
OLD_NAMES = {  # where a name that was given up is read, refused with a hint, or told of
    "CHANGELOG.md": r".*",
    "tests/project/test_words.py": r".*",
    "sp_rerank/cli/__init__.py": r"--until",
    "sp_rerank/run/records.py": r"unet_evaluations",
    "tests/run/test_folder.py": r"unet_evaluations",
    "train/recipe.py": r"warm_up|pairs_together|flip_chance|crop_from|validation_share",
    "tests/train/test_recipe.py": r"warm_up|pairs_together|flip_chance|crop_from|validation_share",
}
"""File -> the words that it may hold."""


def test_words():
    found = []
    for path in texts():
        allowed = re.compile(OLD_NAMES.get(name(path), r"(?!)"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for words, instead in {**PLAIN, **RENAMED}.items():
                flags = re.IGNORECASE if words in PLAIN else 0
                for match in re.finditer(rf"(?<![\w-])(?:{words})(?!\w)", line, flags):
                    if not allowed.fullmatch(match[0]):
                        found.append(f"{name(path)}:{number}: {match[0]} -> {instead}")
    assert not found, "\n" + "\n".join(found)


def test_a_callback_is_named_for_what_it_gets():
    """`told`, as a name: it is `progress` or `report`. As a word of prose ("told apart") it is fine."""
    found = []
    for path in modules("sp_rerank", "pipelines", "train", "tests", "examples"):
        with path.open("rb") as file:
            names = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.NAME]
        found += [f"{name(path)}:{token.start[0]}" for token in names if token.string == "told"]
    assert not found, "\n" + "\n".join(found)


def test_every_exception_still_stands_for_a_file():
    assert [file for file in OLD_NAMES if not (ROOT / file).is_file()] == []
