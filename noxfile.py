"""Sessions of nox, each in an environment of its own: `nox -s lint`, `nox -s test -- tests/core`.

Arguments after `--` are passed to the command of the session. `.ci/run` is the gate; these sessions are its parts.
"""

import re
import shlex
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
LOWEST = ["tests/core", "tests/families/diffusion", "tests/experiment/test_parser.py", "tests/cli/test_cli.py"]
"""The tests that run with the lowest promised versions."""

nox.options.sessions = ["lint", "types", "test"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session, extra: str, constraints: str = "constraints.txt") -> None:
    """Install this checkout with an extra."""
    session.install("-c", constraints, "-e", f".[{extra}]")


@nox.session(python=PYTHONS)
def test(session: nox.Session) -> None:
    """Run the fast tests."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session(python=PYTHONS)
def slow(session: nox.Session) -> None:
    """Run the slow tests."""
    install(session, "test")
    session.run(
        "pytest", "-m", "slow and not exhaustive", "--dist", "loadfile", "--no-loadscope-reorder", *session.posargs
    )


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Run the tests of the lowest promised versions."""
    install(session, "test", "constraints-lowest.txt")
    session.run("pytest", *(session.posargs or LOWEST))


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure the coverage of the fast tests."""
    install(session, "test")
    session.run("python", "-m", "slipcover", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style, the format and the layers."""
    install(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types."""
    install(session, "dev")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site, check its links and pictures, and run its commands."""
    install(session, "test,docs")
    session.run("mkdocs", "build", "--strict", "--site-dir", session.create_tmp())
    pages = ["tests/behaviour/test_docs.py", "tests/behaviour/test_extending.py"]
    session.run("pytest", "-m", "slow or not slow", *(session.posargs or pages))


@nox.session
def figures(session: nox.Session) -> None:
    """Draw the figures of docs/diffusion.md that need no run, and the tables and figures of results that exist."""
    install(session, "test")
    page = Path("docs/diffusion.md").read_text()
    for command in re.findall(r"^python (-m lit_gen\.report\.theory (?!learned).*)$", page, re.MULTILINE):
        session.run("python", *shlex.split(command))
    session.run("python", "docs/update_tables.py", *session.posargs)
