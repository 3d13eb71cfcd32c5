"""Choosing on the page of a run in a real browser: marks, their commands, two pictures looked at closely together."""

from __future__ import annotations

import re

import pytest
from PIL import Image
from support.browsing import BROWSER
from support.painted_runs import make_run

from sp_rerank.report.gallery import gallery, write_gallery
from sp_rerank.report.thumbnails import SIDE

pytestmark = BROWSER
SCORES = {"sp@1f": [0.1, 0.9, 0.5, 0.7]}
ORDER = [1, 3, 2, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_gallery(make_run(folder, SCORES, size=(640, 480)))
    return folder


@pytest.fixture
def page(opened, folder):
    page = opened(folder / "index.html")
    page.evaluate("localStorage.clear()")
    page.reload()
    return page


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def command(page):
    return page.inner_text("#tray [data-part=command]")


def transforms(page):
    """Scale and move of each picture that is looked at, in pixels."""
    found = page.evaluate("[...document.querySelectorAll('#picture img')].map(i => getComputedStyle(i).transform)")
    return [[round(float(part), 2) for part in re.findall(r"-?[\d.]+", text)] for text in found]


def wait_for_text(page, where, words):
    """Playwright's own way of waiting evaluates text, which the page's policy forbids."""
    from playwright.sync_api import expect

    expect(page.locator(where)).to_have_text(words)


# Marks


def test_marks_become_a_command_and_outlive_the_page(page, folder):
    assert not page.is_visible("#tray")
    press(page, "ArrowDown", "ArrowRight", "f", "Home", "f", "End", "x")
    assert page.inner_text("#tray .count") == "2 favorites, 1 rejected"
    assert command(page) == f"sp-rerank pick {folder} {ORDER[1]} {ORDER[0]} --not {ORDER[3]} --out best/"
    page.reload()
    wait_for_text(page, "#tray .count", "2 favorites, 1 rejected")
    assert command(page) == f"sp-rerank pick {folder} {ORDER[1]} {ORDER[0]} --not {ORDER[3]} --out best/"
    marked = {kind: page.locator(f"#sheet li.{kind}").count() for kind in ("favorite", "reject")}
    assert marked == {"favorite": 2, "reject": 1}
    press(page, "ArrowDown", "x")
    assert command(page) == f"sp-rerank pick {folder} {ORDER[1]} --not {ORDER[3]},{ORDER[0]} --out best/"
    press(page, "x")  # again takes it back
    assert command(page) == f"sp-rerank pick {folder} {ORDER[1]} --not {ORDER[3]} --out best/"
    page.click("#tray [data-part=clear]")
    assert not page.is_visible("#tray")
    page.reload()
    assert not page.is_visible("#tray")


def test_two_tabs_of_a_run_hold_the_same_marks(page, folder):
    other = page.context.new_page()
    other.goto(page.url)
    press(page, "ArrowDown", "f")
    wait_for_text(other, "#tray .count", "1 favorite")
    assert other.locator("#sheet li.favorite").get_attribute("data-index") == str(ORDER[0])
    press(other, "ArrowDown", "ArrowRight", "x")  # does not take back what the first one holds
    wait_for_text(page, "#tray .count", "1 favorite, 1 rejected")
    assert command(page) == f"sp-rerank pick {folder} {ORDER[0]} --not {ORDER[1]} --out best/"
    other.click("#tray [data-part=clear]")
    wait_for_text(page, "#tray .count", "")
    assert not page.is_visible("#tray")
    assert page.locator("#sheet li.favorite, #sheet li.reject").count() == 0
    other.close()


def test_only_rejects_copy_nothing_out(page, folder):
    press(page, "ArrowDown", "x")
    assert command(page) == f"sp-rerank pick {folder} --not {ORDER[0]}"
    assert not page.is_visible("#tray [data-part=larger]")


def test_the_commands_are_copied(page, folder):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    press(page, "ArrowDown", "f", "ArrowRight", "f")
    for part, words in (("copy", command(page)), ("larger", f"sp-rerank replay {folder} 1 3 --scale 2")):
        page.click(f"#tray [data-part={part}]")
        wait_for_text(page, f"#tray [data-part={part}]", "Copied")
        assert page.evaluate("navigator.clipboard.readText()") == words


def test_marks_are_of_images_not_of_places(page, opened, tmp_path):
    """Another run of the same settings whose images differ has no marks; one that grew keeps its own."""
    press(page, "ArrowDown", "f")
    other = make_run(tmp_path / "other", SCORES, size=(640, 320))
    assert not opened(write_gallery(other)).is_visible("#tray")
    grown = make_run(tmp_path / "grown", {"sp@1f": [*SCORES["sp@1f"], 0.2]}, size=(640, 480))
    assert opened(write_gallery(grown)).locator("#sheet li.favorite").get_attribute("data-index") == str(ORDER[0])


def test_an_open_candidate_is_marked_by_key_and_button(page):
    press(page, "ArrowDown", "Enter", "f", "ArrowRight")
    page.click("#zoom [data-mark=reject]")
    assert page.get_attribute("#zoom [data-mark=reject]", "aria-pressed") == "true"
    press(page, "ArrowLeft")
    assert page.get_attribute("#zoom [data-mark=favorite]", "aria-pressed") == "true"
    press(page, "Escape")
    assert page.inner_text("#tray .count") == "1 favorite, 1 rejected"
    page.click("#tray li button")
    assert page.inner_text("#seed") == str(40 + ORDER[0])


def test_a_browser_that_keeps_nothing_marks_all_the_same(browser, folder):
    page = browser.new_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('no') } })")
    page.goto((folder / "index.html").as_uri())
    press(page, "ArrowDown", "f")
    assert page.inner_text("#tray .count") == "1 favorite"
    page.close()


# Looking closely


def test_a_pinned_one_stays_beside_the_others_and_both_are_zoomed_together(page):
    press(page, "ArrowDown", "Enter", "p")
    assert page.inner_text(".pane figcaption") == "pinned: go on to see others beside it"
    press(page, "ArrowRight")
    assert page.locator(".pane figcaption").all_inner_texts() == [
        f"pinned: seed {40 + ORDER[0]}",
        f"seed {40 + ORDER[1]}",
    ]
    sources = [image.get_attribute("src") for image in page.locator("#picture img").all()]
    assert sources == [f"images/{index:05d}.png" for index in ORDER[:2]]
    assert transforms(page)[0] == [1, 0, 0, 1, 0, 0]
    box = page.locator(".pane").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.5)
    page.mouse.wheel(0, -400)
    page.wait_for_selector("#picture.near")
    first, second = transforms(page)
    assert first == second
    assert first[0] == pytest.approx(2.72, abs=0.02)
    assert first[4] == pytest.approx(-0.3 * 1.72 * box["width"], abs=2)  # what was under the pointer stays there
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8 - 30, box["y"] + box["height"] * 0.5 - 20)
    page.mouse.up()
    moved = transforms(page)
    assert moved[0] == moved[1]
    assert (moved[0][4] - first[4], moved[0][5] - first[5]) == (pytest.approx(-30, abs=1), pytest.approx(-20, abs=1))
    press(page, "ArrowRight")
    assert transforms(page) == moved  # the same place of the next one
    press(page, "0")
    assert transforms(page)[0] == [1, 0, 0, 1, 0, 0]
    press(page, "p")  # now this one is pinned
    assert page.locator(".pane").count() == 1
    press(page, "p", "Escape")
    assert not page.is_visible("#zoom")


def test_held_z_shows_every_pixel_under_the_pointer(page):
    press(page, "ArrowDown", "Enter")
    box = page.locator(".pane").bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    page.keyboard.down("z")
    scale, *_, x, y = transforms(page)[0]
    assert scale == 2  # larger than the picture's own size already
    assert (x, y) == (pytest.approx(box["width"] / 2, abs=2), pytest.approx(box["height"] / 2, abs=2))
    page.keyboard.up("z")
    assert transforms(page)[0] == [1, 0, 0, 1, 0, 0]


def test_a_double_click_zooms_in_and_out(page):
    press(page, "ArrowDown", "Enter")
    page.dblclick(".pane", position={"x": 200, "y": 200})
    assert transforms(page)[0][0] == 2
    page.dblclick(".pane", position={"x": 200, "y": 200})
    assert transforms(page)[0][0] == 1


PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def test_a_phone_swipes_and_pinches(opened, folder):
    page = opened(folder / "index.html", **PHONE)
    hand = page.context.new_cdp_session(page)

    def fingers(kind, *places):
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    page.tap(f"#c{ORDER[0]} a")
    fingers("touchStart", (300, 200))
    for x in (250, 200, 150, 100):
        fingers("touchMove", (x, 203))
    fingers("touchEnd")
    wait_for_text(page, "#seed", str(40 + ORDER[1]))
    fingers("touchStart", (180, 200), (220, 200))
    for apart in (40, 60, 80):
        fingers("touchMove", (200 - apart, 200), (200 + apart, 200))
    fingers("touchEnd")
    assert transforms(page)[0][0] == pytest.approx(4, abs=0.1)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


# What is loaded, and what is given away


def test_the_sheet_loads_thumbnails_and_the_open_one_its_file(page, folder):
    sources = page.evaluate("[...document.querySelectorAll('#sheet img')].map(image => image.getAttribute('src'))")
    assert all(re.fullmatch(r"thumbs/0000\d-[0-9a-f]{8}\.webp", source) for source in sources)
    with Image.open(folder / sources[0]) as small:
        assert (max(small.size), small.format) == (SIDE, "WEBP")
    press(page, "ArrowDown", "Enter")
    assert page.get_attribute("#picture img", "src") == f"images/0000{ORDER[0]}.png"


def test_one_file_needs_no_folder(opened, folder, tmp_path):
    from sp_rerank.run.folder import RunDir

    file = tmp_path / "given away.html"
    file.write_bytes(gallery(RunDir.read(folder), embedded=True))
    page = opened(file)
    assert page.evaluate("[...document.images].every(image => image.src.startsWith('data:image/'))")
    assert page.evaluate("Promise.all([...document.images].map(image => image.decode())).then(() => true)")
    press(page, "ArrowDown", "f", "Enter")
    assert page.evaluate("document.querySelector('#picture img').decode().then(() => true)")
    assert page.inner_text("#file") == f"images/0000{ORDER[0]}.png"
    assert page.get_attribute("#file", "href") is None
    press(page, "Escape")
    assert command(page) == f"sp-rerank pick RUN {ORDER[0]} --out best/"


def test_the_slider_is_drawn_in_forced_colors(opened, folder):
    page = opened(folder / "index.html", forced_colors="active")
    assert page.evaluate("getComputedStyle(document.getElementById('least')).appearance") == "auto"
