"""Everyday commands: `nox` runs them all, `nox -s lint` one, `nox -l` lists them."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "lint", "types", "cpp"]

CPP_SOURCES = ("*.cpp", "*.hpp", "*.cu")


@nox.session
def tests(session: nox.Session) -> None:
    """Install the package and run the Python tests with coverage."""
    session.install(".[test]")
    session.run("pytest", "--cov", "--cov-fail-under=90", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style of the Python and C++ sources."""
    session.install("ruff>=0.9", "clang-format>=19")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = session.run("git", "ls-files", *CPP_SOURCES, external=True, silent=True)
    session.run("clang-format", "--dry-run", "--Werror", *str(sources).split())


@nox.session
def types(session: nox.Session) -> None:
    """Strict types of the package, and stubs that fit the compiled modules."""
    session.install(".[test]")
    session.run("mypy")
    session.run("python", "-m", "mypy.stubtest", "kernelgrowth._core", "--ignore-missing-stub")


@nox.session
@nox.parametrize("preset", ["release", "asan", "tsan"])
def cpp(session: nox.Session, preset: str) -> None:
    """Build the C++ library without Python and run its tests, plain and under sanitizers."""
    session.install("cmake>=3.26", "ninja>=1.11")
    session.run("cmake", "--preset", preset)
    session.run("cmake", "--build", "--preset", preset)
    session.run("ctest", "--preset", preset, "--parallel", "2")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; anything it cannot resolve is an error."""
    session.install("mkdocs>=1.6", "mkdocstrings[python]>=0.25")
    session.run("mkdocs", "build", "--strict", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Print the table of ratios; `nox -s bench -- --out results.json` keeps it."""
    session.install(".")
    session.run("python", "-m", "benchmarks", *session.posargs)
