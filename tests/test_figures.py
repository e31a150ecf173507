"""The figures of the paper in their quick setting: what each has to show, and that it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from kernelgrowth.cli import main
from kernelgrowth.experiments.figures import FIGURES, draw_figure, figure_named

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    made = {}

    def of(name, **options):
        key = name, tuple(options.items())
        if key not in made:
            made[key] = draw_figure(figure_named(name), folder, **options)
            assert made[key].picture.read_bytes().startswith(PNG)
        return made[key].findings

    return of


def test_figure_1_alignment_is_silent_and_the_network_a_kernel_machine(drawn):
    found = drawn("1")
    assert found["silent"] == 1.0
    assert found["align_before_loss"] < 0.7
    assert found["growth"] > 100
    assert found["predictor_error_final"] < 0.1 < 0.2 < found["predictor_error_initial"]
    assert found["alignment_final"] == pytest.approx(found["alignment_theory"], rel=0.2)


def test_figure_1d_a_wide_residual_network_becomes_a_kernel_machine(drawn):
    found = drawn("1d")
    assert found["loss_ratio"] < 1e-3
    assert found["growth"] > 100
    assert found["alignment_final"] > 2 * found["alignment_initial"]
    assert found["predictor_error_final"] < 0.15 < 0.5 < found["predictor_error_initial"]


def test_figure_2_the_metric_turns_before_the_function_moves(drawn):
    found = drawn("2")
    assert found["stretch_0"] < 1.2
    assert found["learnt_1"] < 0.1
    assert found["stretch_1"] > 1.7
    assert found["cosine_1"] > 0.999
    assert found["learnt_2"] == pytest.approx(1.0, abs=0.01)
    assert found["stretch_2"] == pytest.approx(2.0, abs=0.1)  # (L - 1) beta beta' + I of two layers


def test_figure_3_half_loss_times_have_the_exponents_of_theory(drawn):
    found = drawn("3")
    for depth in (3, 4, 5):
        assert found[f"exponent_{depth}"] == pytest.approx(2 - depth, abs=0.1)
    for depth in (2, 3, 4, 5):
        assert found[f"latest_alignment_{depth}"] < 0.96


def test_figure_4_the_final_kernel_predicts_best_where_inputs_are_whitened(drawn):
    found = drawn("4")
    gammas = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    final, initial = (
        np.array([found[f"{name}_gd_{gamma:g}"] for gamma in gammas]) for name in ("error_final", "error_initial")
    )
    assert np.polyfit(gammas, final, 1)[0] > 0.02
    assert final[-1] > 1.2 * final[0]
    assert (final < 0.75 * initial).all()
    scores = [found[f"score_gd_{gamma:g}"] for gamma in gammas]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.7 > 0.2 > scores[-1]
    adam = [found[f"error_final_adam_{gamma:g}"] for gamma in gammas]
    assert max(adam) < min(found[f"error_initial_adam_{gamma:g}"] for gamma in gammas)


def test_figure_c_two_layers_follow_their_closed_forms(drawn):
    found = drawn("C")
    assert found["half_loss_time_slope"] == pytest.approx(1.0, abs=0.02)
    assert found["error_at_least_sigma"] < 0.01


def test_figure_e_deeper_networks_align_further(drawn):
    found = drawn("E")
    for activation, depths in (("linear", (2, 3, 4, 5)), ("relu", (2, 3))):
        alignments = [found[f"alignment_{activation}_{depth}"] for depth in depths]
        assert alignments == sorted(alignments)
    assert max(found[f"off_theory_{depth}"] for depth in (2, 3, 4, 5)) < 0.01


def test_figure_f_transfer_follows_theory(drawn):
    found = drawn("F")
    assert found["off_theory"] < 0.12
    assert found["gain_1"] > 10 > found["gain_0.75"] > 1.5 > found["gain_0.5"] > 1 > found["gain_0"] > 0.8


def test_figure_h_modes_are_learnt_one_after_another(drawn):
    found = drawn("H")
    for net in ("linear_2", "linear_4", "tanh_3"):
        times = [found[f"half_time_{net}_{a}"] for a in range(3)]
        assert times == sorted(times)
        assert times[2] > 2 * times[0]
        assert all(found[f"learnt_{net}_{a}"] > 0.98 for a in range(3))


def test_seeds_are_added_to_the_runs_there_are(tmp_path):
    quick = figure_named("2")
    calls = []
    for seeds in (1, 3):
        draw_figure(quick, tmp_path, seeds=seeds, workers=1, on_progress=lambda *numbers: calls.append(numbers))
    assert calls == [(0, 1), (1, 1), (1, 3), (2, 3), (3, 3)]


def test_the_command(tmp_path, capsys):
    assert main(["figures"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{figure.name:<3} {figure.title}" in listed for figure in FIGURES)
    assert main(["figure", "2", "--out", str(tmp_path), "--workers", "1"]) == 0
    assert "Picture: " in capsys.readouterr().out
    assert (tmp_path / "figure-2.png").read_bytes().startswith(PNG)
    assert main(["figure", "99", "--out", str(tmp_path)]) == 2
    assert "no figure is named '99'" in capsys.readouterr().err
    assert main(["figure", "1c", "--out", str(tmp_path / "c")]) == 2
    assert "data is missing: this figure needs the folder of CIFAR-10's files" in capsys.readouterr().err
