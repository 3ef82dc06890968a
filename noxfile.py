"""The matrix of continuous integration, on one machine: `nox -l` lists the sessions, `nox -s tests-3.12` runs one.

Each session gives the Makefile an environment of its own and calls the same targets as .github/workflows/ci.yml does.
"""

from __future__ import annotations

import sys

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PINNED = "3.11"
"""The Python that constraints.txt was made with; the others take the ranges of pyproject.toml."""
OLDEST = "transformers==5.0.* peft==0.18.* accelerate==1.2.*"
"""The lower bounds of what changes most."""

nox.options.sessions = ["lint", f"tests-{PINNED}"]
nox.options.reuse_existing_virtualenvs = True


def make(session: nox.Session, target: str, **variables: str) -> None:
    """Call a target of the Makefile in the session's environment; words after `--` go to pytest."""
    python = session.python if isinstance(session.python, str) else f"{sys.version_info[0]}.{sys.version_info[1]}"
    given = {
        "PYTHON": f"python{python}",
        "VENV": session.virtualenv.location,
        "CONSTRAINTS": "constraints.txt" if python == PINNED else "",
        "PYTEST_ARGS": " ".join(session.posargs),
        **variables,
    }
    session.run("make", target, *(f"{name}={value}" for name, value in given.items()), external=True)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The quick tests."""
    make(session, "test")


@nox.session(python=PINNED)
def slow(session: nox.Session) -> None:
    """All tests, the long runs among them."""
    make(session, "test", SLOW="1")


@nox.session(python=PINNED)
def oldest(session: nox.Session) -> None:
    """The quick tests with the oldest transformers that is supported."""
    make(session, "test", CONSTRAINTS="", PINS=OLDEST)


@nox.session(python=PYTHONS[-1])
def newest(session: nox.Session) -> None:
    """The quick tests with the newest releases of everything."""
    make(session, "test", CONSTRAINTS="", PINS="--upgrade --upgrade-strategy eager")


@nox.session(python=PINNED)
def bare(session: nox.Session) -> None:
    """Every command in an installation without extras."""
    make(session, "bare", BARE=f"{session.virtualenv.location}-without-extras")


@nox.session(python=PINNED)
def lint(session: nox.Session) -> None:
    """ruff and mypy."""
    make(session, "lint")


@nox.session(python=PINNED)
def docs(session: nox.Session) -> None:
    """docs/cli.md is what the option models say."""
    make(session, "docs")
    session.run("git", "diff", "--exit-code", "docs/cli.md", external=True)
