"""Which folder is a run, by the files that only a run has."""

import pytest

from fledgling.config import UserError
from fledgling.config.run_marks import find_stage_mark, is_run_directory, require_watchable


def test_a_run_that_is_named_after_a_stage_makes_no_run_of_its_folder(tmp_path):
    """`watch runs` served a folder of runs, and exports into runs/sft belonged to "the run" runs."""
    run = tmp_path / "runs" / "sft"
    (run / "pretrain").mkdir(parents=True)
    for name in ("recipe.toml", "seal.json", "plan.json", "pretrain/metrics.jsonl"):
        (run / name).touch()
    assert is_run_directory(run) and find_stage_mark(run) == "pretrain/metrics.jsonl"
    assert not is_run_directory(run.parent)
    with pytest.raises(UserError, match="is no run directory"):
        require_watchable(run.parent)
    (run / "recipe.toml").unlink()  # a stage has none
    assert is_run_directory(run.parent)
