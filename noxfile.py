"""What CI runs, by name: `nox` for all, `nox -s lint types` for some. `.ci/run` calls these sessions.

The sessions run in the environment that nox is started in, after `pip install -e ".[dev]"`: an environment of its own
for each would install torch five times. `floors` has one, for it installs other versions.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = False
nox.options.sessions = ["lint", "types", "build", "docs", "site", "tests"]


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, and the layers of imports."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo")


@nox.session
def spelling(session: nox.Session) -> None:
    """American spelling, in code and pages."""
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """The type checker on the source tree."""
    session.run("pyright")


@nox.session
def build(session: nox.Session) -> None:
    """The source archive and, made from it, the wheel, in dist/ (or the folder given); its contents are checked.

    The same commit gives the same bytes: times are those of SOURCE_DATE_EPOCH, or of the commit.
    """
    folder = Path(session.posargs[0] if session.posargs else "dist")
    shutil.rmtree(folder, ignore_errors=True)
    build_into(session, folder, Path())
    session.run("check-wheel-contents", *map(str, folder.glob("*.whl")))


@nox.session(default=False)
def reproducible(session: nox.Session) -> None:
    """Two builds of the last commit, in two places and at two times, are the same bytes."""
    made: list[dict[str, str]] = []
    places = [Path(session.create_tmp()) / name for name in ("first", "second-with-a-longer-path")]
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
        session.run("git", "clone", "--quiet", ".", str(place), external=True)
    for place in places:
        build_into(session, place / "dist", place)
        made.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (place / "dist").iterdir()})
    if made[0] != made[1]:
        session.error(f"two builds of one commit differ: {made[0]} and {made[1]}")
    for path in sorted((places[0] / "dist").iterdir()):
        session.log(f"{made[0][path.name]}  {path.name}  {path.stat().st_size:,} bytes")


def build_into(session: nox.Session, folder: Path, source: Path) -> None:
    """Build source archive and wheel of a checkout."""
    commit = ("git", "-C", str(source), "log", "-1", "--format=%ct")
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or str(session.run(*commit, silent=True, external=True)).strip()
    env = {"SOURCE_DATE_EPOCH": epoch}
    os.umask(0o022)  # permissions go into the archives
    session.run("python", "-m", "build", "--sdist", "--outdir", str(folder), str(source), silent=True, env=env)
    (archive,) = folder.glob("*.tar.gz")
    repack(archive, int(epoch))
    with tempfile.TemporaryDirectory() as unpacked:
        shutil.unpack_archive(archive, unpacked)  # our own; tarfile's filters came with Python 3.11.4
        (inside,) = Path(unpacked).iterdir()
        session.run(
            "python", "-m", "build", "--wheel", "--outdir", str(folder.resolve()), str(inside), silent=True, env=env
        )


def repack(archive: Path, epoch: int) -> None:
    """A .tar.gz file with the same contents, whose bytes depend on nothing else: neither on time nor on who packs."""
    with tarfile.open(archive) as tar:
        entries = sorted(tar.getmembers(), key=lambda entry: entry.name)
        held = [(entry, extracted.read() if (extracted := tar.extractfile(entry)) else None) for entry in entries]
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in held:
            clean = tarfile.TarInfo(entry.name)
            clean.type, clean.linkname, clean.size, clean.mtime = entry.type, entry.linkname, entry.size, epoch
            clean.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            tar.addfile(clean, None if content is None else io.BytesIO(content))
    with archive.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=epoch) as packed:
        packed.write(plain.getvalue())


@nox.session
def docs(session: nox.Session) -> None:
    """What the pages promise: links, commands, code blocks, words."""
    session.run("pytest", "-q", "tests/project", *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """The documentation site, in build/site; a dead link or a page that no menu holds is an error."""
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite in two processes, with the coverage floor of pyproject.toml."""
    session.run(
        "pytest", "-n", "2", "--dist", "worksteal", "--cov", "--cov-report", "term:skip-covered", *session.posargs
    )


FLOORS = ["config", "diffusion", "pipelines", "report", "run", "scorers", "search", "stats", "storage", "train"]
"""Folders of tests that meet every dependency."""


@nox.session(venv_backend="venv", default=False)
def floors(session: nox.Session) -> None:
    """The lowest versions that pyproject.toml allows, and the tests of what uses them; another choice as arguments."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    tools = [tool for tool in extras["dev"] if tool.startswith(("hypothesis", "peft", "pytest", "playwright"))]
    lowest = [*project["dependencies"], *extras["train"], *(tool for tool in tools if tool.startswith("peft"))]
    session.install("-e", ".", *tools, *map(lowest_version, lowest))
    tests = [*(f"tests/{folder}" for folder in FLOORS), *map(str, Path("tests").glob("test_*.py"))]
    session.run("pytest", "-q", "-n", "2", *(session.posargs or tests), env={"PYTHONPATH": ""})


def lowest_version(line: str) -> str:
    """A dependency pinned at its lower bound."""
    requirement = Requirement(line)
    (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return f"{requirement.name}=={bound}"
