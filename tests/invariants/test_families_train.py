"""Law: every family runs through the same stages: it learns, it is rewarded, it is saved, and it answers."""

import pytest
import torch

from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.infer.sampling import SamplingParams
from fledgling.record import read_jsonl
from fledgling.train import run
from tests.all_stages import make_all_stages_recipe
from tests.interrupted_run import check_that_halves_equal_the_whole


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_family_learns_in_pretraining_and_reinforcement(family, tmp_path):
    recipe = make_all_stages_recipe(
        tmp_path, **{"model.family": family, "stages": '["pretrain", "rl"]', "pretrain.steps": 20}
    )
    for stage in recipe.stages:
        assert run.run_stage(recipe, stage, quiet=True)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / "pretrain" / "metrics.jsonl")]
    assert losses[0] == pytest.approx(torch.tensor(420.0).log().item(), abs=0.15)
    assert sum(losses[-3:]) / 3 < losses[0] - 0.5
    model, tokenizer, state = load_model(tmp_path / "run")
    assert state["stage"] == "rl" and model.config.family == family
    assert (model.embedding.weight is model.head.weight) == (family == "gpt2")
    answer = Engine(model, tokenizer).generate([[tokenizer.bos]], SamplingParams(max_new_tokens=8))[0]
    assert answer.tokens


def test_a_tied_model_resumes_as_if_it_had_not_stopped(tmp_path):
    """One tensor under two names in the checkpoint, one state in the optimizer."""
    check_that_halves_equal_the_whole(tmp_path, {"model.family": "gpt2", "pretrain.steps": "4"})
