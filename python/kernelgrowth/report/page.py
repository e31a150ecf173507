"""The report of a run: three pictures and one HTML page that holds them."""

from __future__ import annotations

import base64
import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kernelgrowth._backend.errors import BackendError, RunFolderError
from kernelgrowth._backend.files import atomic_write_text, atomic_writer
from kernelgrowth.report.figures import dynamics_figure, predictions_figure, spectrum_figure
from kernelgrowth.report.quantities import describe
from kernelgrowth.report.style import png_bytes

__all__ = ["template", "text_of", "write_report"]

_CAPTIONS = {
    "dynamics": (
        "Above: the loss, the size of the kernel and its direction (its cosine with the final kernel) against the time "
        "of training. Below: the alignment of the kernel with the targets; dashed, where theory puts its end. "
        "Alignment is silent when direction and alignment settle while loss and norm still stand where they began."
    ),
    "predictions": (
        "Predictions of kernel regression for held-out examples against those of the trained network, with the kernel "
        "before training (squares) and after it (circles; stopped at the network's training loss where it gets there). "
        "On the diagonal the network is a kernel machine."
    ),
    "spectrum": "The largest eigenvalues of the kernel against training time.",
}


def write_report(
    folder: str | os.PathLike[str],
    *,
    history: Mapping[str, Any],
    summary: Mapping[str, Any],
    predictions: Mapping[str, Any] | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``dynamics.png``, ``predictions.png``, ``spectrum.png`` and ``report.html`` into a folder.

    Parameters
    ----------
    folder : path-like
        An existing folder; files of these names are replaced.
    history : mapping
        Series of the run: what `dynamics_figure` and `spectrum_figure` take. Without "eigenvalues" that picture is left
        out.
    summary : mapping
        Numbers by the names of ``summary.json``; "verdict_sentence" heads the page, "title" is its title.
    predictions : mapping, optional
        What `predictions_figure` takes; without it that picture is left out.
    config : mapping of mappings, optional
        The configuration, by section.
    facts : mapping, optional
        What else is known of the run, such as versions.

    Returns
    -------
    Path
        The page. It needs no other file.

    Raises
    ------
    BackendError
        If Matplotlib or Jinja is not installed.
    RunFolderError
        If a file cannot be written.
    """
    target = Path(folder)
    page_of_run = template("report.html")
    pictures = {"dynamics": dynamics_figure(history, summary)}
    if predictions is not None:
        pictures["predictions"] = predictions_figure(predictions)
    if "eigenvalues" in history and np.size(history["eigenvalues"]):
        pictures["spectrum"] = spectrum_figure(history, summary)
    images = {name: png_bytes(figure) for name, figure in pictures.items()}
    page = page_of_run.render(
        title=summary.get("title") or "Run",
        sentence=summary.get("verdict_sentence") or "",
        verdict=summary.get("verdict") or "undetermined",
        quantities=describe(summary),
        figures=[
            {"name": name, "data": base64.b64encode(image).decode("ascii"), "caption": _CAPTIONS[name]}
            for name, image in images.items()
        ],
        config={section: _texts(table) for section, table in (config or {}).items()},
        facts=_texts(facts or {}),
    )
    path = target
    try:
        for name, image in images.items():
            path = target / f"{name}.png"
            with atomic_writer(path) as stream:
                stream.write(image)
        path = target / "report.html"
        atomic_write_text(path, page)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot write: {error.strerror or error}") from error
    return path


def template(name: str) -> Any:
    """Return a page's template; a `BackendError` says how to install Jinja."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise BackendError('the report needs Jinja: pip install "kernelgrowth[run]"') from error
    source = importlib.resources.files("kernelgrowth.report").joinpath("templates", name)
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({name: source.read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _texts(table: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): text_of(value) for key, value in table.items()}


def text_of(value: Any) -> str:
    """Return a value as a reader wants to see it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {text_of(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        shown = [text_of(item) for item in value[:12]]
        return ", ".join(shown + (["…"] if len(value) > 12 else []))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
