"""The commands with which a person chooses: label, pick."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sp_rerank.cli.console import Device, complete_run, load_scorer, progress_bar, quiet, say, tell
from sp_rerank.errors import OptionError, SpRerankError, UsageError

if TYPE_CHECKING:
    from sp_rerank.choosing.contest import Contest
    from sp_rerank.choosing.questions import Array
    from sp_rerank.choosing.store import AnswerStore
    from sp_rerank.label.session import Session
    from sp_rerank.types import Scorer

Labels = Annotated[Path | None, typer.Option(help="File of answers and marks.  [default: labels.sqlite beside PLACE]")]
Name = Annotated[str, typer.Option(help="Who chooses.")]


def label(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="PLACE...",
            help="Run folders, folders of images, or what rank --json printed.",
            autocompletion=complete_run,
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="What images that are of no run should show.")] = None,
    goal: Annotated[
        Literal["best", "learn"],
        typer.Option(help="best: find the best of each prompt. learn: ask what teaches most about a taste."),
    ] = "best",
    scorer: Annotated[
        str | None,
        typer.Option(help="Whose order the questions start from.  [default: the scorer of the run, or none]"),
    ] = None,
    name: Annotated[list[str], typer.Option(help="Who answers; given again, a link for each person.")] = ["me"],  # noqa: B006
    labels: Labels = None,
    confidence: Annotated[
        float, typer.Option(help="Say that it is enough above this probability of the first.", min=0, max=1)
    ] = 0.9,
    blind_stats: Annotated[
        bool, typer.Option("--blind-stats", help="Show agreement with the scorer at the end only.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write the answers into a .csv or .jsonl file, and open no page.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; another one lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    device: Device = "auto",
) -> None:
    """Choose between two pictures at a time, on a page of this machine: find your best, or teach it your taste."""
    from sp_rerank.choosing.store import AnswerStore

    file = labels or default_store(places[0])
    if export:
        _export(file, export)
        return
    _check_extra()
    if len(set(name)) < len(name) or not all(map(str.strip, name)):
        raise OptionError("name", ", ".join(name), "different names, none empty")
    contests = _gather(places, prompt)
    with quiet():
        contests, ranker = _scored(contests, scorer, device)
        features = _features(contests, ranker, device) if goal == "learn" else None
    stores = [AnswerStore(file) for _ in name]
    try:
        sessions = {
            person: _session(person, store, contests, goal, features, confidence, blind_stats)
            for person, store in zip(name, stores, strict=True)
        }
        ended_by = _serve(sessions, host, port, browser)
        for person, session in sessions.items():
            _summarize(person, session, goal, file, places)
        if ended_by == signal.SIGTERM:
            raise typer.Exit(143)
    finally:
        for store in stores:
            store.close()


def pick(
    run: Annotated[Path, typer.Argument(help="Run folder.", autocompletion=complete_run)],
    indices: Annotated[
        list[int] | None, typer.Argument(metavar="INDEX...", help="Candidates that you like, the best first.")
    ] = None,
    rejected: Annotated[
        list[str], typer.Option("--not", help="A candidate that is no good, or several: --not 12,40.")
    ] = [],  # noqa: B006  # typer reads it, and passes a new list
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for copies and picks.json.  [default: RUN/picks]")
    ] = None,
    labels: Labels = None,
    name: Name = "me",
) -> None:
    """Copy the candidates that you like out of a run, and remember them as your favorites."""
    from sp_rerank.choosing.pick import pick as pick_from
    from sp_rerank.choosing.store import AnswerStore
    from sp_rerank.run.folder import RunDir

    folder = RunDir.read(run)
    file = labels or default_store(run)
    refused = [_index(word) for words in rejected for word in words.split(",")]
    with AnswerStore(file) as store:
        done = pick_from(folder, indices or [], out or run / "picks", rejected=refused, store=store, annotator=name)
    for path in done.files:
        tell(str(path))
    counted = f"{len(done.favorites)} favorites, {len(done.rejected)} rejected"
    say(f"{counted}, kept in {file}; to choose between the others: sp-rerank label {shlex.quote(str(run))}")


def default_store(place: Path) -> Path:
    """Where answers about a place are kept: beside it."""
    from sp_rerank.choosing.store import FILE

    return place.absolute().parent / FILE


def _index(word: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        raise UsageError(f"--not is {word!r}; expected the index of a candidate, or several: 12,40") from error


def _export(file: Path, target: Path) -> None:
    from sp_rerank.choosing.export import write_rows
    from sp_rerank.choosing.store import AnswerStore

    with quiet(), AnswerStore(file, read_only=True) as store:
        count = write_rows(store, target)
    tell(str(target))
    say(f"{count} answers")


def _check_extra() -> None:
    from importlib.util import find_spec

    absent = [library for library in ("starlette", "uvicorn") if find_spec(library) is None]
    if absent:
        raise UsageError(f"the page needs {' and '.join(absent)}: pip install sp-rerank[label]")


def _gather(places: Sequence[Path], prompt: str | None) -> list[Contest]:
    from sp_rerank.choosing.contest import gather

    found = gather(places, prompt)
    for line in found.left_out:
        say(line)
    return found.contests


def _scored(contests: list[Contest], spec: str | None, device: str) -> tuple[list[Contest], Scorer | None]:
    """The contests with the scores that the questions start from, and the scorer if it was loaded for that."""
    from sp_rerank.choosing.contest import with_scorer, with_scores
    from sp_rerank.diffusion.loading import find_device
    from sp_rerank.rank import rank_files

    if spec is None:
        for contest in contests:
            if not contest.scorer:
                say("no scorer ranked these images: the questions start from nothing; a scorer can be named")
        return contests, None
    known = [with_scorer(contest, spec) for contest in contests]
    if None not in known:
        return [contest for contest in known if contest], None
    ranker = load_scorer(spec, None, find_device(device))
    found: list[Contest] = []
    with progress_bar(len(contests), "prompts") as progress:
        for done, contest in enumerate(contests, 1):
            ranked = rank_files([ranker], contest.prompt, [item.path for item in contest.items])
            scores = {file.file: file.scores[ranker.name] for file in ranked.files}
            by_hash = {item.sha256: scores[item.path] for item in contest.items if item.path in scores}
            found.append(with_scores(contest, ranker.name, by_hash))
            progress(done)
    return found, ranker


def _features(contests: Sequence[Contest], ranker: Scorer | None, device: str) -> list[Array] | None:
    """Embeddings by which questions are chosen; None, with a line that says why, where there are none."""
    import numpy as np

    from sp_rerank.diffusion.loading import find_device
    from sp_rerank.scorers.scoring import embedder
    from sp_rerank.storage.images import open_image

    names = {contest.scorer.partition("@")[0] for contest in contests}
    try:
        if ranker is None and (len(names) != 1 or "" in names):
            raise UsageError("no scorer ranked all of these images")
        embed = embedder(ranker or load_scorer(names.pop(), None, find_device(device)))
    except SpRerankError as error:
        say(f"questions are drawn at random: {error}")
        return None
    found: list[Array] = []
    with progress_bar(sum(len(contest.items) for contest in contests), "images") as progress:
        done = 0
        for contest in contests:
            rows: list[Array] = []
            for item in contest.items:  # one at a time: they may be large
                rows.append(np.asarray(embed([open_image(item.path)]), float))
                done += 1
                progress(done)
            found.append(np.concatenate(rows))
    return found


def _session(
    person: str,
    store: AnswerStore,
    contests: Sequence[Contest],
    goal: Literal["best", "learn"],
    features: Sequence[Array] | None,
    confidence: float,
    blind_stats: bool,
) -> Session:
    import numpy as np

    from sp_rerank.choosing.questions import Questions
    from sp_rerank.label.session import Rules, Session

    for contest in contests:
        store.remember(contest.prompt, {item.sha256: item.path for item in contest.items})
    questions = Questions(contests, goal, np.random.default_rng(), features)
    return Session(person, store, questions, Rules(confidence, blind_stats))


def _serve(sessions: dict[str, Session], host: str, port: int, browser: bool) -> int:
    """Serve until a signal ends it, and which one it was."""
    from sp_rerank.label.server import HOST, serve

    def ready(links: dict[str, str]) -> None:
        if host != HOST:
            say(f"warning: whoever reaches {host} and has a link can see these images and answer; nothing is encrypted")
        for person, link in links.items():
            tell(link if len(links) == 1 else f"{person}: {link}")
        say("every answer is kept at once; Ctrl-C ends")
        if browser:
            import webbrowser

            webbrowser.open(next(iter(links.values())))

    received = signal.SIGINT

    def end(number: int, _: object) -> None:
        nonlocal received
        received = signal.Signals(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        serve(sessions, ready=ready, host=host, port=port)
    except KeyboardInterrupt:  # the way to end it
        say("")
    finally:
        signal.signal(signal.SIGTERM, before)
    return received


def _summarize(person: str, session: Session, goal: str, file: Path, places: Sequence[Path]) -> None:
    """What came of it, and what can be done next."""
    from sp_rerank.choosing.consistency import sentences

    found = session.consistency()
    say(f"{person}: {found.answered} answers, {found.ties} of them ties, {found.skipped} skipped; kept in {file}")
    for sentence in sentences(found):
        say(sentence)
    if not found.answered:
        return
    if goal == "best":
        for place, contest in enumerate(session.contests):
            _tell_best(session, place, contest)
    labels, again = shlex.quote(str(file)), " ".join(shlex.quote(str(place)) for place in places)
    say(f"to go on: sp-rerank label {again}; to make a scorer of your answers: sp-rerank taste {labels} --out taste/me")


def _tell_best(session: Session, place: int, contest: Contest) -> None:
    best = session.best(place)
    say(f"{contest.prompt}: the first is the best with probability {session.best_probability(place):.2f}")
    for rank, item in enumerate(best, start=1):
        tell(f"{rank:3d}  {item.path}")
    if best[0].run and best[0].index is not None:
        say(f"to keep it: sp-rerank pick {shlex.quote(str(best[0].run))} {best[0].index} --out best")
