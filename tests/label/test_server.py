"""The command as a process: its link, its end, what a kill in the middle leaves, two servers on one store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from http.cookiejar import CookieJar

import pytest
from support.answers import answer_of
from support.painted_runs import make_run

from sp_rerank import cli
from sp_rerank.choosing.store import AnswerStore

pytest.importorskip("uvicorn", reason="the extra label is not installed")
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class Server:
    """`sp-rerank label` in a process of its own, and one person at its page."""

    def __init__(self, *words: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sp_rerank", "label", *words, "--no-browser"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert self.process.stdout
        self.link = self.process.stdout.readline().strip()
        self.origin = self.link.partition("/?")[0]
        self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.get("/" + self.link.removeprefix(self.origin + "/"))

    def get(self, path: str) -> bytes:
        with self.browser.open(self.origin + path, timeout=60) as reply:
            return reply.read()

    def questions(self) -> list[dict[str, str]]:
        return json.loads(self.get("/state"))["questions"]

    def say(self, question: dict[str, str], said: str = "left") -> int:
        body = json.dumps({"id": question["id"], "said": said, "milliseconds": 900}).encode()
        headers = {"Origin": self.origin, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.origin}/answer", body, headers)
        try:
            with self.browser.open(request, timeout=60) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "lemon", {"a@1": [i / 10 for i in range(10)]})


@pytest.fixture
def begin(run):
    servers: list[Server] = []

    def begin(*words: str) -> Server:
        servers.append(Server(str(run.path), *words))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def answers_of(run) -> list[str]:
    with AnswerStore(run.path.parent / "labels.sqlite", read_only=True) as store:
        return [answer.id for answer in store.answers()]


def test_from_the_link_to_the_pick(begin, run):
    server = begin()
    assert server.link.startswith("http://127.0.0.1:") and len(server.link.partition("token=")[2]) >= 22
    first = server.questions()[0]
    assert server.get(f"/image/{first['left']}").startswith(b"\x89PNG")
    assert server.say(first) == 200
    assert server.say(server.questions()[0], "bad") == 200
    code, out, err = server.end()
    assert code == 0
    assert "me: 2 answers, 1 of them ties, 0 skipped" in err
    assert str(run.image(9)) in out or "images/0000" in out
    assert "sp-rerank pick" in err and "sp-rerank taste" in err
    assert "Traceback" not in err


def test_killed_between_answers_nothing_is_lost_and_nothing_doubled(begin, run):
    given: list[str] = []
    for _ in range(3):
        server = begin()
        for _ in range(4):
            question = server.questions()[0]
            assert server.say(question, "right") == 200
            given.append(question["id"])
        waiting = server.questions()[0]
        server.process.kill()
        assert waiting["id"] not in answers_of(run)
    assert answers_of(run) == given
    server = begin()
    assert json.loads(server.get("/state"))["answered"] == 12
    assert server.say({"id": given[0]}) == 409, "an answer of an earlier start"
    assert answers_of(run) == given


def test_two_servers_on_one_store(begin, run):
    one, two = begin("--name", "ada"), begin("--name", "ben")
    for server in (one, two, one, two):
        assert server.say(server.questions()[0]) == 200
    with AnswerStore(run.path.parent / "labels.sqlite", read_only=True) as store:
        assert [answer.annotator for answer in store.answers()] == ["ada", "ben", "ada", "ben"]


def test_sigterm_ends_it_too(begin, run):
    server = begin()
    assert server.say(server.questions()[0]) == 200
    code, _, err = server.end(signal.SIGTERM)
    assert code == 143
    assert "Traceback" not in err
    assert len(answers_of(run)) == 1


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1"])
def test_a_foreign_host_is_refused_by_the_real_server(begin, host):
    server = begin()
    request = urllib.request.Request(server.link, headers={"Host": host})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    error.value.close()
    assert error.value.code == 421


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run a command in this process: its exit code, output and messages."""

    def run_command(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["sp-rerank", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run_command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none"], "found none of this name"),
        (["runs/lemon", "--name", "a", "--name", "a"], "--name"),
        (["runs/lemon", "--host", "192.0.2.77"], "cannot be listened on"),
        (["runs/lemon", "--export", "x.csv"], "expected a file of answers, found none"),
        (["runs/lemon", "--labels", "runs/lemon/run.json"], "no sound file of answers"),
        (["runs/lemon/images"], "no prompt was given"),
    ],
)
def test_what_cannot_begin_is_one_line(run, command, words, message):
    if words == ["none"]:
        words = ["none", "--prompt", "a lemon"]
    code, _, err = command("label", *words, "--no-browser")
    assert code in (2, 74)
    assert message in err
    assert err.count("\n") == 1


def test_pick_by_its_command(run, command):
    code, out, err = command("pick", "runs/lemon", 2, 5, "--not", "1,3", "--not", 4, "--out", "best")
    assert code == 0, err
    assert out.splitlines() == ["best/01_seed42.png", "best/02_seed45.png"]
    assert "2 favorites, 3 rejected" in err
    assert command("pick", "runs/lemon", 2, "--not", "x")[0] == 2
    assert command("pick", "runs/lemon")[0] == 2


def test_answers_are_exported_by_the_command(run, command, tmp_path):
    with AnswerStore(tmp_path / "runs" / "labels.sqlite") as store:
        digests = [run.rows[i].sha256 for i in (0, 1)]
        store.remember("a lemon on the beach", {digests[i]: run.image(i) for i in (0, 1)})
        store.add(answer_of(*digests))
    code, out, err = command("label", "runs/lemon", "--export", "answers.csv")
    assert (code, out) == (0, "answers.csv\n"), err
    assert (tmp_path / "answers.csv").read_text().startswith("prompt,first,second,label,annotator")
