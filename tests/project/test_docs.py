"""What the pages say can be done can be done: links, commands, options, code, tests that are named."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from support.repository import ROOT, Block, blocks, name, pages, prose

import sp_rerank
from sp_rerank import cli, errors

PROGRAM = typer.main.get_command(cli.app)


def numbered(page: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """(place, first group) of each match in the prose of a page."""
    text = prose(page)
    for match in re.finditer(pattern, text):
        yield f"{name(page)}:{text.count(chr(10), 0, match.start()) + 1}", match[1].replace("\n", " ")


def anchors(page: Path) -> set[str]:
    """The places of a page that a link may point to, named as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_link_is_dead():
    found = []
    for page in pages():
        for place, target in numbered(page, r"\]\(([^)\s]+)\)"):
            if re.match(r"https?:|mailto:", target):
                continue
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            if not file.exists():
                found.append(f"{place}: {target} is not there")
            elif anchor and anchor not in anchors(file):
                found.append(f"{place}: {target} names no heading")
    assert not found, "\n" + "\n".join(found)


def command_lines() -> list[Any]:
    """Every line of a block that starts our command, as words, whatever stands before it."""
    found = []
    for page in pages():
        for block in blocks(page):
            text = block.text.replace("\\\n", " ")
            for line in text.splitlines():
                match = re.search(r"(?:^|&& |\$ )(?:\w+=\S+ )*sp-rerank( .*)?$", line)
                if match:
                    words = shlex.split(match[1] or "", comments=True)
                    found.append(pytest.param(words, id=f"{block.place} {' '.join(words)}"))
    return found


def mentions() -> list[Any]:
    """Every command of ours that stands in a sentence or a table; the changelog also names those that are gone."""
    return [
        pytest.param(text, id=f"{place} {text}")
        for page in pages()
        if page.name != "CHANGELOG.md"
        for place, text in numbered(page, r"`sp-rerank ([^`]+)`")
    ]


def parse(words: list[str], *, whole: bool) -> None:
    """Let the command's own parser read the words; nothing is run.

    Args:
        words: what follows `sp-rerank`.
        whole: False where arguments may be missing, as in a sentence that only names the command.
    """
    command: Any = PROGRAM
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        if hasattr(command, "default") and words[0] not in command.commands:
            words = [command.default, *words]
        assert words[0] in command.commands, f"no command {words[0]!r}; expected one of {', '.join(command.commands)}"
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(command.name, list(words))
    except Exception as error:  # the parser's classes are no public part of typer: known by name
        kind, message = type(error).__name__, getattr(error, "format_message", error.__repr__)()
        if kind in ("Exit", "NoArgsIsHelpError"):
            return
        placeholder = kind == "BadParameter" and any(word.isupper() for word in words)  # INDEX, where a number belongs
        if whole or not (kind == "MissingParameter" or placeholder):
            pytest.fail(message)


@pytest.mark.parametrize("words", command_lines())
def test_a_command_is_accepted_by_its_parser(words):
    parse(words, whole=True)


@pytest.mark.parametrize("text", mentions())
def test_a_command_that_is_mentioned_exists(text):
    parse(shlex.split(text), whole=False)


def options(command: Any) -> set[str]:
    """Every option of a command and of those under it."""
    own = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(options(below) for below in getattr(command, "commands", {}).values()), {"--help"})


OTHERS = {"--trust-remote-code"}
"""Options of other programs that the pages name."""


def test_an_option_that_is_mentioned_exists():
    known = options(PROGRAM) | OTHERS
    found = [
        f"{place}: {text}"
        for page in pages() if page.name != "CHANGELOG.md"
        for place, text in numbered(page, r"`(--[^`]+)`")
        for option in re.findall(r"(?<!\S)(--[a-z][\w-]*)", text) if option not in known
    ]  # fmt: skip
    assert not found, "\n" + "\n".join(found)


def test_a_module_that_is_started_exists():
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for module in re.findall(r"-m (sp_rerank[\w.]*)", text):
            path = ROOT.joinpath(*module.split("."))
            if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
                found.append(f"{name(page)}: {module}")
    assert not found, "\n" + "\n".join(found)


def python_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.place)
def test_python_code_uses_names_that_exist(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module == "sp_rerank":
            assert [alias.name for alias in node.names if not hasattr(sp_rerank, alias.name)] == []


OTHERS_WEIGHTS = {"models.md"}
"""Pages whose code loads files of others."""

SMALLER = {"n=20)": "n=2, steps=2)"}
"""What a test leaves out of the guides' code: time."""


PAGES_WITH_CODE = sorted({block.page for block in python_blocks() if block.page.name not in OTHERS_WEIGHTS})


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=name)
def test_the_python_code_of_a_page_runs_and_prints_what_it_says(page, mini, tmp_path, monkeypatch, capsys):
    """The blocks of a page share their names; a comment behind a print is its output, numbers up to rounding."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.tsv").write_text("prompt\na lemon\n")
    known: dict[str, Any] = {"your_pipe": mini}
    for block in (block for block in python_blocks() if block.page == page):
        text = block.text
        for said, ran in SMALLER.items():
            text = text if page.name == "README.md" else text.replace(said, ran)
        exec(compile(text, block.place, "exec"), known)
        expected = re.findall(r"^print\(.*\)\n# (.*)$", text, re.MULTILINE)
        printed = capsys.readouterr().out.splitlines()
        assert not expected or len(printed) == len(expected), printed
        for got, said in zip(printed, expected, strict=False):
            assert re.sub(r"\d+\.\d+", "#", got) == re.sub(r"\d+\.\d+", "#", said)
            numbers = [[float(number) for number in re.findall(r"\d+\.\d+", text)] for text in (got, said)]
            assert numbers[0] == pytest.approx(numbers[1], abs=2e-3)


def test_the_table_of_exit_codes_is_true():
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SpRerankError)
    ]
    assert table == {0, 130, 141, 143} | {kind.exit_code for kind in kinds}


def test_a_test_that_is_named_exists():
    found = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for path, function in re.findall(r"`(tests/[\w/.]*)(?:::(\w+))?`", text):
            file = ROOT / path
            if not file.exists() or (function and f"def {function}(" not in file.read_text(encoding="utf-8")):
                found.append(f"{name(page)}: {path}{'::' + function if function else ''}")
    assert not found, "\n" + "\n".join(found)
