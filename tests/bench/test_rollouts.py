"""The bench of rollouts asks what training asks, and its shares are what they say."""

import pytest

from benchmarks.__main__ import main
from fledgling.bench.rollouts import format_rollouts, measure_rollouts
from fledgling.train.hooks import NO_EVALS
from fledgling.train.run import run_stage
from tests.all_stages import make_all_stages_recipe


def test_rollouts_are_measured_next_to_plain_answers(tmp_path, capsys):
    recipe = make_all_stages_recipe(tmp_path)
    run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    found = measure_rollouts(recipe, tmp_path / "run" / "pretrain", rounds=2)
    assert found["batch"] == recipe.rl.prompts_per_round * recipe.rl.group_size and found["dtype"] == "float32"
    assert 0 < found["answer"] <= recipe.rl.max_new_tokens and found["prompt"] > 1
    assert found["share_of_whole"] == pytest.approx(found["rollouts"] / found["whole"])
    assert found["share_of_further"] == pytest.approx(found["rollouts"] / found["further"])
    assert "12 answers at once" in format_rollouts(found)
    capsys.readouterr()
    assert main(["rollouts", str(tmp_path / "run"), "--rounds", "0"]) == 1
    assert capsys.readouterr().err == "error: --rounds 0: expected at least 1\n"
