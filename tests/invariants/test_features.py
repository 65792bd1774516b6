"""With any optional feature a model trains, stops, resumes, is loaded, answers, and is exported with its code."""

import json
import os

import pytest
import torch

from fledgling.cli import main
from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.data.multi_token_prediction import MultiTokenTargets
from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.infer.sampling import SamplingParams
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import unsharded
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage
from tests.interrupted_run import check_that_halves_equal_the_whole
from tests.invariants.losses import batch_of
from tests.ranks import on_ranks, one_thread

EVERYTHING = {
    "model.flash_norm": "true",
    "model.value_embeddings": "1",
    "model.value_gates": "true",
    "model.head_gates": "true",
    "model.exclusive_attention": "true",
    "model.back_out": "true",
    "model.smear": "true",
    "model.window_pattern": '"SL"',
    "model.window_size": "20",
    "model.residual_scalars": "true",
    "model.logit_softcap": "10.0",
    "model.logit_shift": "2.0",
    "pretrain.mtp_targets": "2",
    "pretrain.mtp_decay_steps": "3",
    "optimizer.tied_updates": "2",
    "model.kv_heads": "1",
    "optimizer.weight_decay": "0.1",
    "optimizer.cautious_weight_decay": "true",
    "optimizer.matrix_optimizer": '"normuon"',
    "optimizer.newton_schulz": '"polar_express"',
    "optimizer.equilibrate": "true",
    "optimizer.normalize_update": "true",
}


@pytest.mark.parametrize(
    "options", [EVERYTHING, {"optimizer.matrix_optimizer": '"adamw"', "optimizer.matrix_lr": "0.003"}]
)
def test_a_run_resumes_as_if_it_had_not_stopped(options, tmp_path):
    checkpoint = check_that_halves_equal_the_whole(tmp_path, options)
    plan = json.loads((tmp_path / "whole" / "plan.json").read_text())
    model, tokenizer, _ = load_model(tmp_path / "whole")
    assert plan["parameters"]["total"] == model.count_parameters()
    stored = sum(t.numel() for group in ("model", "optimizer") for t in checkpoint.tensors[group].values() if t.ndim)
    assert plan["data"]["bytes_checkpoint"] == 4 * stored
    assert Engine(model, tokenizer).generate([[tokenizer.bos]], SamplingParams(max_new_tokens=8))[0].tokens
    assert main(["export", "hf", str(tmp_path / "whole"), str(tmp_path / "exported")]) == 0
    carries_code = (tmp_path / "exported" / "modeling_fledgling.py").exists()
    assert carries_code == ("model.value_embeddings" in options)
    assert ("trust_remote_code=True" in (tmp_path / "exported" / "README.md").read_text()) == carries_code


STREAM = {"residual_scalars": True, "skip_scalars": True, "back_out": True, "smear": True}
HEADS = {"value_embeddings": 2, "value_gates": True, "head_gates": True, "exclusive_attention": True}
HEADS["logit_shift"] = 2.0
MTP = MultiTokenTargets(2, 3)
CONFIG = ModelConfig(61, 4, 32, 2, 1, 24, window_pattern="S", flash_norm=True, **STREAM, **HEADS)


def trained(rule: str, zero: int) -> dict:
    """Weights and state after three steps on this process's ranks; exact."""
    world, model = World.start("cpu"), Transformer(CONFIG)
    model.initialize(1)
    table = OptimizerConfig(
        1e-3, 1e-3, 1e-3, 1e-3, adam_eps=1e-6, zero_stage=zero, deterministic="on", matrix_optimizer=rule
    )
    table = OptimizerConfig(**{**vars(table), "weight_decay": 0.1, "cautious_weight_decay": True, "tied_updates": 2})
    optimizer = Optimizer(model, table, world)
    stage = Stage("pretrain", 3, None, next_token_loss, lambda progress: 1.0)
    for step in range(3):
        batches = MTP.add(batch_of("pretrain", 4, 24, 61, seed=step), step).split(1)
        loop.train_step(stage, model, optimizer, batches[world.rank :: world.size], world)
    state = optimizer.full_state_dict()
    again = Optimizer(Transformer(CONFIG), table, world)
    again.load_full_state_dict(world.all_gather_object(state)[0])
    with unsharded(model):
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"weights": weights, "state": state, "again": again.full_state_dict()}


def results() -> list[dict]:
    cases = [(rule, zero) for rule in ("normuon", "adamw", "muon") for zero in (0, 1, 2, 3)]
    if not os.environ.get("FLEDGLING_FULL"):
        cases = [*cases[:4], ("adamw", 2), ("muon", 3)]
    return [trained(rule, zero) for rule, zero in cases]


def test_any_number_of_ranks_gives_the_same_bits():
    with one_thread():
        alone = results()
    ranks = on_ranks(2, results)
    for index, expected in enumerate(alone):
        for found in (rank[index] for rank in ranks):
            assert all(torch.equal(found["weights"][name], value) for name, value in expected["weights"].items())
        for kind in ("state", "again"):
            assert ranks[0][index][kind].keys() == expected["state"].keys()
            for name, value in expected["state"].items():
                assert torch.equal(ranks[0][index][kind][name], value), f"case {index}, {kind}: {name}"
    moved = Transformer(CONFIG)
    moved.initialize(1)
    assert not any(torch.equal(alone[0]["weights"][name], value) for name, value in moved.named_parameters())
