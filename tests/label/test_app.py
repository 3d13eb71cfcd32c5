"""The server's answers: who may ask, what never gets out, what a page of another site cannot do."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image
from starlette.testclient import TestClient

PORT = 8123
ORIGIN = f"http://127.0.0.1:{PORT}"
PATHS = ("/", "/state", "/best", "/label.js", "/label.css", "/page.css", "/icon.svg", "/image/x")


def post(client, path, body, **headers):
    sent = {"Origin": ORIGIN, "Content-Type": "application/json", **headers}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={name: value for name, value in sent.items() if value})


def shown(client):
    return client.get("/state").json()["questions"][0]


# The way in


def test_the_link_is_exchanged_for_a_cookie_that_scripts_and_other_sites_do_not_get(site):
    client = site.client()
    reply = client.get("/", params={"token": site.keys.tokens["me"]})
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert site.keys.tokens["me"] not in reply.text + cookie
    assert 'content="0;url=/"' in reply.text
    assert '<link rel="icon" href="/icon.svg">' in reply.text, "or a slow browser asks for /favicon.ico and gets a 404"
    assert client.get("/state").status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_without_a_cookie_nothing_is_told(site, path):
    reply = site.client().get(path)
    assert reply.status_code == 403
    assert reply.text.startswith("Open the link")


@pytest.mark.parametrize("token", ["", "x", "é", "me", "0" * 22])
def test_a_wrong_token_is_no_way_in(site, token):
    client = site.client()
    reply = client.get("/", params={"token": token})
    assert reply.status_code == 403 and "set-cookie" not in reply.headers
    assert client.get("/state").status_code == 403


def test_a_wrong_cookie_and_the_token_as_a_cookie_are_refused(site):
    for value in ("x", site.keys.tokens["me"]):
        client = TestClient(site.app, base_url=ORIGIN, cookies={f"sp-rerank-{PORT}": value})
        assert client.get("/state").status_code == 403


def test_tokens_have_128_bits(site):
    tokens = list(site.keys.tokens.values())
    assert len(set(tokens)) == 2 and all(len(token) >= 22 for token in tokens)


def test_each_link_is_its_own_person(site, store):
    for person in ("me", "you"):
        client = site.client(person)
        post(client, "/answer", {"id": shown(client)["id"], "said": "left", "milliseconds": 900})
    assert [answer.annotator for answer in store.answers()] == ["me", "you"]


# Other sites


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", "", "10.0.0.7:8123"]
)
def test_a_foreign_host_is_refused(site, client, host):
    assert client.get("/state", headers={"Host": host}).status_code == 421
    assert site.client().get("/", params={"token": site.keys.tokens["me"]}, headers={"Host": host}).status_code == 421


def test_localhost_is_this_machine(site):
    client = TestClient(site.app, base_url=f"http://localhost:{PORT}")
    client.get("/", params={"token": site.keys.tokens["me"]})
    assert client.get("/state").status_code == 200


def test_listening_everywhere_lets_addresses_in_but_no_names(site):
    from sp_rerank.label.app import build_app

    app = build_app(site.sessions, site.keys, "0.0.0.0", PORT)
    for host, code in (("192.168.1.5", 403), ("evil.example", 421), ("127.0.0.1", 403), ("[2001:db8::1]", 403)):
        assert TestClient(app, base_url=ORIGIN).get("/state", headers={"Host": f"{host}:{PORT}"}).status_code == code


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": f"https://127.0.0.1:{PORT}"},
        {"Origin": f"http://localhost:{PORT}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": ""},
    ],
)
@pytest.mark.parametrize("path", ["/answer", "/undo"])
def test_a_post_of_another_site_changes_nothing(client, store, path, headers):
    post(client, "/answer", {"id": shown(client)["id"], "said": "left", "milliseconds": 900})
    reply = post(client, path, {"id": shown(client)["id"], "said": "left", "milliseconds": 900}, **headers)
    assert reply.status_code == 403
    assert len(store.answers()) == 1


@pytest.mark.parametrize("path", ["/answer", "/undo"])
def test_a_get_changes_nothing(client, path):
    assert client.get(path).status_code == 405


def test_headers_of_every_reply(site, client):
    for reply in (client.get("/"), client.get("/state"), site.client().get("/"), client.get("/none")):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in reply.headers


def test_the_page_holds_no_inline_script_or_style(client):
    page = client.get("/").text
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|style=", page)
    assert "http" not in page


# What is asked


@pytest.mark.parametrize(
    "name", ["../labels.sqlite", "..%2f..%2flabels.sqlite", "%00", "x" * 3000, "00000.png", ".", "images%2f00000.png"]
)
def test_a_trick_with_the_name_of_an_image_finds_nothing(client, name):
    reply = client.get(f"/image/{name}")
    assert reply.status_code in (404, 405)
    assert b"PNG" not in reply.content and b"SQLite" not in reply.content


@pytest.mark.parametrize("path", ["/../labels.sqlite", "/static/label.js", "/label.html", "//etc/passwd", "/%2e%2e/x"])
def test_no_other_path_is_there(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b"\xff", b"[" * 2000, b'{"id": 1, "said": "left", "milliseconds": 1}',
        b'{"id": "x", "said": "left", "milliseconds": -1}', b'{"id": "x", "said": "left", "milliseconds": 1e3}',
        b'{"id": "x", "said": "left", "milliseconds": true}',
        b'{"id": "x", "said": "left", "milliseconds": 99999999999}',
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_refused(client, store, body):
    reply = post(client, "/answer", body)
    assert reply.status_code == 400
    assert store.answers() == []


def test_a_body_that_is_too_long_is_refused(client, store):
    good = {"id": shown(client)["id"], "said": "left", "milliseconds": 1}
    assert post(client, "/answer", {**good, "more": "x" * 5000}).status_code == 413

    def pieces():  # of a length that no header tells
        yield json.dumps(good)[:-1].encode()
        yield b" " * 5000 + b"}"

    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    assert client.post("/answer", content=pieces(), headers=headers).status_code == 400
    assert store.answers() == []


def test_an_answer_that_is_sent_twice_tells_so_and_is_kept_once(client, store):
    body = {"id": shown(client)["id"], "said": "left", "milliseconds": 900}
    first, second = post(client, "/answer", body), post(client, "/answer", body)
    assert (first.status_code, second.status_code) == (200, 409)
    assert second.json()["questions"] == first.json()["questions"]
    assert len(store.answers()) == 1


def test_undo_asks_again(client, store):
    question = shown(client)
    post(client, "/answer", {"id": question["id"], "said": "left", "milliseconds": 900})
    again = post(client, "/undo", {}).json()["questions"][0]
    assert (again["left"], again["right"]) == (question["left"], question["right"])
    assert store.answers() == []


# Blind


def test_no_reply_tells_a_seed_a_score_a_rank_or_a_file(client, place):
    replies = [client.get(path).content for path in PATHS[:3]]
    for _ in range(15):
        question = shown(client)
        replies += [client.get(f"/image/{question[side]}").content for side in ("left", "right")]
        replies.append(post(client, "/answer", {"id": question["id"], "said": "left", "milliseconds": 9}).content)
    replies += [json.dumps(dict(client.get("/state").headers)).encode(), client.get("/best").content]
    everything = b"\n".join(replies)
    secrets = [b"secret-scorer", str(place.path).encode(), place.path.name.encode() + b"/", b"images/", b".sqlite"]
    secrets += [f"{index:05d}.png".encode() for index in range(12)]
    secrets += [str(7_770_000 + index).encode() for index in range(12)]
    secrets += [row.sha256.encode() for row in place.rows.values()]
    secrets += [
        str(score).encode() for row in place.rows.values() for score in row.scores.values() if score not in (0, 1)
    ]
    assert [secret for secret in secrets if secret in everything] == []


def test_a_picture_has_the_pixels_and_nothing_of_what_was_written_in_its_file(site, begin, tmp_path, store):
    import numpy as np

    from sp_rerank.choosing.contest import gather
    from sp_rerank.choosing.questions import Questions
    from sp_rerank.label.session import Session
    from sp_rerank.storage.images import encode

    rng = np.random.default_rng(0)
    folder = tmp_path / "replies"
    folder.mkdir()
    pixels = [rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in range(2)]
    for i, array in enumerate(pixels):
        png = encode(Image.fromarray(array), parameters="Seed: 4711", record={"seed": 4711, "score": 0.123})
        (folder / f"{i}.png").write_bytes(png)
    questions = Questions(gather([folder], "two cats").contests, "best", np.random.default_rng(0))
    session = Session("me", store, questions)
    question = session.state()["questions"][0]
    for side in ("left", "right"):
        png = session.png(question[side])
        assert png is not None and b"4711" not in png and b"tEXt" not in png
        with Image.open(io.BytesIO(png)) as image:
            assert any(np.array_equal(np.asarray(image), array) for array in pixels)


def test_names_of_images_differ_from_start_to_start(session, begin):
    item = session.contests[0].items[0]
    assert session.pictures.name(item) == session.pictures.name(item) != begin().pictures.name(item)


def test_a_full_disk_is_told_without_a_path(client, store, monkeypatch):
    from sp_rerank.errors import StorageError

    def full(*_):
        raise StorageError(f"{store.path}: no space") from OSError(28, "No space left on device")

    body = {"id": shown(client)["id"], "said": "left", "milliseconds": 900}
    monkeypatch.setattr(type(store), "add", full)
    reply = post(client, "/answer", body)
    assert (reply.status_code, reply.text) == (507, "Not kept: No space left on device")
