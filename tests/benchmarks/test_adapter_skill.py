"""The bench of a new skill: both ways start from the run's weights, and their exams and figures are one table."""

import json

from benchmarks.__main__ import main
from benchmarks.adapter_skill import format_adapter_skill, measure_adapter_skill, tuning_recipe
from fledgling.config import load_recipe
from fledgling.record.checkpoint import load_checkpoint, resolve_checkpoint
from fledgling.runtime import device
from fledgling.train import run
from fledgling.train.hooks import NO_EVALS
from tests.fast_run import write_recipe
from tests.ranks import one_thread


def test_the_skill_is_taught_both_ways_and_the_run_is_not_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    with one_thread():
        source = load_recipe(write_recipe(tmp_path), ['stages=["sft"]'])
        run.run_stage(source, "sft", quiet=True, hooks=NO_EVALS)
        folder = tmp_path / "run"
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "lock" not in path.name}
        recipe = tuning_recipe(folder, tmp_path / "out", 0.25, 5, [])
        assert recipe.sft.mixture == {"language": 0.25, "identity": 0.75}, "the run's own mixture is rehearsed"
        found = measure_adapter_skill(folder, tmp_path / "out", 3, 0.5, 1)
        assert {path: path.read_bytes() for path in before} == before
    assert found["before"].keys() == found["lora"]["exams"].keys() >= {"language", "spelling", "identity_test"}
    assert found["lora"]["checkpoint_bytes"] < found["full"]["checkpoint_bytes"]
    assert all(found[way]["step"] == 3 and found[way]["memory"] > 0 for way in ("lora", "full"))
    first = load_checkpoint(resolve_checkpoint(tmp_path / "out" / "full"))
    assert first.state["parent"]["weights"], "it began with given weights"
    table = format_adapter_skill(found)
    assert "| language |" in table and "planned" in table and json.loads(json.dumps(found)) == found


def test_a_run_that_is_missing_is_one_line(tmp_path, capsys):
    assert main(["adapter-skill", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
