"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_network(capsys):
    load("own_network").main(steps=200)
    assert capsys.readouterr().out


def test_torch_digits(capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    load("torch_digits").main(steps=80)
    out = capsys.readouterr().out
    assert "MLP 64-100-1" in out
    assert "CNN 16, 32 / 2" in out


def test_torch_transformer(capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    load("torch_transformer").main(steps=51, length=12, outputs=2)
    assert "ms of tracking" in capsys.readouterr().out


def test_flax_digits(capsys):
    pytest.importorskip("flax", reason="Flax is not installed")
    load("flax_digits").main(steps=10, every=5)
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.filterwarnings("ignore::UserWarning:matplotlib")
def test_notebook(monkeypatch, capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((EXAMPLES / "your_own_model.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "your_own_model.ipynb", "exec"), names)
    assert "right with the network" in capsys.readouterr().out
