"""What CI runs, by name: `nox` for all, `nox -s lint types` for some. `.ci/run` calls these sessions.

The sessions run in the environment that nox is started in, after `pip install -e ".[dev]"`: an environment of its own
for each would install torch five times. `floors` has one, for it installs other versions.
"""

import shutil
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = False
nox.options.sessions = ["lint", "types", "build", "docs", "tests"]


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
    """The source archive and, made from it, the wheel, in dist/ (or the folder given); its contents are checked."""
    folder = Path(session.posargs[0] if session.posargs else "dist")
    shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder), ".", silent=True)
    session.run("check-wheel-contents", *map(str, folder.glob("*.whl")))


@nox.session
def docs(session: nox.Session) -> None:
    """What the pages promise: links, commands, code blocks, words."""
    session.run("pytest", "-q", "tests/project", *session.posargs)


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
