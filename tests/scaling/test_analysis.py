"""Tests that a synthetic sweep is read, fitted in every way of counting, predicted and drawn."""

import json
import re
from dataclasses import replace

import pytest

from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.plan.scaling_laws import ALL_PARAMETERS, MATRICES
from fledgling.record import write_json
from fledgling.scaling.analysis import PRIMARY_COUNT, analyze_sweep
from fledgling.scaling.results import format_flops, load_sweep, read_run
from fledgling.scaling.sweep_page import build_sweep_page
from tests.scaling.synthetic_sweep import LAW, make_run, make_sweep


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory):
    """Twelve runs of four sizes and three budgets, and one beyond them with its prediction."""
    out = make_sweep(tmp_path_factory.mktemp("sweeps") / "made-up")
    run = make_run(out / "check/d3-1.6e14", 3, 1.6e14)
    prediction = {"bits_per_byte": {"value": 1.5, "low": 1.48, "high": 1.52}, "optimum": {"N": {"value": 2e6}}}
    write_json(run / "prediction.json", prediction)
    return out


@pytest.fixture(scope="module")
def analysis(sweep_dir):
    return analyze_sweep(load_sweep(sweep_dir))


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


def test_the_page_is_self_contained(sweep_dir, analysis):
    page = build_sweep_page(analysis).read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert page.count("<svg") == 6 and "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert "nan" not in re.sub(r"nanochat", "", page) and "d3-1.6e14" in page


def test_fit_prints_a_table_and_json(sweep_dir, capsys):
    assert main(["scaling", "fit", str(sweep_dir)]) == 0
    output = capsys.readouterr().out
    assert "held out" in output and "check d3-1.6e14: predicted 1.5000 (1.4800 to 1.5200)" in output
    assert main(["scaling", "fit", str(sweep_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"runs", "fits", "checks", "page"} <= set(found)
    assert {"surface", "isoflop_curves", "frontier", "held_out"} <= set(found["fits"][0])
    assert found["checks"][0]["within_interval"] in (True, False)


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


def test_an_unfinished_run_is_none_and_a_broken_one_is_named(tmp_path):
    run = make_run(tmp_path / "d1-1e13", 1, 1e13)
    assert read_run(run).depth == 1
    (run / "plan.json").write_text('{"parameters": {}}')
    with pytest.raises(UserError, match="d1-1e13"):
        read_run(run)
    (run / "pretrain/done.json").unlink()
    assert read_run(run) is None


def test_budgets_are_formatted_as_on_the_command_line():
    assert [format_flops(C) for C in (2e13, 1.6e14, 250e9)] == ["2e13", "1.6e14", "2.5e11"]
    assert load_recipe("scaling").stages == ("pretrain",)
