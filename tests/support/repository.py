"""The files of this repository as text: what the tests about the project itself read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = ("sp_rerank", "pipelines", "train")  # sp_rerank/train and sp_rerank/pipelines are links, and not followed
TEXTS = {".py", ".md", ".toml", ".html", ".css", ".js", ".yml", ".yaml", ".cff"}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page: its language, its text, and the line on which the text begins."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(path: Path) -> str:
    """The path from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def modules(*folders: str) -> list[Path]:
    """Every Python file under the folders, in order."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def pages() -> list[Path]:
    """README.md, what stands beside it, and the pages of docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def texts() -> list[Path]:
    """Every text that a person wrote: code, templates, pages, configuration."""
    folders = (*LIBRARY, "tests", "examples", "docs", ".github")
    inside = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    written = [path for path in [*ROOT.iterdir(), *inside] if path.suffix in TEXTS]
    return sorted({ROOT / ".ci" / "run", *written})


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])


def prose(page: Path) -> str:
    """A page without its fenced blocks; every line keeps its number."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", lambda match: "\n" * match[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)
