"""Law: every family runs through the same stages: it learns, it is rewarded, it is saved, and it answers."""

import shutil

import pytest
import torch

from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.infer.sampling import SamplingParams
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import find_latest_checkpoint, load_checkpoint
from fledgling.train import loop, run
from tests.all_stages import make_all_stages_recipe


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


def test_a_tied_model_resumes_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    """One tensor under two names in the checkpoint, one state in the optimizer."""
    options = {"model.family": "gpt2", "stages": '["pretrain"]', "pretrain.steps": 4}
    recipes = [
        make_all_stages_recipe(tmp_path, **options, **{"run.out": f'"{tmp_path / name}"'})
        for name in ("whole", "halves")
    ]
    run.run_stage(recipes[0], "pretrain", quiet=True)
    for prepared in ("tokenizer", "data"):
        shutil.copytree(tmp_path / "whole" / prepared, tmp_path / "halves" / prepared)
    done = []

    def stopping(*arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(True)
        return update(*arguments)

    update = loop.queue_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "queue_step", stopping)
        run.run_stage(recipes[1], "pretrain", quiet=True)
    run.run_stage(recipes[1], "pretrain", quiet=True)
    one, two = (
        load_checkpoint(find_latest_checkpoint(tmp_path / name / "pretrain/checkpoints")).tensors
        for name in ("whole", "halves")
    )
    for group in ("model", "optimizer"):
        assert one[group].keys() == two[group].keys()
        assert all(torch.equal(tensor, two[group][name]) for name, tensor in one[group].items())
