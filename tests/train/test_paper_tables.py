"""The paper's tables by hand: each image scored once a view, both ways to count, people's own rows."""

import json

import pytest
import typer
from support.halves import BRIGHTNESS, Corner, put
from typer.testing import CliRunner

from sp_rerank.cli import evaluate as commands
from sp_rerank.errors import NothingUsableError
from sp_rerank.report.tables import to_json
from sp_rerank.train.evaluate import evaluate
from sp_rerank.train.paper_tables import CROPPED, markdown, paper_row
from sp_rerank.train.preferences import PreferenceGroup
from sp_rerank.train.robustness import robustness


def groups_in(folder):
    halves = {"a": [(0, 255), (51, 204), (102, 0)], "b": [(10, 20), (90, 80)]}
    return [
        PreferenceGroup.ranked(
            prompt,
            [put(folder / f"{prompt}{i}.png", *pair) for i, pair in enumerate(pairs)],
            range(len(pairs)),
            annotations=[tuple(range(len(pairs))), tuple(range(len(pairs), 0, -1))],
        )
        for prompt, pairs in halves.items()
    ]


@pytest.mark.parametrize("scorer", [Corner(), BRIGHTNESS])
def test_both_tables_say_what_the_single_commands_say(tmp_path, scorer):
    row = paper_row(scorer, groups_in(tmp_path), data="x", batch_size=2)
    alone = robustness(scorer, groups_in(tmp_path), data="x", ratios=CROPPED)
    assert to_json(row.evaluation) == to_json(evaluate(scorer, groups_in(tmp_path), data="x"))
    assert to_json(row.robustness) == to_json(alone)


def test_the_layout_of_the_tables(tmp_path):
    text = markdown([paper_row(Corner(), groups_in(tmp_path), data="x")])
    lines = text.splitlines()
    assert "| scorer | x micro | x macro |" in lines
    assert any(line.startswith("| human: single against single | 0.0") for line in lines)
    heads = [line for line in lines if line.startswith("| scorer | data |")]
    assert heads == ["| scorer | data | as they are | HP&CC 0.97 | HP&CC 0.95 | HP&CC 0.93 | HP&CC 0.9 |"] * 2
    micro, macro = [line for line in lines if line.startswith(f"| {Corner().name} | x |")]
    # 0 < 51 < 102 and 10 < 90 though the first is the better one; mirrored 255 > 204 > 0, and 20 < 80
    assert " 0.0 " in micro and "75.0 (+75.0)" in micro and "50.0 (+50.0)" in macro


def test_nothing_to_score(tmp_path):
    with pytest.raises(NothingUsableError, match="no pair of images"):
        paper_row(BRIGHTNESS, [], data="x")


def test_the_command_writes_tables_and_a_plot(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png", 40 * i, 40 * i)
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": "x", "first": f"{a}.png", "second": f"{b}.png", "label": label}) + "\n"
                for a, b, label in ((0, 1, 0), (1, 2, 0), (2, 0, 1)))
    )  # fmt: skip
    app = typer.Typer()
    app.command("paper-tables")(commands.paper_tables)
    words = ["--data", tmp_path / "data.jsonl", "--scorer", "brightness", "--out", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "100.0 (+0.0)" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"paper-tables.{kind}" for kind in ("json", "md", "svg")
    }
    record = json.loads((tmp_path / "out" / "paper-tables.json").read_text())
    assert record[0]["robustness"]["rows"][0]["macro"]["value"] == 1.0
