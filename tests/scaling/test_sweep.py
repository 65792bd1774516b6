"""Tests that a sweep is ordinary runs on shared tokens: resumable, validated, and checked beyond its budgets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.scaling import sweep as sweeps
from fledgling.scaling.analysis import PRIMARY_COUNT, analyze_sweep
from fledgling.scaling.results import load_sweep
from fledgling.scaling.sweep import claim_directory, make_grid, only_final_bpb, run_sweep
from fledgling.train.stage import Eval
from tests.all_stages import text_file
from tests.scaling.synthetic_sweep import make_sweep

BUDGETS = (2.5e9, 5e9)


def recipe(folder: Path):
    """Returns a sweep's recipe whose runs take a second."""
    text = text_file(folder)
    return load_recipe(
        "scaling",
        [
            "tokenizer.vocab_size=420",
            f'tokenizer.sources=["{text}"]',
            f'pretrain.mixture={{"{text}" = 1.0}}',
            "pretrain.batch_tokens=128",
            "pretrain.micro_batch_size=2",
            "model.context=64",
            "run.device=cpu",
            "run.compile=off",
            "run.dtype=float32",
            "run.threads=1",
        ],
    )


def test_a_sweep_trains_and_skips_finished_runs(tmp_path):
    chosen, out, messages, finished = recipe(tmp_path), tmp_path / "sweep", [], []
    cells = make_grid(chosen, [1], BUDGETS, out)
    assert [cell.name for cell in cells] == ["d1-2.5e09", "d1-5e09"]
    assert run_sweep(chosen, cells[:1], out, messages.append, finished.append) == 1
    assert run_sweep(chosen, cells, out, messages.append, finished.append) == 1, "the finished run was not skipped"
    assert [run.name for run in finished] == ["d1-2.5e09", "d1-2.5e09", "d1-5e09"]
    assert any("left" in text for text in messages)
    assert sum("tokenizing" in text for text in messages) == 2, "the text was tokenized more than once"
    runs = [Path(cell.recipe.run.out) for cell in cells]
    assert all((run / "data").resolve() == (out / "shared/data").resolve() for run in runs)
    lines = [json.loads(line) for line in (runs[0] / "pretrain/evals.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == 1, "evaluated other than at the end"
    assert {line["name"] for line in lines} == {"bits_per_byte"} and len({line["n"] for line in lines}) == len(lines)
    sweep = load_sweep(out)
    assert [run.bits_per_byte for run in sweep.runs] == [run.bits_per_byte for run in finished[1:]]
    assert 1 < sweep.bytes_per_token < 8
    with pytest.raises(UserError, match="other settings"):
        claim_directory(replace(chosen, seed=7), out)
    for changes in ({"decay_fraction": 1.0}, {"train_on": "assistant"}):  # other tables have these very lines
        with pytest.raises(UserError, match=rf"other settings \(pretrain.{next(iter(changes))} is .* there, .* now\)"):
            claim_directory(replace(chosen, pretrain=replace(chosen.pretrain, **changes)), out)
    (copied,) = make_grid(chosen, [1], [4e9], out)
    shutil.copytree(out / "d1-5e09", out / copied.name, symlinks=True)
    with pytest.raises(UserError, match=r"d1-4e09 has begun with other settings \(budget is 5.* there, 4.* now"):
        run_sweep(chosen, [*cells, copied], out, messages.append, finished.append)
    assert "d1-4e09 is left out: it is the same run as d1-5e09" in load_sweep(out).notes
    shutil.rmtree(out / copied.name)
    claim_directory(replace(chosen, run=replace(chosen.run, threads=2)), out)
    edited = next((tmp_path / "text").iterdir())
    edited.write_text(edited.read_text().replace("e", "E"))
    for _ in range(2):  # also when the new text is prepared already
        with pytest.raises(UserError, match=r"has changed since the finished runs of .* read it: choose another --out"):
            run_sweep(chosen, cells, out, messages.append, finished.append)


def test_cells_differ_in_depth_and_length_alone(tmp_path):
    cells = make_grid(load_recipe("scaling"), [1, 2], [1e13, 2e13], tmp_path)
    assert [cell.name for cell in cells] == ["d1-1e13", "d2-1e13", "d1-2e13", "d2-2e13"]
    for cell in cells:
        assert cell.flops == pytest.approx(cell.budget, rel=0.01)
        assert cell.recipe.optimizer == cells[0].recipe.optimizer
        assert cell.recipe.pretrain.batch_tokens == 4096 and cell.recipe.pretrain.warmup_steps == 20
    short = make_grid(load_recipe("scaling"), [1], [3e11], tmp_path)[0].recipe.pretrain
    assert short.warmup_steps == short.steps // 10 == 3


@pytest.mark.parametrize(
    ("depths", "budgets", "words"),
    [
        ([1], [0.0], "budgets 0: expected a number above 0"),
        ([0], [1e13], "depths: got 0"),
        ([6], [1e12], "gets 3 steps of 4,096 tokens, expected at least 20; give"),
        ([], [1e13], "at least one depth"),
    ],
)
def test_an_impossible_sweep_is_rejected_before_it_starts(depths, budgets, words, tmp_path):
    with pytest.raises(UserError, match=words):
        make_grid(load_recipe("scaling"), depths, budgets, tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_advice_for_too_small_a_budget_works(tmp_path):
    with pytest.raises(UserError) as caught:
        make_grid(load_recipe("scaling"), [6], [1e12], tmp_path)
    advised = float(str(caught.value).split("give ")[1].split()[0])
    assert make_grid(load_recipe("scaling"), [6], [advised], tmp_path)


def test_a_sweep_rejects_tasks(tmp_path):
    chosen = load_recipe("quickstart")
    with pytest.raises(UserError, match="documents only, not on arithmetic"):
        run_sweep(chosen, make_grid(chosen, [1], [1e13], tmp_path), tmp_path, print, print)


def test_only_the_last_bits_per_byte_are_evaluated():
    evals = tuple(
        Eval(name, 5, lambda step, last: ["measured"]) for name in ("bits_per_byte", "samples", "compression")
    )
    (last,) = only_final_bpb(evals)
    assert last.every == 0 and last.measure(0, False) == [] and last.measure(9, True) == ["measured"]


def test_a_budget_beyond_the_sweep_is_predicted_and_then_trained(tmp_path, capsys):
    """The sweep's own runs are synthetic; the run that checks them is real."""
    chosen = recipe(tmp_path)
    out = make_sweep(tmp_path / "made-up", (1, 2, 3), (2.5e10, 3e10, 4e10), batch=256)
    claim_directory(chosen, out)
    with pytest.raises(UserError, match="more than 1"):
        sweeps.run_forecast_check(chosen, analyze_sweep(load_sweep(out)), 0.5, None, print)
    check = ["scaling", "check", str(out), "--times", "1.2", "--depth", "3", "--json"]
    assert main([*check, "--set", "optimizer.matrix_lr=0.5"]) == 1, "another recipe does not check the prediction"
    assert "optimizer.matrix_lr" in capsys.readouterr().err and not (out / "check").exists()
    assert main([*check, "--set", "run.threads=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = out / "check/d3-4.8e10"
    assert found["predicted"] == json.loads((run / "prediction.json").read_text())
    assert (run / "prediction.json").stat().st_mtime < (run / "pretrain/metrics.jsonl").stat().st_mtime
    assert 0 < found["measured"]["bits_per_byte"] < 20
    assert len(load_sweep(out).runs) == 9, "the check is one of the runs that it tests"
    assert main(["scaling", "fit", str(out)]) == 0
    assert "check d3-4.8e10: predicted" in capsys.readouterr().out


def test_the_check_uses_the_size_nearest_to_the_predicted_optimum(tmp_path):
    fits = analyze_sweep(load_sweep(make_sweep(tmp_path / "made-up"))).fit_for(PRIMARY_COUNT)
    assert sweeps.nearest_depth(load_recipe("scaling"), fits, 1.6e14) == 3
    assert sweeps.nearest_depth(load_recipe("scaling"), fits, 1e18) > 3
