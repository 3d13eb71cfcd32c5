"""The gallery in a real browser: what hands and keys do, what never leaves the folder, how soon it is there.

Every page is watched: an error, a message on the console, a dialog or a request outside the folder fails its test.
"""

from __future__ import annotations

import pytest
from support.browsing import BROWSER
from support.hostile_prompts import HOSTILE
from support.painted_runs import make_run

from sp_rerank.config import Stage
from sp_rerank.report import orderings
from sp_rerank.report.gallery import write_gallery
from sp_rerank.report.overview import write_overview
from sp_rerank.run.records import StageScore
from sp_rerank.scorers.calibration import ScorerCalibration

pytestmark = BROWSER
N = 12
SCORES = {
    "sp@1f": [(index * 5 % N) / N for index in range(N)],
    "clip@2f": [(index * 7 % N) - 3.0 for index in range(N)],
    "hps@3f": [0.2 + index / 1000 if index != 4 else None for index in range(N)],
}
ORDERS = [sorted(range(N), key=lambda index, of=of: -99 if of[index] is None else of[index]) for of in SCORES.values()]
ORDERS = [order[::-1] for order in ORDERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("it's a folder") / "run 1"
    write_gallery(make_run(folder, SCORES, negative_prompt="text"))
    return folder


@pytest.fixture
def page(opened, folder):
    return opened(folder / "index.html")


def shown(page, where="#sheet"):
    """The indices of the candidates that can be seen, in order."""
    items = f"[...document.querySelectorAll({where!r} + ' li')].filter(item => item.offsetParent)"
    return page.evaluate(f"{items}.map(item => Number(item.dataset.index))")


FOCUSED = "Number(document.activeElement.closest('li')?.dataset.index ?? -1)"


def focused(page):
    return page.evaluate(FOCUSED)


# Order, filter, columns


def test_another_scorer_orders_anew(page):
    assert shown(page) == ORDERS[0]
    page.check("input[name=scorer][value='1']", force=True)
    assert shown(page) == ORDERS[1]
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    assert shown(page) == ORDERS[2]
    for index, words in ((11, ["1", "0.2110", "#51"]), (4, ["no", "score", "#44"])):
        page.locator(f"#c{index}").scroll_into_view_if_needed()  # what is out of view may not be laid out yet
        page.wait_for_function(f"document.querySelector('#c{index} .caption').innerText !== ''")
        assert page.inner_text(f"#c{index} .caption").split() == words
    assert page.get_attribute("#c11 img", "alt") == "Rank 1, seed 51"


def test_the_slider_hides_what_scores_less(page):
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "least"
    page.evaluate("least.value = 500; least.dispatchEvent(new Event('input', {bubbles: true}))")
    least = max(SCORES["sp@1f"]) / 2
    assert shown(page) == [index for index in ORDERS[0] if SCORES["sp@1f"][index] >= least]
    assert page.inner_text("#passed") == "0.458: 6 of 12"
    page.keyboard.press("End")
    assert shown(page) == ORDERS[0][:1]
    page.keyboard.press("Escape")
    assert shown(page) == ORDERS[0]


def test_columns_link_one_image_through_all_orders(page):
    page.keyboard.press("v")
    assert not page.is_visible("#sheet")
    for place, order in enumerate(ORDERS):
        assert shown(page, f".column:nth-of-type({place + 1})") == order
    page.hover(".column:nth-of-type(1) li:nth-child(2) a")
    index = ORDERS[0][1]
    marked = page.locator(".same")
    assert [marked.nth(place).get_attribute("data-index") for place in range(marked.count())] == [str(index)] * 3
    notes = page.locator(".column small").all_inner_texts()
    endings = {1: "1st", 2: "2nd", 3: "3rd"}
    ranks = [order.index(index) + 1 for order in ORDERS]
    assert notes == [f"seed {40 + index}: {endings.get(rank, f'{rank}th')}" for rank in ranks]
    assert len(page.get_attribute(".columns polyline", "points").split()) == 4
    page.focus(".column:nth-of-type(1) li:nth-child(2) a")
    page.keyboard.press("ArrowRight")
    assert focused(page) == index
    assert page.evaluate("document.activeElement.closest('.column').querySelector('h3').firstChild.data") == "clip"
    page.keyboard.press("v")
    assert shown(page) == ORDERS[0]


# Zoom


def test_the_arrows_enter_and_escape(page):
    page.keyboard.press("ArrowDown")
    assert focused(page) == ORDERS[0][0]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert focused(page) == ORDERS[0][2]
    wide = page.evaluate("getComputedStyle(document.getElementById('sheet')).gridTemplateColumns.split(' ').length")
    page.keyboard.press("ArrowDown")
    assert focused(page) == ORDERS[0][min(2 + wide, N - 1) if 2 + wide < N else 2]
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    assert page.inner_text("#place") == "1st of 12 by sp"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#place") == "2nd of 12 by sp"
    page.keyboard.press("Escape")
    assert not page.is_visible("#zoom")
    page.wait_for_function(f"{FOCUSED} === {ORDERS[0][1]}")  # a dialog says later that it has closed
    page.keyboard.press("End")
    assert focused(page) == ORDERS[0][-1]


def test_the_zoomed_view_tells_everything(page, folder):
    page.click("#c7 a")
    cells = [row.split("\t") for row in page.inner_text("#scores tbody").split("\n")]
    ranks = [order.index(7) + 1 for order in ORDERS]
    assert cells == [
        ["sp", f"{SCORES['sp@1f'][7]:.3f}", f"{ranks[0]} of 12"],
        ["clip", f"{SCORES['clip@2f'][7]:.1f}", f"{ranks[1]} of 12"],
        ["hps", "0.2070", f"{ranks[2]} of 11"],
    ]
    assert page.inner_text("#ties") == "No calibration of sp, clip, hps: ties unknown."
    assert page.inner_text("#prompt") == "a lemon on the beach"
    facts = "prompt a lemon on the beach without text seed 47 candidate 7 of 0–11 evaluations 17 file images/00007.png"
    assert " ".join(page.inner_text(".side dl").split()) == facts
    assert page.get_attribute("#picture img", "src") == "images/00007.png"
    assert page.evaluate("document.querySelector('#picture img').decode().then(() => true)")
    quoted = str(folder).replace("'", "'\\''")
    assert page.inner_text("#replay") == f"sp-rerank replay '{quoted}' 7"


@pytest.mark.parametrize(("last", "others"), [(0.1, "all others"), (None, "all others that it scored")])
def test_a_pick_is_told_apart_from_all_others_only_where_all_are_scored(opened, tmp_path, monkeypatch, last, others):
    known = ScorerCalibration("a@1f", 0.1, "test", 10, 0.1, True)
    monkeypatch.setattr(orderings, "calibration_of", lambda name: known)
    page = opened(write_gallery(make_run(tmp_path / "run", {"a@1f": [0.9, 0.5, last]})))
    page.click("#c0 a")
    assert page.inner_text("#ties") == f"a tells it apart from {others}."


def test_the_command_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#c7 a")
    page.click("#copy")
    page.wait_for_function("document.getElementById('copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#replay")


def test_a_steered_candidate_is_zoomed_without_a_command(opened, tmp_path):
    page = opened(write_gallery(make_run(tmp_path / "run", {"a": [0.1, 0.2]}, search={"strategy": "steering"})))
    page.click("#c0 a")
    page.keyboard.press("c")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#place") == "1st of 2"
    assert page.inner_text(".replay") == "It descends from others of its batch: no seed alone makes it again."


def test_the_help_opens_and_closes(page):
    page.keyboard.press("?")
    assert "order by another scorer" in page.inner_text("#keys")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys")


def test_a_dot_of_a_scatter_opens_its_candidate(page):
    page.locator(".scatter circle.pick").first.click()
    assert page.inner_text("#seed") == str(40 + ORDERS[0][0])


def test_dropped_candidates_show_their_stages(opened, tmp_path):
    run = make_run(
        tmp_path / "run",
        {"a": [0.1, None]},
        status=lambda index: "ok" if index == 0 else "dropped",
        stages=lambda index: [StageScore(Stage("draft", 4), 0.25, 5)],
    )
    run.image(0).unlink()
    page = opened(write_gallery(run))
    page.click("#c1 a")
    assert page.inner_text("#place") == "Not ranked"
    assert page.inner_text("#why") == "dropped by the search"
    assert page.inner_text("#stages tbody").split("\t") == ["draft, 4 steps", "0.250", "5"]
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#picture .absent")
    assert page.inner_text("#why") == "the file is missing"


def test_the_best_open_too_and_the_focus_comes_back(page):
    page.locator(".picks a").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#seed") == str(40 + ORDERS[1][0])
    page.keyboard.press("Enter")
    assert not page.is_visible("#zoom")
    assert page.evaluate("document.activeElement.closest('.pick') !== null")


def test_an_address_opens_a_candidate(page):
    page.goto(page.url + "#c3")
    page.reload()
    assert page.inner_text("#seed") == "43"


def test_a_run_without_scores_can_be_looked_at(opened, tmp_path):
    page = opened(write_gallery(make_run(tmp_path / "run", {}, n=3)))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.inner_text("#place") == "Not ranked"
    assert page.inner_text("#index") == "1 of 0–2"


# Every kind of window


def test_a_phone_scrolls_in_one_direction_only(opened, folder):
    page = opened(folder / "index.html", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for view in ("sheet", "columns"):
        page.check(f"input[value={view}]", force=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.tap(".column:nth-of-type(2) li a")
    assert page.evaluate("document.getElementById('zoom').getBoundingClientRect().width") == 390


def test_dark_is_dark(opened, folder):
    page = opened(folder / "index.html", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 20, 23)"


def test_without_scripts_the_sheet_is_there_and_images_open(opened, folder):
    page = opened(folder / "index.html", java_script_enabled=False)
    items = page.locator("#sheet li")
    assert [items.nth(place).get_attribute("data-index") for place in range(N)] == [str(index) for index in ORDERS[0]]
    assert not page.is_visible("#tools")
    page.click("#c7 a")
    assert page.url == (folder / "images" / "00007.png").as_uri()


# Safety


def test_hostile_prompts_do_nothing(opened, tmp_path):
    for number, prompt in enumerate(HOSTILE):
        make_run(tmp_path / f"{number:02d}", {f"a{prompt}": [0.1, 0.2], "b": [0.2, 0.1]}, prompt=prompt)
    page = opened(write_overview(tmp_path)[0])
    assert page.locator(".row h2").count() == len(HOSTILE)
    joined = "".join(HOSTILE)
    run = make_run(tmp_path / "all", {f"a{joined}": [0.1, 0.2], "b": [0.2, 0.1]}, prompt=joined, negative_prompt=joined)
    page = opened(write_gallery(run))
    assert page.evaluate("document.querySelector('h1').textContent") == joined
    page.keyboard.press("v")
    page.click(".column a >> nth=0")
    assert page.evaluate("document.getElementById('prompt').textContent") == joined


def test_what_is_smuggled_in_does_not_run(browser, folder):
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<img src="none.png" onerror="window.ran = 2">');
    }""")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran ?? 0") == 0
    page.close()


# Many candidates


def test_a_thousand_candidates_are_ordered_by_another_scorer(opened, tmp_path):
    scores = {
        name: [index * step % 1000 / 1000 for index in range(1000)] for name, step in (("a", 7), ("b", 3), ("c", 9))
    }
    page = opened(write_gallery(make_run(tmp_path / "run", scores)))
    page.keyboard.press("2")
    order = sorted(range(1000), key=lambda index: -scores["b"][index])
    assert page.evaluate("[...document.querySelectorAll('#sheet li')].map(item => Number(item.dataset.index))") == order
