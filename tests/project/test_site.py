"""The site's reference is what the code says: every command, option, key and public name, and nothing else."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import fields
from types import ModuleType

import pytest
import typer.main
from support.repository import ROOT, pages

import sp_rerank
from sp_rerank import cli
from sp_rerank.config import GenerationOptions, RunConfig
from sp_rerank.run.records import Row, StageScore
from sp_rerank.run.summary import RunSummary
from sp_rerank.train.recipe import Recipe


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_and_option_has_its_row(site):
    page = site.cli()
    found = list(site.commands(typer.main.get_command(cli.app), "sp-rerank"))
    assert {words for words, _ in found} >= {"sp-rerank generate", "sp-rerank batch make", "sp-rerank scorers convert"}
    for words, command in found:
        section = page.partition(f"## {words}\n")[2].partition("\n## ")[0]
        assert section, words
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"`{option}`" in section or option == "--help", (words, option)
    assert "Environment: `SP_RERANK_MODEL`" in page


@pytest.mark.parametrize("kind", [RunConfig, Row, StageScore, RunSummary], ids=lambda kind: kind.__name__)
def test_every_key_of_a_run_folder_is_explained(site, kind):
    said = site.attributes_of(kind.__doc__)
    assert set(said) == {entry.name for entry in fields(kind)}
    page = site.run_folder()
    for entry, text in said.items():
        assert f"| `{entry}` | {site._cell(text)} |" in page


def test_every_key_of_a_recipe_and_every_option_is_there(site):
    keys, options = site.recipe_keys(), site.options()
    assert [entry.name for entry in fields(Recipe) if f"| `{entry.name}` |" not in keys] == []
    assert [entry.name for entry in fields(GenerationOptions) if f"| `{entry.name}` |" not in options] == []
    assert "| `batch_size` | `64` | 1 to 65536 |" in keys


def test_every_public_name_is_in_the_reference(site):
    places = dict(site.public_places(sp_rerank.__all__))
    assert set(places) == set(sp_rerank.__all__)
    assert places["generate"] == "sp_rerank.generate.generate"
    assert [name for name, place in places.items() if not place.endswith(f".{name}")] == []


def test_every_mark_is_filled_and_every_maker_has_its_mark(site):
    marks = [match for page in pages() for match in re.findall(site.MARK, page.read_text(encoding="utf-8"))]
    assert sorted(marks) == sorted(site.MADE)


def test_links_out_of_the_docs_lead_to_the_page_that_stands_for_the_file(site):
    text = (
        "[a](../CONTRIBUTING.md#tests) [b](../examples/03_write_a_scorer.py) [c](reports/search.md#steering) "
        "[d](https://a.b/c) [e](#here)"
    )
    assert site.relink(text, "scorers.md", "scorers.md") == (
        "[a](project/contributing.md) [b](project/examples.md) [c](reports/search.md#steering) "
        "[d](https://a.b/c) [e](#here)"
    )
    top = site.relink("[a](docs/scorers.md#weights) [b](SECURITY.md)", "project/contributing.md", "../CONTRIBUTING.md")
    assert top == "[a](../scorers.md#weights) [b](../project/security.md)"


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    written = {page.relative_to(ROOT / "docs").as_posix() for page in pages() if page.is_relative_to(ROOT / "docs")}
    made = ("changelog", "comfyui", "contributing", "examples", "security")
    assert menu - written == {f"project/{page}.md" for page in made}
    assert written - menu == set()
