"""The report: pictures that are pictures, labels that keep apart, a page that needs nothing else."""

from __future__ import annotations

import base64
import itertools
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text

from kernelgrowth import RunFolderError
from kernelgrowth.report import dynamics_figure, predictions_figure, spectrum_figure, write_report
from kernelgrowth.report.markers import spread
from kernelgrowth.report.quantities import QUANTITIES, describe

TICK = re.compile(r"[−\d.]+|\$\\mathdefault.*\$")
PICTURES = ("dynamics", "predictions", "spectrum")


def synthetic_history(points: int = 80, k: int = 6) -> dict[str, np.ndarray]:
    time = np.concatenate([[0.0], np.geomspace(0.1, 500.0, points - 1)])
    grown = 1 / (1 + np.exp(-(time - 7)))
    turned = 1 / (1 + np.exp(-2 * (time - 3)))
    norm = 1 + 1000 * grown
    return {
        "time": time,
        "loss": 0.5 * (1 - grown) + 1e-6,
        "kernel_norm": norm,
        "alignment": 0.05 + 0.2 * turned,
        "distance_to_final": np.where(np.arange(points) % 3 == 1, np.nan, 0.4 * (1 - turned)),
        "eigenvalues": norm[:, None] * np.geomspace(1, 0.1, k),
    }


def synthetic_summary(**changes: object) -> dict[str, object]:
    return {
        "title": "A run",
        "verdict": "silent",
        "verdict_sentence": "Silent alignment.",
        "silent_alignment_score": 0.9,
        "growth": 1000.0,
        "t_align": 3.0,
        "t_loss": 5.0,
        "t_grow": 5.2,
        "alignment_final": 0.25,
        "alignment_max_theory": 0.27,
        "predictor_error_final": 0.05,
        "seconds_total": 1.25,
        **changes,
    }


def synthetic_predictions(shape: tuple[int, ...] = (30,)) -> dict[str, object]:
    network = np.random.default_rng(0).normal(size=shape)
    return {
        "network": network,
        "final": network + 0.05,
        "final_matched": network + 0.02,
        "initial": 0.5 * network,
        "error_final": 0.05,
        "error_final_matched": 0.02,
        "error_initial": 0.5,
    }


class Page(HTMLParser):
    """Every tag with its attributes, and the text between tags."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def write(folder: Path, **changes: object) -> Page:
    arguments = {
        "history": synthetic_history(),
        "summary": synthetic_summary(),
        "predictions": synthetic_predictions(),
        "config": {"net": {"hidden": [100], "bias": False, "sigma": 0.01}},
        "facts": {"numpy": "2.0"},
    }
    path = write_report(folder, **{**arguments, **changes})
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A folder with the report of a synthetic run, and its page."""
    folder = tmp_path_factory.mktemp("report")
    return folder, write(folder)


def texts_of(figure) -> list[tuple[str, object]]:
    """Return every visible text of a figure with its extent in pixels."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    found = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    # An annotation's own extent would include its leader line.
    return [(text.get_text(), Text.get_window_extent(text, renderer)) for text in found]


def marks_of(figure) -> dict[str, object]:
    return {text.split("$ = ")[0]: box for text, box in texts_of(figure) if text.startswith("$t_") and " = " in text}


def test_pictures_are_pictures_and_lie_in_the_page(report):
    folder, page = report
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == list(PICTURES)
    for name, image in zip(PICTURES, images, strict=True):
        content = (folder / f"{name}.png").read_bytes()
        prefix, _, data = image["src"].partition(",")
        assert prefix == "data:image/png;base64"
        assert base64.b64decode(data) == content
        pixels = matplotlib.image.imread(folder / f"{name}.png")
        assert min(pixels.shape[:2]) > 500
        assert len(np.unique(pixels[::4, ::4, :3].reshape(-1, 3), axis=0)) > 20


def test_the_page_needs_nothing_else(report):
    folder, page = report
    content = (folder / "report.html").read_text(encoding="utf-8")
    assert "http" not in content
    assert "url(" not in content
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(str(a["src"]).startswith("data:") for _, a in page.tags if "src" in a)


def test_the_page_says_verdict_numbers_configuration_and_versions(report):
    _, page = report
    numbers = ("0.900", "5.0\u00a0%", "1.2\u00a0s", "100")
    for said in ("Silent alignment.", *numbers, "net.hidden", "false", "numpy", "2.0"):
        assert said in page.text
    assert ("p", {"class": "verdict silent"}) in page.tags


def test_what_strangers_wrote_is_escaped(tmp_path):
    evil = "<script>alert('x')</script>&\"<b>"
    page = write(
        tmp_path,
        summary=synthetic_summary(title=evil, verdict_sentence=evil),
        config={"data": {evil: evil}},
        facts={evil: evil},
    )
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert page.text.count(evil) >= 5
    assert "<script" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_undefined_numbers_become_dashes():
    rows = describe({"t_align": math.nan, "t_loss": None, "t_grow": math.inf, "growth": 12.0})
    assert {row["key"]: row["value"] for row in rows} == {"growth": "12", "t_align": "–", "t_loss": "–", "t_grow": "–"}
    assert len({quantity.key for quantity in QUANTITIES}) == len(QUANTITIES)


def test_pictures_without_data_are_left_out(tmp_path):
    history = synthetic_history()
    del history["eigenvalues"]
    page = write(tmp_path, history=history, predictions=None, config=None, facts=None)
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["dynamics"]
    assert not (tmp_path / "spectrum.png").exists()
    assert "Configuration" not in page.text


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(RunFolderError, match=r"dynamics\.png: cannot write"):
        write_report(missing, history=synthetic_history(), summary=synthetic_summary())


@pytest.mark.parametrize("times", [(3.0, 5.0, 5.2), (5.0, 5.0, 5.0), (0.15, 0.151, 0.152), (499.0, 499.5, 500.0)])
def test_labels_of_moments_keep_apart_and_inside(times):
    summary = synthetic_summary(**dict(zip(("t_align", "t_loss", "t_grow"), times, strict=True)))
    for figure in (dynamics_figure(synthetic_history(), summary), spectrum_figure(synthetic_history(), summary)):
        marks = marks_of(figure)
        assert len(marks) == 3
        for (_, one), (_, other) in itertools.combinations(marks.items(), 2):
            assert one.x1 < other.x0 or other.x1 < one.x0
        width, height = figure.canvas.get_width_height()
        for box in marks.values():
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height


def test_no_label_covers_another():
    for figure in (
        dynamics_figure(synthetic_history(), synthetic_summary()),
        spectrum_figure(synthetic_history(), synthetic_summary()),
        predictions_figure(synthetic_predictions()),
    ):
        # Ticks beyond the limits of an axis are there but not drawn.
        boxes = [(text, box) for text, box in texts_of(figure) if not TICK.fullmatch(text)]
        for (one, first), (other, second) in itertools.combinations(boxes, 2):
            apart = first.x1 <= second.x0 or second.x1 <= first.x0 or first.y1 <= second.y0 or second.y1 <= first.y0
            assert apart, (one, other)


def test_undefined_moments_and_theory_are_not_marked():
    summary = synthetic_summary(t_align=math.nan, t_loss=None, t_grow=1e9, alignment_max_theory=None)
    figure = dynamics_figure(synthetic_history(), summary)
    assert marks_of(figure) == {}
    assert not any("theory" in text for text, _ in texts_of(figure))


def test_theory_is_drawn_dashed_at_its_height():
    lower = dynamics_figure(synthetic_history(), synthetic_summary()).axes[1]
    dashed = [line for line in lower.lines if "theory" in str(line.get_label())]
    assert len(dashed) == 1
    assert dashed[0].get_ydata()[0] == 0.27
    assert dashed[0].get_linestyle() == "--"


def test_curves_are_the_history():
    history = synthetic_history()
    upper, lower = dynamics_figure(history, synthetic_summary()).axes
    drawn = {str(line.get_label()).split()[0]: line for line in (*upper.lines, *lower.lines)}
    np.testing.assert_allclose(drawn["loss"].get_ydata(), history["loss"] / history["loss"][0])
    np.testing.assert_allclose(drawn["norm"].get_ydata(), history["kernel_norm"] / history["kernel_norm"][-1])
    np.testing.assert_allclose(drawn["alignment"].get_ydata(), history["alignment"])
    kept = np.isfinite(history["distance_to_final"])
    np.testing.assert_allclose(drawn["direction"].get_ydata(), 1 - history["distance_to_final"][kept])
    spectrum = spectrum_figure(history, synthetic_summary()).axes[0]
    np.testing.assert_allclose(spectrum.lines[2].get_ydata(), history["eigenvalues"][:, 2])


def test_the_time_axis_is_logarithmic_only_where_the_events_are_early():
    early, late = synthetic_summary(), synthetic_summary(t_align=200.0, t_loss=300.0, t_grow=400.0)
    assert dynamics_figure(synthetic_history(), early).axes[0].get_xscale() == "log"
    assert dynamics_figure(synthetic_history(), late).axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("points", [1, 2, 3])
def test_short_histories(points):
    history = {name: values[:points] for name, values in synthetic_history().items()}
    for figure in (dynamics_figure(history, {}), spectrum_figure(history)):
        figure.draw_without_rendering()


@pytest.mark.parametrize("value", [0.0, math.nan, 1e-300, 1e300])
def test_degenerate_series(value):
    history = {name: np.full_like(values, value) for name, values in synthetic_history().items()}
    history["time"] = np.arange(80.0)
    for figure in (dynamics_figure(history, synthetic_summary()), spectrum_figure(history, synthetic_summary())):
        figure.draw_without_rendering()


def test_predictions_draw_the_matched_flow_and_name_both_errors():
    figure = predictions_figure(synthetic_predictions((20, 3)))
    initial, final = figure.axes[0].collections
    np.testing.assert_allclose(final.get_offsets()[:, 1] - final.get_offsets()[:, 0], 0.02)
    assert len(initial.get_offsets()) == 60
    assert "2.0 % (without early stop 5.0 %)" in final.get_label()
    without = {key: value for key, value in synthetic_predictions().items() if "matched" not in key}
    plain = predictions_figure(without).axes[0].collections[1]
    assert plain.get_label().endswith("error 5.0 %")


def test_predictions_that_are_not_finite_are_left_out():
    drawn = synthetic_predictions() | {"initial": np.full(30, np.nan)}
    assert len(predictions_figure(drawn).axes[0].collections) == 1


def test_figures_leave_pyplot_alone():
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_report as t;"
        "t.dynamics_figure(t.synthetic_history(), t.synthetic_summary()).draw_without_rendering();"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    folder = __file__.rpartition("/")[0]
    assert subprocess.run([sys.executable, "-c", script, folder], check=False).returncode == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(-2, 3), max_size=6), st.floats(0, 0.5))
def test_spread_keeps_order_distance_and_bounds(wanted, gap):
    placed = spread(wanted, gap, 0.0, 1.0)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in placed)
    room = min(gap, 1.0 / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for before, after in itertools.pairwise(order):
        assert placed[after] - placed[before] >= room - 1e-9


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 10), unique=True, max_size=8))
def test_spread_leaves_what_is_apart(positions):
    wanted = [position / 10 for position in positions]
    assert spread(wanted, 0.1, 0.0, 1.0) == pytest.approx(wanted)
