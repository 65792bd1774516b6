"""A sweep is ordinary runs on tokens prepared once: it resumes, skips, refuses what cannot work, and is checked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.scaling import check
from fledgling.scaling.analysis import PRIMARY_COUNT, analyze_sweep
from fledgling.scaling.results import load_sweep
from fledgling.scaling.sweep import claim_directory, make_grid, only_final_bpb, run_sweep
from fledgling.train.stage import Eval
from tests.scaling.made_up_sweep import make_sweep
from tests.tiny import text_file

BUDGETS = (2.5e9, 5e9)


def recipe(folder: Path):
    """A sweep's recipe whose runs take a second."""
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


def test_a_sweep_from_nothing_and_again(tmp_path):
    chosen, out, said, finished = recipe(tmp_path), tmp_path / "sweep", [], []
    cells = make_grid(chosen, [1], BUDGETS, out)
    assert [one.name for one in cells] == ["d1-2.5e09", "d1-5e09"]
    assert run_sweep(chosen, cells[:1], out, said.append, finished.append) == 1
    assert run_sweep(chosen, cells, out, said.append, finished.append) == 1, "the finished run was not skipped"
    assert [run.name for run in finished] == ["d1-2.5e09", "d1-2.5e09", "d1-5e09"]
    assert any("left" in text for text in said)
    assert sum("tokenizing" in text for text in said) == 2, "the text was tokenized more than once"
    runs = [Path(one.recipe.run.out) for one in cells]
    assert all((run / "data").resolve() == (out / "shared/data").resolve() for run in runs)
    lines = (runs[0] / "pretrain/evals.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["name"] == "bits_per_byte", "evaluated other than at the end"
    found = load_sweep(out)
    assert [run.bits_per_byte for run in found.runs] == [run.bits_per_byte for run in finished[1:]]
    assert 1 < found.bytes_per_token < 8
    with pytest.raises(UserError, match="other settings"):
        claim_directory(replace(chosen, seed=7), out)
    claim_directory(replace(chosen, run=replace(chosen.run, threads=2)), out)


def test_cells_differ_in_depth_and_length_alone(tmp_path):
    cells = make_grid(load_recipe("scaling"), [1, 2], [1e13, 2e13], tmp_path)
    assert [one.name for one in cells] == ["d1-1e13", "d2-1e13", "d1-2e13", "d2-2e13"]
    for one in cells:
        assert one.flops == pytest.approx(one.budget, rel=0.01)
        assert one.recipe.optimizer == cells[0].recipe.optimizer
        assert one.recipe.pretrain.batch_tokens == 4096 and one.recipe.pretrain.warmup_steps == 20
    few = make_grid(load_recipe("scaling"), [1], [3e11], tmp_path)[0].recipe.pretrain
    assert few.warmup_steps == few.steps // 10 == 3


@pytest.mark.parametrize(
    ("depths", "budgets", "words"),
    [
        ([1], [0.0], "budget: got 0 FLOPs"),
        ([7], [1e13], r"try heads = 2\); depths that do: 1, 2, 3, 4, 5, 6, 8"),
        ([0], [1e13], "depths: got 0"),
        ([6], [1e12], "gets 3 steps of 4,096 tokens, expected at least 20; give"),
        ([], [1e13], "at least one depth"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(depths, budgets, words, tmp_path):
    with pytest.raises(UserError, match=words):
        make_grid(load_recipe("scaling"), depths, budgets, tmp_path)
    assert not any(tmp_path.iterdir())


def test_the_advice_for_too_small_a_budget_works(tmp_path):
    with pytest.raises(UserError) as told:
        make_grid(load_recipe("scaling"), [6], [1e12], tmp_path)
    advised = float(str(told.value).split("give ")[1].split()[0])
    assert make_grid(load_recipe("scaling"), [6], [advised], tmp_path)


def test_tasks_have_no_place_in_a_sweep(tmp_path):
    chosen = load_recipe("quickstart")
    with pytest.raises(UserError, match="documents alone, not on arithmetic"):
        run_sweep(chosen, make_grid(chosen, [1], [1e13], tmp_path), tmp_path, print, print)


def test_of_the_evaluations_the_last_bits_per_byte_are_kept():
    evals = tuple(
        Eval(name, 5, lambda step, last: ["measured"]) for name in ("bits_per_byte", "samples", "compression")
    )
    (kept,) = only_final_bpb(evals)
    assert kept.every == 0 and kept.measure(0, False) == [] and kept.measure(9, True) == ["measured"]


def test_a_budget_beyond_the_sweep_is_foretold_and_then_run(tmp_path, capsys):
    """The sweep's own runs are made up; the run that checks them is real."""
    chosen = recipe(tmp_path)
    out = make_sweep(tmp_path / "made-up", (1, 2, 3), (2.5e10, 3e10, 4e10), batch=256)
    claim_directory(chosen, out)
    with pytest.raises(UserError, match="more than 1"):
        check.run_check(chosen, analyze_sweep(load_sweep(out)), 0.5, None, print)
    assert main(["scaling", "check", str(out), "--times", "1.2", "--depth", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = out / "check/d3-4.8e10"
    assert found["predicted"] == json.loads((run / "prediction.json").read_text())
    assert (run / "prediction.json").stat().st_mtime < (run / "pretrain/metrics.jsonl").stat().st_mtime
    assert 0 < found["measured"]["bits_per_byte"] < 20
    assert len(load_sweep(out).runs) == 9, "the check counts among the runs it is to test"
    assert main(["scaling", "fit", str(out)]) == 0
    assert "check d3-4.8e10: predicted" in capsys.readouterr().out


def test_the_check_takes_the_size_nearest_the_predicted_optimum(tmp_path):
    fits = analyze_sweep(load_sweep(make_sweep(tmp_path / "made-up"))).fit_for(PRIMARY_COUNT)
    assert check.nearest_depth(load_recipe("scaling"), fits, 1.6e14) == 3
    assert check.nearest_depth(load_recipe("scaling"), fits, 1e18) > 3
