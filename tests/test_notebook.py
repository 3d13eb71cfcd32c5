"""Results in a notebook: thumbnails, escaped and bounded; progress where there is something to show it on."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image
from support.doubles import SeededPipe
from support.pictures import picture

from sp_rerank import Candidate, generate, load_scorer, rank
from sp_rerank.rank import RankedImages, ranked
from sp_rerank.report import progress as shown
from sp_rerank.types import Progress

HOSTILE = '<script>alert(1)</script>" onerror="x & \u202e'


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def html_of(count: int, prompt: str = HOSTILE, size: int = 1024) -> str:
    image = picture("photo", size, size)
    candidates = [Candidate(i, i, image) for i in range(count)]
    return RankedImages(ranked(candidates, [1 / (i + 1) for i in range(count)], 0.0, prompt))._repr_html_()


def test_a_prompt_is_only_text_in_a_notebook():
    tags = Tags(html_of(2)).tags
    assert {tag for tag, _ in tags} == {"div", "figure", "img", "figcaption"}
    assert {name for _, attributes in tags for name in attributes} == {"style", "alt", "src"}
    assert "script" in html_of(2)  # it is shown, as text


def test_the_output_is_bounded_and_asks_for_nothing():
    page = html_of(100, prompt="a" * 100_000)
    images = [attributes["src"] or "" for tag, attributes in Tags(page).tags if tag == "img"]
    assert len(images) == 24
    assert all(source.startswith("data:image/webp;base64,") for source in images)
    assert "and 76 more" in page
    assert len(page) < 700_000  # of noise, which packs badly; 100 MB of PNG


def test_results_show_themselves():
    scorer = load_scorer("brightness")
    result = generate("a lemon", pipe=SeededPipe(), scorer=scorer, n=5, top_k=2)
    page = result._repr_html_()
    assert page.count("<img") == 2
    assert "the best 2 of 5 for “a lemon”" in page
    assert f"1: {result[0].score:.4f}, seed {result[0].seed}" in page
    assert rank(scorer, "a lemon", [Image.new("RGB", (8, 8))])._repr_html_().count("<img") == 1
    png = result[0]._repr_png_()
    assert png
    assert Image.open(io.BytesIO(png)).size == (8, 8)


def test_no_display_is_needed():
    code = (
        "from sp_rerank import generate, load_scorer\nfrom support.doubles import SeededPipe\n"
        "r = generate('a', pipe=SeededPipe(), scorer=load_scorer('brightness'), n=2)\n"
        "assert r._repr_html_() and 'IPython' not in __import__('sys').modules"
    )
    from support.repository import ROOT

    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")  # no terminal: no bar


def test_progress_moves_within_a_batch():
    seen: list[Progress] = []
    scorer = load_scorer("brightness")
    generate("a", pipe=SeededPipe(), scorer=scorer, n=4, batch_size=2, steps=4, top_k=1, progress=seen.append)
    assert [(p.done, p.in_hand) for p in seen] == [
        *[(0, 0.0), (0, 0.5), (0, 1.0), (0, 1.5), (2, 0.0)],
        *[(2, 0.0), (2, 0.5), (2, 1.0), (2, 1.5), (4, 0.0)],
    ]
    assert [shown.reached(p) for p in seen][-2:] == [3.5, 4]


def test_a_notebook_gets_a_line_that_replaces_itself(monkeypatch, capsys):
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr(shown, "EVERY", 0)
    scorer = load_scorer("brightness")
    generate("a", pipe=SeededPipe(), scorer=scorer, n=4, batch_size=2, steps=4, top_k=1)
    err = capsys.readouterr().err
    assert re.search(r"\r4 of 4, [\d.]+ images/s, best 0\.\d{4} *\r +\r$", err), err
    assert "\n" not in err
    generate("a", pipe=SeededPipe(), scorer=scorer, n=4, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["no shell", "a terminal's shell"])
def test_what_is_no_notebook(monkeypatch, shell):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert not shown.in_notebook()
