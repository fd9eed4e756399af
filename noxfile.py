"""Sessions: `nox` runs lint and tests; the others are asked for by name."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "tests"]

# Each worker starts servers of its own: more than a few would only be in each other's way.
WORKERS = ("--numprocesses", "auto", "--maxprocesses", "4", "--dist", "worksteal")
PYPROJECT = nox.project.load_toml("pyproject.toml")

# The references that are generated from the code, by the functions in tests/support/reference.py.
REFERENCES = ("-I", "tests", *sorted(str(page) for page in Path("docs/reference").glob("*.md")))


def _install(session: nox.Session, group: str | None = None) -> None:
    """Install k2 as users do, and the tools of one dependency group."""
    session.install("-e", ".", *(nox.project.dependency_groups(PYPROJECT, group) if group else ()))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, layers, and that docs/reference/ is up to date."""
    _install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("cog", "--check", "--diff", "--check-fail-msg=run: nox -s docs", *REFERENCES)


@nox.session
def tests(session: nox.Session) -> None:
    """Run everything that this machine can run."""
    _install(session)
    session.run("k2", "--help", silent=True)  # with the runtime dependencies alone
    session.install(*nox.project.dependency_groups(PYPROJECT, "test"))
    session.run("pytest", *WORKERS, *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure: figures and ratios on stdout, and in bench-results.json."""
    _install(session)
    session.run("python", "tests/bench/run.py", *session.posargs)


@nox.session(default=False)
def crashes(session: nox.Session) -> None:
    """Crash `k2 consume` and its servers, round after round; see tests/crashes/__main__.py."""
    _install(session, "test")
    session.run("python", "-m", "crashes", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Stream from an exchange that misbehaves, round after round; see tests/soak/__main__.py."""
    _install(session, "test")
    session.run("python", "-m", "soak", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Write docs/reference/ and the grammar of completion from the code; build the site."""
    _install(session, "lint")
    session.run("cog", "-r", *REFERENCES)
    session.run("python", "-m", "support.grammar", env={"PYTHONPATH": "tests"})
    session.install(*nox.project.dependency_groups(PYPROJECT, "docs"))
    session.run("zensical", "build", "--strict")


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build sdist and wheel into dist/."""
    session.install("build")
    session.run("python", "-m", "build", *session.posargs)
