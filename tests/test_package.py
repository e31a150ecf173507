"""What importing costs, which rooms may import which, and that every public name is there and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import kernelgrowth as kg


def test_import_needs_numpy_and_scipy_only():
    code = """
import sys
before = set(sys.modules)
import kernelgrowth
from kernelgrowth import NTKOperator, empirical_ntk, eigsh, train, NTKTracker, silent_alignment, nets, optim, theory
roots = {name.split('.')[0] for name in set(sys.modules) - before}
heavy = {'matplotlib', 'sklearn', 'typer', 'rich', 'jinja2', 'cupy', 'torch', 'jax', 'pandas', 'zarr', 'dask'}
print(sorted(roots & heavy))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr


def test_rooms_import_in_one_direction(pytestconfig):
    import importlinter.cli

    assert importlinter.cli.lint_imports(config_filename=str(pytestconfig.rootpath / "pyproject.toml")) == 0


def test_only_the_backend_imports_the_compiled_modules():
    # The import contract cannot say this: to its tool a compiled module does not exist.
    root = Path(kg.__file__).parent
    importers = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and {"_core", "_cuda"} & {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    }
    assert importers == {"_backend"}


@pytest.mark.parametrize("name", [n for n in kg.__all__ if n != "report"])
def test_public_names_exist_and_are_documented(name):
    value = getattr(kg, name)
    assert name in dir(kg)
    assert inspect.getdoc(value)


@pytest.mark.parametrize(
    "room",
    [
        "datasets",
        "diagnostics",
        "distributed",
        "gradients",
        "kernels",
        "nets",
        "spectra",
        "theory",
        "tracking",
        "training",
    ],
)
def test_every_public_function_of_a_room_is_documented(room):
    module = importlib.import_module(f"kernelgrowth.{room}")
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert inspect.getdoc(value), f"{room}.{name} has no docstring"


@pytest.mark.parametrize(("room", "library"), [("torch", "PyTorch"), ("jax", "JAX")])
def test_without_a_library_the_package_works_and_its_room_says_what_is_missing(room, library):
    code = (
        f"import sys; sys.modules[{room!r}] = None; import numpy as np; import kernelgrowth as kg\n"
        "kg.empirical_ntk(kg.GradientFeatures({'a': kg.Rows(np.ones((2, 3)))}))\n"
        f"try: kg.{room}.gradient_features\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"kernelgrowth.{room} needs {library}: install kernelgrowth[{room}]\n"


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'kernelgrowth' has no attribute 'empirical_nkt'"):
        _ = kg.empirical_nkt


def test_version():
    assert kg.__version__
