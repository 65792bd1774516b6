"""Tests that a synthetic sweep is read, fitted in every way of counting, predicted and drawn."""

import json
from dataclasses import replace

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.plan.scaling_laws import ALL_PARAMETERS, MATRICES
from fledgling.scaling.analysis import PRIMARY_COUNT, analyze_sweep
from fledgling.scaling.results import load_sweep
from tests.scaling.synthetic_sweep import LAW, make_sweep


def test_runs_are_read_from_their_files(sweep_dir):
    sweep = load_sweep(sweep_dir)
    assert [run.name for run in sweep.runs][:5] == ["d1-1e13", "d2-1e13", "d3-1e13", "d4-1e13", "d1-2e13"]
    assert sweep.bytes_per_token == pytest.approx(3.5) and sweep.train_tokens == 40_000_000
    for run in sweep.runs:
        assert run.flops == pytest.approx(run.budget, rel=0.05)
        assert run.parameters[ALL_PARAMETERS] == run.parameters[PRIMARY_COUNT] + 4096 * 64 * run.depth
        assert run.parameters[MATRICES] == 12 * run.depth * (64 * run.depth) ** 2


def test_the_true_law_is_recovered(analysis):
    fit = analysis.fit_for(PRIMARY_COUNT)
    for name, value in vars(LAW).items():
        assert fit.surface.intervals[name].contains(value), name
    for C in (1e13, 4e13):
        N, D = fit.optimum(C)
        least = LAW.loss(N, D)
        assert least <= min(run.bits_per_byte for run in analysis.sweep.runs if run.budget == C) * 1.01
    N, loss = fit.optimum_interval(1.6e14)
    assert N.low < N.value < N.high and loss.low < loss.value < loss.high


def test_every_way_of_counting_is_fitted_once(analysis):
    assert [fit.counts for fit in analysis.fits] == [ALL_PARAMETERS, "without embeddings = matrices + head", MATRICES]
    exponents = [fit.isoflop.N.exponent.value for fit in analysis.fits]
    assert exponents[0] < exponents[1] < exponents[2]  # the fewer counted, the faster they must grow


def test_the_largest_budget_is_predicted_from_the_others(analysis):
    held = analysis.fit_for(PRIMARY_COUNT).held_out
    assert held.budget == 4e13 and len(held.runs) == 4
    assert held.mean_error < 0.01
    assert sum(value.contains(run.bits_per_byte) for run, value in held.runs) >= 3
    assert held.predicted_N.contains(held.measured_N)


def test_held_out_runs_do_not_affect_their_prediction(analysis):
    def worse(run):
        return replace(run, bits_per_byte=1.3 * run.bits_per_byte) if run.budget == 4e13 else run

    others = replace(analysis.sweep, runs=tuple(map(worse, analysis.sweep.runs)))
    before, after = (analyzed.fit_for(PRIMARY_COUNT).held_out for analyzed in (analysis, analyze_sweep(others)))
    assert [value for _, value in after.runs] == [value for _, value in before.runs]
    assert after.predicted_N == before.predicted_N and after.mean_error > 0.2


def test_predict_lists_every_law_and_the_sweep_itself(sweep_dir, capsys):
    assert main(["scaling", "predict", "5.76e23", "--json"]) == 0
    laws = {law["law"]: law for law in json.loads(capsys.readouterr().out)["laws"]}
    assert laws["chinchilla-1"]["parameters"] == pytest.approx(67e9, rel=0.02)
    assert laws["kaplan"]["counts"] == "matrices"
    assert main(["scaling", "predict", "1e14", "--runs", str(sweep_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["laws"][-1]["law"] == "made-up" and found["bytes_per_token"] == pytest.approx(3.5)


def test_too_few_runs_are_one_line_with_a_working_command(tmp_path):
    out = make_sweep(tmp_path / "few", depths=(1, 2), budgets=(1e13, 2e13))
    with pytest.raises(UserError, match="--depths 1,2,3 --budgets 1e13,2e13,4e13"):
        analyze_sweep(load_sweep(out))
    with pytest.raises(UserError, match="does not exist"):
        load_sweep(tmp_path / "nowhere")
