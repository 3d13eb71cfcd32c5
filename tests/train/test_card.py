"""The card of a trained scorer: its facts, and that text of others stays text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from sp_rerank.stats.agreement import Estimate
from sp_rerank.train.card import CardFacts, model_card

FACTS = CardFacts(
    name="mine", base="clip-mini@0123", license="Apache-2.0", recipe=("mine", "a" * 64), data=["answers.csv"],
    data_sha256="b" * 64, pairs=1234, prompts=["a cat"], accuracy=Estimate(0.7512, 0.7, 0.8, 200), simulated=False,
)  # fmt: skip

HOSTILE = [
    '<img src=x onerror="alert(1)">', "</table><script>alert(1)</script>", "[x](javascript:alert(1))", "| a | b |",
    "# head\n# head", "**bold** `code` http://evil.example www.evil.example", "&lt;b&gt;", "![](x)",
    "---\nlicense: mit",
]  # fmt: skip


def rendered(card: str) -> str:
    """As the hub renders it: Markdown with tables, links and HTML."""
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).enable("table").render(card.split("---\n", 2)[2])


def test_it_says_what_the_scorer_is():
    card = model_card(FACTS)
    assert card.startswith("---\nlicense: other\n")
    html = rendered(card)
    for text in (
        "clip-mini@0123",
        "1,234 pairs of answers.csv",
        "75.1 [70.0, 80.0] % of 200 pairs",
        "a" * 64,
        "b" * 64,
    ):
        assert text in html
    assert "simulated" not in card
    assert "What it is for" in html


def test_simulated_people_are_called_simulated():
    assert "**The preferences are those of simulated people.**" in model_card(replace(FACTS, simulated=True))


def test_without_held_out_prompts_nothing_is_claimed():
    card = model_card(replace(FACTS, accuracy=None, prompts=[]))
    assert "not measured: no prompts were held out" in card
    assert "Held-out prompts" not in card


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_others_stays_text(text):
    card = model_card(
        replace(FACTS, name=text, base=text, license=text, data=[text], prompts=[text], recipe=(text, "a"))
    )
    html = rendered(card)
    own = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "ul", "li", "pre"}
    assert set(re.findall(r"<(\w+)", html)) <= own
    assert html.count("<h1>") == 1 and html.count("<td>") == 12
    assert card.split("---\n")[1].count("\n") == 3  # the head is ours alone


def test_a_long_prompt_is_cut():
    assert "x" * 121 not in model_card(replace(FACTS, prompts=["x" * 500]))
