"""What the loop says of a step."""

from pathlib import Path

from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from tests.tiny import tiny


def test_no_step_reaches_more_than_the_whole_of_the_peak(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1.0)  # as if something had been in the way
    recipe = tiny(tmp_path, **{"pretrain.steps": 6})
    run.run_stage(recipe, "pretrain", quiet=True, select_evals=lambda evals: ())
    lines = read_jsonl(Path(recipe.run.out) / "pretrain" / "metrics.jsonl")
    shares = [line["mfu"] for line in lines]
    speeds = [line["tokens_per_second"] for line in lines]
    assert len(shares) == 6 and shares[0] == 1.0 == max(shares) and min(shares) > 0
    assert shares[speeds.index(max(speeds))] == 1.0
