"""The one table of options: what it refuses, and that no layer has a list of its own."""

from dataclasses import fields
from typing import get_type_hints

import pytest
import typer
from support.doubles import SeededPipe

from sp_rerank import generate
from sp_rerank.cli import app
from sp_rerank.cli.generate import flag_of
from sp_rerank.config import GenerationKeywords, GenerationOptions
from sp_rerank.errors import OptionError, UsageError
from sp_rerank.scorers.brightness import BrightnessScorer


def test_keywords_and_command_line_have_the_options_of_the_table():
    table = {entry.name: entry for entry in fields(GenerationOptions)}
    hints = get_type_hints(GenerationKeywords)
    assert hints == {name: kind for name, kind in get_type_hints(GenerationOptions).items() if name in table}
    command = typer.main.get_command(app).commands["generate"]  # pyright: ignore[reportAttributeAccessIssue]
    declared = {parameter.name: parameter for parameter in command.params}
    for name, entry in table.items():
        assert flag_of(name) in declared[name].opts
        assert declared[name].help == entry.metadata["help"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0; expected a whole number from 1"),
        ({"n": True}, "n is True"),
        ({"n": 3, "top_k": 4}, "top_k is 4; expected at most 3, the number of candidates"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": 2**63 - 50}, "expected at most 9223372036854775707, for 100 candidates"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; expected a number from 0"),
        ({"height": 100}, "height is 100; expected a multiple of 8 pixels"),
        ({"eta": 1.5}, "eta is 1.5; expected a number from 0 to 1"),
        ({"record": True, "search": "fast"}, "search is 'fast'; expected exhaustive"),
        ({"confidence": 0.9, "search": "fast"}, "confidence is 0.9; expected none"),
    ],
)
def test_an_option_out_of_its_range_is_named_as_python_spells_it(options, message):
    with pytest.raises(OptionError) as refused:
        GenerationOptions(**options)
    assert message in str(refused.value)
    assert "--" not in str(refused.value)


def test_as_many_are_kept_as_there_are():
    assert GenerationOptions(n=1).kept == 1
    assert GenerationOptions(n=100).kept == 4
    assert GenerationOptions(n=3, top_k=2).kept == 2


def test_an_option_reaches_the_pipeline(tmp_path):
    class Recorded(SeededPipe):
        given: list = []  # noqa: RUF012  # of the class: each call is made by a copy

        def __call__(self, prompt, num_inference_steps=5, guidance_scale=1.0, *, eta=0.0, generator=None, **others):
            self.given.append(eta)
            return super().__call__(prompt, num_inference_steps, guidance_scale, generator=generator, **others)

    result = generate(
        "a lemon", pipe=Recorded(), scorer=BrightnessScorer(), n=2, steps=2, eta=0.5, out=tmp_path / "run"
    )
    assert Recorded.given == [0.5]
    assert len(result) == 2
    assert '"eta": 0.5' in (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(UsageError, match="eta"):
        generate("a lemon", pipe=SeededPipe(), scorer=BrightnessScorer(), n=2, steps=2, eta=0.5)
