"""Pages of the site that are made, not written: the reference from the code, the project's own files from the top.

A hook of mkdocs (mkdocs.yml). Knows the command line's parsers, the dataclasses behind run.json and recipes, and which
links of the pages lead out of docs/. `tests/project/test_site.py` calls its functions without mkdocs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TOP = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "README.md": "index.md",
    "examples/comfyui/README.md": "project/comfyui.md",
    "examples": "project/examples.md",
    **{f"examples/0{number}": "project/examples.md" for number in range(10)},
}
"""Files outside docs/, by their beginning, and the pages that stand for them."""


MARK = r"<!-- made: (\w+) -->"
"""Where a page of docs/reference wants what is made of the code."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made. Called by mkdocs."""
    from mkdocs.structure.files import File

    for place, make in PAGES.items():
        files.append(File.generated(config, place, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is made, and let links out of docs/ lead to the page that stands for the file. Called by mkdocs."""
    if page.file.src_uri in PAGES:
        return markdown
    filled = re.sub(MARK, lambda match: MADE[match[1]](), markdown)
    return relink(filled, page.file.src_uri, page.file.src_uri)


def relink(markdown: str, place: str, origin: str) -> str:
    """Links of a page as the site has them.

    Args:
        markdown: The page.
        place: Where it is in the site, from docs/.
        origin: Where its links start from, from docs/; "../README.md" for a file at the top.
    """

    def moved(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = (ROOT / "docs" / origin).parent.joinpath(target).resolve()
        inside = path.is_relative_to(ROOT / "docs")
        name = path.relative_to(ROOT / "docs" if inside else ROOT).as_posix()
        if not inside:
            name = next((page for begin, page in TOP.items() if name.startswith(begin)), name)
        if name == place:
            return f"](#{anchor})" if anchor else f"]({Path(place).name})"
        up = "../" * place.count("/")
        return f"]({up}{name}{f'#{anchor}' if anchor and inside else ''})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, markdown)


def top_page(name: str) -> str:
    """A file of the top as a page of the site."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return relink(text, TOP[name], f"../{name}")


def examples() -> str:
    """The scripts of examples/, each with its source."""
    parts = ["# Examples", "They run offline, on the embedded model."]
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        parts += [f"## {path.name}", f"```python\n{source}```"]
    return "\n\n".join(parts)


# The command line


def cli() -> str:
    """Every command with its arguments and options, as its parser has them."""
    import typer.main

    from sp_rerank.cli import app

    lines: list[str] = []
    for words, command in commands(typer.main.get_command(app), "sp-rerank"):
        lines += _command(words, command)
    return "\n".join(lines)


def commands(command: Any, words: str) -> Iterator[tuple[str, Any]]:
    """A command and all below it, each with the words that call it."""
    below = getattr(command, "commands", {})
    if not below or (command.callback is not None and words != "sp-rerank"):
        yield words, command
    for name, child in below.items():
        if not child.hidden:
            yield from commands(child, f"{words} {name}")


def _command(words: str, command: Any) -> list[str]:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [_usage(parameter) for parameter in shown if parameter.param_type_name == "argument"]
    lines = [
        f"## {words}",
        "",
        (command.help or "").strip(),
        "",
        "```",
        " ".join([words, *arguments, "[OPTIONS]"]),
        "```",
    ]
    lines += ["", "| | default | |", "|---|---|---|"]
    for parameter in shown:
        if parameter.name == "help":
            continue
        name, default = _parameter(parameter)
        lines.append(f"| {name} | {default} | {_cell(_help(parameter))} |")
    return [*lines, ""]


def _usage(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name.upper()).rstrip(".")
    dots = "..." if parameter.nargs == -1 or parameter.multiple else ""
    return f"{name}{dots}" if parameter.required else f"[{name}{dots}]"


def _parameter(parameter: Any) -> tuple[str, str]:
    if parameter.param_type_name == "argument":
        return f"`{_usage(parameter)}`", ""
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = getattr(parameter.default, "value", parameter.default)
    if parameter.required:
        return names, "required"
    nothing = default in (None, [], (), "") or callable(default)
    return names, "" if nothing or isinstance(default, bool) else f"`{_cell(_plain(default))}`"


def _plain(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def _help(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", None) or "").split())
    variable = getattr(parameter, "envvar", None)
    return f"{text} Environment: `{variable}`." if variable else text


def _cell(text: str) -> str:
    """Text for a cell of a table; what stands in it is no markup."""
    return re.sub(r"([|<*])", r"\\\1", text)


# Options, recipe keys, the run folder


def options() -> str:
    """The options of a run and of its model: flag and keyword, default, range."""
    from sp_rerank.cli.generate import flag_of
    from sp_rerank.config import CheckpointOptions, GenerationOptions

    lines = ["| keyword | option | default | expected | |", "|---|---|---|---|---|"]
    for entry in (*fields(GenerationOptions), *fields(CheckpointOptions)):
        cells = [
            f"`{entry.name}`",
            f"`{flag_of(entry.name)}`",
            f"`{entry.default}`",
            _cell(entry.metadata["rule"].expected),
        ]
        lines.append(f"| {' | '.join(cells)} | {_cell(entry.metadata['help'])} |")
    return "\n".join(lines)


def environment() -> str:
    """The environment variables that count."""
    from sp_rerank.cli import console
    from sp_rerank.scorers.registry import CHECKPOINT_VARIABLE

    rows = [
        (console.MODEL_VARIABLE, "`--model`"),
        (
            console.SCORER_VARIABLE,
            "`--scorer` of `generate`, `batch` and `rank`; of `rank` several, with spaces between",
        ),
        (console.DEVICE_VARIABLE, "`--device`"),
        (console.OUT_VARIABLE, "the folder in which runs without `--out` are made, in place of `runs` (`batches`)"),
        (CHECKPOINT_VARIABLE, "the checkpoint that the scorer `sp` is"),
    ]
    return "\n".join(["| variable | stands in for |", "|---|---|", *(f"| `{name}` | {what} |" for name, what in rows)])


def recipe_keys() -> str:
    """The keys of a recipe: default, range, meaning."""
    from sp_rerank.train import recipe

    rows = _attributes(recipe.Recipe, lambda name: _range(recipe, name))
    return "\n".join(["| key | default | expected | |", "|---|---|---|---|", *rows])


def _range(recipe: Any, name: str) -> str:
    if name in recipe._CHOICES:
        return ", ".join(f"`{choice}`" for choice in recipe._CHOICES[name])
    low, high = recipe._RANGES.get(name, (None, None))
    return "" if low is None else f"{low:g} to {high:g}"


def run_folder() -> str:
    """The files of a run folder and their keys."""
    from sp_rerank.config import RunConfig
    from sp_rerank.run import layout, records, summary

    layout_doc = (layout.__doc__ or "").split("\n\n")[1].rstrip()
    lines = [
        f"```\n{layout_doc}\n```",
        "",
        f"The schema of its files is {records.SCHEMA}, `schema` in run.json and result.json; older ones are read.",
        "A key that is not known is ignored in candidates.jsonl and result.json, and refused in run.json.",
        "",
    ]
    for title, kind in (
        ("run.json", RunConfig),
        ("candidates.jsonl", records.Row),
        ("stages.jsonl, and `stages` of a line of candidates.jsonl", records.StageScore),
        ("result.json", summary.RunSummary),
    ):
        lines += [f"## {title}", "", "| key | |", "|---|---|"]
        lines += [re.sub(r" \| [^|]* \|  \| ", " | ", row, count=1) for row in _attributes(kind, lambda _: "")]
        lines += [""]
    return "\n".join(lines)


def _attributes(kind: type, expected: Callable[[str], str]) -> Iterator[str]:
    """A row a field of a dataclass: name, default, what is expected, and what its docstring says."""
    said = attributes_of(kind.__doc__ or "")
    for entry in fields(kind):
        default = (
            "" if entry.default is MISSING or not isinstance(entry.default, int | float | str) else f"`{entry.default}`"
        )
        yield f"| `{entry.name}` | {default} | {expected(entry.name)} | {_cell(said[entry.name])} |"


def attributes_of(doc: str) -> dict[str, str]:
    """The section "Attributes" of a Google docstring, by name."""
    section = doc.partition("Attributes:\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {12,}.*)*)", section, re.MULTILINE):
        found[name] = " ".join(text.split())
    return found


def python() -> str:
    """The public names, for mkdocstrings to fill."""
    import sp_rerank

    return "\n\n".join(f"::: {place}" for _, place in public_places(sp_rerank.__all__))


def public_places(names: list[str]) -> Iterator[tuple[str, str]]:
    """(name, where it is defined) of the public names, read from the source of `sp_rerank`."""
    tree = ast.parse((ROOT / "sp_rerank" / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sp_rerank")
        for alias in node.names
    }
    for name in names:
        yield name, imported[name]


PAGES: dict[str, Callable[[], str]] = {
    "project/contributing.md": lambda: top_page("CONTRIBUTING.md"),
    "project/changelog.md": lambda: top_page("CHANGELOG.md"),
    "project/security.md": lambda: top_page("SECURITY.md"),
    "project/comfyui.md": lambda: top_page("examples/comfyui/README.md"),
    "project/examples.md": examples,
}
"""Pages that are made as a whole."""

MADE: dict[str, Callable[[], str]] = {
    "cli": cli,
    "environment": environment,
    "options": options,
    "python": python,
    "recipe_keys": recipe_keys,
    "run_folder": run_folder,
}
"""What a page of docs/reference asks for by a mark."""
