"""The shape of the tree, as far as a machine can hold it: sizes, and who may speak of what."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.repository import LIBRARY, ROOT, modules, name

LONGEST = 350
REASON = re.compile(r"\b350 lines\b|\blong(er)?\b", re.IGNORECASE)
"""A module docstring that says why its file is long."""
OPTION = re.compile(r"(?<![\w-])--[a-z]")
COMMAND = re.compile(r"\b(sp-rerank|hf|pip) ")
"""A whole command, to be typed: its options are its own."""
PROGRAM = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
"""A command line of its own: it names its options."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def strings(module: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of the strings that are no docstrings and no words of a command that is put together in a list."""
    skipped: set[int] = set()
    for node in ast.walk(module):  # from the outside in
        if isinstance(node, ast.Expr):
            skipped.add(id(node.value))
        elif isinstance(node, ast.List):
            skipped.update(map(id, node.elts))
        elif isinstance(node, ast.JoinedStr) and id(node) not in skipped:
            parts = [getattr(part, "value", "") for part in node.values]
            skipped.update(map(id, node.values))
            yield node.lineno, "".join(part if isinstance(part, str) else "{}" for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def test_a_file_fits_into_a_head():
    found = []
    for path in modules(*LIBRARY, "examples"):  # a test module is as long as its subject has cases
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > LONGEST and not REASON.search(ast.get_docstring(tree(path)) or ""):
            found.append(f"{name(path)}: {length} lines, and its docstring does not say why")
    assert not found, "\n" + "\n".join(found)


def test_the_library_speaks_the_names_of_python():
    """`steps`, not `--steps`: the command line translates."""
    found = []
    for path in modules(*LIBRARY):
        if name(path).startswith("sp_rerank/cli/") or PROGRAM.search(path.read_text(encoding="utf-8")):
            continue
        spoken = [
            (line, text) for line, text in strings(tree(path)) if OPTION.search(text) and not COMMAND.search(text)
        ]
        found += [f"{name(path)}:{line}: {text!r}" for line, text in spoken]
    assert not found, "\n" + "\n".join(found)


def test_no_test_module_imports_another():
    found = []
    for path in modules("tests"):
        for node in ast.walk(tree(path)):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if any(part.startswith("test_") for module in imported for part in module.split(".")[:2]):
                found.append(f"{name(path)}:{node.lineno}")
    assert not found, "\n" + "\n".join(found)


def test_few_modules_stand_directly_under_the_package():
    assert len(list((ROOT / "sp_rerank").glob("*.py"))) <= 8
