"""The metrics that the loop records of a step."""

from pathlib import Path

from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from tests.tiny import tiny


def test_no_step_has_an_mfu_above_one(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1.0)  # as on a busy machine
    recipe = tiny(tmp_path, **{"pretrain.steps": 6})
    run.run_stage(recipe, "pretrain", quiet=True, select_evals=lambda evals: ())
    lines = read_jsonl(Path(recipe.run.out) / "pretrain" / "metrics.jsonl")
    mfu = [line["mfu"] for line in lines]
    speeds = [line["tokens_per_second"] for line in lines]
    assert len(mfu) == 6 and mfu[0] == 1.0 == max(mfu) and min(mfu) > 0
    assert mfu[speeds.index(max(speeds))] == 1.0
