"""Pages of docs/ that hold tables which a test knows: a section is written anew, the rest stays."""

from __future__ import annotations

from pathlib import Path


def section(page: Path, heading: str) -> str:
    """The text under a heading of the second level, to the next one."""
    text = page.read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def write_section(page: Path, heading: str, text: str) -> None:
    """Put other text under a heading that the page has."""
    before, after = page.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)
    _, mark, rest = after.partition("\n## ")
    page.write_text(f"{before}\n## {heading}\n{text}{mark}{rest}", encoding="utf-8")
