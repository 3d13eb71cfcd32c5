"""The label page in a real browser: two hundred answers by keys, undo, reload, a killed server, zoom, a phone.

Every page is watched: an error, a message on the console or a request elsewhere fails its test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from support.painted_runs import make_run

from sp_rerank.choosing.store import AnswerStore

pytest.importorskip("uvicorn", reason="the extra label is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.timeout(900),
]

NEXT = """key => new Promise(resolve => {
    const began = performance.now(), before = document.body.dataset.shown;
    new MutationObserver((_, observer) => {
        if (document.body.dataset.shown === before) return;
        observer.disconnect();
        resolve(performance.now() - began);
    }).observe(document.body, { attributes: true });
    dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
})"""
"""Press a key, and how many milliseconds until the next pair is painted."""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "lemon", {"a@1": [i / 30 for i in range(30)]}, size=(96, 64))


@pytest.fixture
def serve(run):
    servers = []

    def serve():
        words = [sys.executable, "-m", "sp_rerank", "label", str(run.path), "--no-browser"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        servers.append(server)
        assert server.stdout
        return server, server.stdout.readline().strip()

    yield serve
    for server in servers:
        server.kill()
        server.communicate()


@pytest.fixture
def tab(browser):
    """Open a link in a window of its own; what must not happen is collected."""
    trouble, contexts = [], []

    def open_page(link, begin=True, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        origin = link.partition("?")[0]
        page.on("console", lambda message: trouble.append(f"{message.text} {message.location['url']}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: request.url.startswith(origin) or trouble.append(request.url))
        page.goto(link)
        page.wait_for_selector("body[data-shown]")
        if begin and page.is_visible("#guide"):
            page.keyboard.press("Enter")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in trouble if "ERR_CONNECTION_REFUSED" not in text] == []


def answers_of(run):
    with AnswerStore(run.path.parent / "labels.sqlite", read_only=True) as store:
        return store.answers()


def kept(page, count):
    sync_api.expect(page.locator("#answered")).to_have_text(str(count), timeout=60_000)


def test_two_hundred_answers_survive_undo_reload_and_a_killed_server(serve, tab, run):
    server, link = serve()
    page = tab(link)
    keys = ["1", "ArrowRight", "=", "x", "2"]
    times = [page.evaluate(NEXT, keys[i % len(keys)]) for i in range(80)]
    kept(page, 80)
    for left in (79, 78, 77):
        page.keyboard.press("u")
        kept(page, left)
    page.reload()
    page.wait_for_selector("body[data-shown]")
    kept(page, 77)
    assert not page.is_visible("#guide"), "the guide is for the first time"
    times += [page.evaluate(NEXT, keys[i % len(keys)]) for i in range(63)]
    kept(page, 140)
    server.kill()
    server.wait()
    page.keyboard.press("1")
    page.wait_for_selector("#trouble:has-text('No connection')")
    assert len(answers_of(run)) == 140
    page.close()
    _, link = serve()
    page = tab(link)
    kept(page, 140)
    for i in range(60):
        page.evaluate(NEXT, keys[i % len(keys)])
    kept(page, 200)
    answers = answers_of(run)
    assert len(answers) == len({answer.id for answer in answers}) == 200
    print(f"key to next pair painted: median {sorted(times)[len(times) // 2]:.0f} ms, most {max(times):.0f} ms")


def test_the_answer_is_the_side_that_was_chosen_by_key_button_and_picture(serve, tab, run):
    page = tab(serve()[1])
    for choose in (
        lambda: page.keyboard.press("ArrowLeft"),
        lambda: page.click("button[data-said=left]"),
        lambda: page.click("#left", position={"x": 50, "y": 50}),
    ):
        before = page.get_attribute("body", "data-shown")
        choose()
        page.wait_for_selector(f"body:not([data-shown='{before}'])")
    kept(page, 3)
    assert [answer.label_of_left for answer in answers_of(run)] == [1.0] * 3


def test_both_are_looked_at_closely_at_the_same_spot(serve, tab):
    page = tab(serve()[1])
    page.mouse.move(200, 300)
    page.keyboard.down(" ")
    page.mouse.move(260, 330)
    styles = page.evaluate("['left', 'right'].map(side => document.querySelector(`#${side} img`).style.cssText)")
    assert styles[0] == styles[1] and "scale" in styles[0]
    page.keyboard.up(" ")
    assert page.evaluate("document.querySelector('#left img').style.transform") == ""
    assert page.inner_text("#answered") == "0", "looking is no answer"


def test_keys_do_nothing_while_a_dialog_is_open(serve, tab):
    page = tab(serve()[1], begin=False)
    assert page.is_visible("#guide")
    page.keyboard.press("1")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.keyboard.press("x")
    assert page.is_visible("#guide")
    assert page.inner_text("#answered") == "0"


def test_a_phone_is_stacked_and_swiped(serve, tab, run):
    page = tab(serve()[1], viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [390, 844]
    boxes = page.evaluate("['left', 'right'].map(side => document.getElementById(side).getBoundingClientRect().top)")
    assert boxes[0] < boxes[1]
    assert page.inner_text("button[data-said=right]") == "Bottom"
    touch = page.context.new_cdp_session(page)
    for kind, y in (("touchStart", 500), ("touchMove", 560), ("touchMove", 620), ("touchEnd", None)):
        points = [] if y is None else [{"x": 190, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    kept(page, 1)
    assert [answer.label_of_left for answer in answers_of(run)] == [0.0], "downwards is the lower one"


def test_the_best_so_far_are_shown(serve, tab):
    page = tab(serve()[1])
    page.evaluate(NEXT, "1")
    page.wait_for_selector("#best:visible")
    page.keyboard.press("b")
    page.wait_for_selector("#order[open] img >> nth=3")
    assert page.locator("#order img").count() == 4


def test_dark_is_dark(serve, tab):
    page = tab(serve()[1], color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 23)"
