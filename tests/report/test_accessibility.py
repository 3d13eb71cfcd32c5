"""What a page must have for people who do not see it, or do not see it well, as far as markup and colors tell.

Names of what can be operated, labels that exist, headings in order, alternative texts, contrast in both color schemes.
What only a browser can tell was looked at with axe-core, see docs/development.md.
"""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest
from support.painted_runs import make_run

from sp_rerank.report.gallery import write_gallery
from sp_rerank.report.overview import write_overview
from sp_rerank.report.together import joint_sheet

SCORES = {"sp@1f": [i / 6 for i in range(6)], "clip@2f": [(i * 5 % 6) - 3.0 for i in range(6)]}
TEXT, BOLD = 4.5, 3.0
"""Least contrast of text and of what is not text (WCAG 2.2, 1.4.3 and 1.4.11)."""

FILLED = {"file"}
"""What a script gives its text before it can be seen."""

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
NAMED = {"button", "a", "input", "select", "textarea", "dialog", "fieldset"}


class Element:
    """An element with its attributes, its parent and what is in it as text."""

    def __init__(self, tag, attributes, parent):
        self.tag, self.attributes, self.parent, self.text = tag, attributes, parent, ""

    def says(self, text):
        self.text += text
        if self.parent:
            self.parent.says(text)


class Tree(HTMLParser):
    """Every element of a page, in order."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self._open = [], [None]
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs), self._open[-1])
        self.elements.append(element)
        if tag == "img" and element.parent:
            element.parent.says(element.attributes.get("alt") or "")
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        while len(self._open) > 1 and self._open.pop().tag != tag:
            pass

    def handle_data(self, data):
        if self._open[-1] and self._open[-1].tag not in ("script", "style"):
            self._open[-1].says(data)

    def all(self, *tags):
        return [element for element in self.elements if element.tag in tags]


def pages(folder):
    """Every page by its name."""
    runs = [make_run(folder / "runs" / name, SCORES, negative_prompt="text") for name in ("one", "two")]
    columns = [{name: dict(enumerate(column)) for name, column in SCORES.items()} for _ in runs]
    return {
        "gallery": write_gallery(runs[0]).read_text("utf-8"),
        "overview": write_overview(folder / "runs")[0].read_text("utf-8"),
        "together": joint_sheet(runs, columns, folder).decode(),
        "label": files("sp_rerank.label").joinpath("static", "label.html").read_text("utf-8"),
        "batch": batch_page(folder / "batch"),
    }


def batch_page(folder):
    from support.batch_objects import write_units

    from sp_rerank.batch.overview import batch_overview

    return batch_overview(write_units(folder, ["a lemon", "a cat"], n=4)).decode()


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return {name: Tree(page) for name, page in pages(tmp_path_factory.mktemp("pages")).items()}


PAGES = pytest.mark.parametrize("name", ["gallery", "overview", "together", "label", "batch"])


@PAGES
def test_the_page_says_its_language_and_what_it_is(trees, name):
    (html,) = trees[name].all("html")
    titles = [title for title in trees[name].all("title") if title.parent.tag == "head"]  # a drawing may have its own
    assert html.attributes["lang"] == "en"
    assert [title.text.strip() != "" for title in titles] == [True]
    assert len(trees[name].all("main")) == 1


@PAGES
def test_an_id_is_there_once_and_what_is_referred_to_is_there(trees, name):
    ids = Counter(element.attributes["id"] for element in trees[name].elements if "id" in element.attributes)
    assert [found for found, count in ids.items() if count > 1] == []
    for element in trees[name].elements:
        for attribute in ("aria-labelledby", "aria-describedby", "aria-controls", "for"):
            for wanted in (element.attributes.get(attribute) or "").split():
                assert wanted in ids, f"{element.tag} {attribute}={wanted}"


@PAGES
def test_what_can_be_operated_has_a_name(trees, name):
    tree = trees[name]
    labels = {label.attributes.get("for") for label in tree.all("label")}
    for element in tree.all(*NAMED):
        given = element.attributes
        inside = element.text.strip() if element.tag not in ("input", "select", "textarea", "dialog") else ""
        if given.get("id") in FILLED:
            continue
        in_label = any(ancestor.tag == "label" and ancestor.text.strip() for ancestor in ancestors(element))
        named = inside or given.get("aria-label") or given.get("aria-labelledby") or in_label
        assert named or given.get("id") in labels or given.get("type") == "hidden", (element.tag, given)


def ancestors(element):
    while element.parent:
        element = element.parent
        yield element


@PAGES
def test_every_image_has_an_alternative(trees, name):
    assert [image.attributes for image in trees[name].all("img") if image.attributes.get("alt") is None] == []


@PAGES
def test_headings_begin_with_one_and_leave_no_step_out(trees, name):
    levels = [int(element.tag[1]) for element in trees[name].all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


@PAGES
def test_zoom_is_not_forbidden(trees, name):
    (viewport,) = [meta for meta in trees[name].all("meta") if meta.attributes.get("name") == "viewport"]
    assert not re.search(r"user-scalable|maximum-scale", viewport.attributes["content"])


def colors(scheme):
    """The colors of page.css by name."""
    css = files("sp_rerank.report").joinpath("templates", "page.css").read_text("utf-8")
    light, dark = css.split("prefers-color-scheme: dark", 1)
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", light))
    return found if scheme == "light" else found | dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", dark))


def luminance(color):
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_focus_stand_out_from_what_is_behind_them(scheme):
    known = colors(scheme)
    assert {"paper", "card", "ink", "faint", "gold", "mark"} <= set(known)
    for ground in ("paper", "card"):
        for text in ("ink", "faint", "gold"):
            assert contrast(known[text], known[ground]) >= TEXT, (scheme, text, ground)
        assert contrast(known["mark"], known[ground]) >= BOLD, (scheme, "mark", ground)
    assert contrast(known["ink"], known["paper"]) >= TEXT  # a button that is filled with ink


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
