"""[model], [optimizer] and [adapter]: what a value changes is computed without a run."""

from typing import Any

import pytest
import torch

from fledgling.config import AdapterConfig, ModelConfig, OptimizerConfig
from fledgling.data.batch import Batch
from fledgling.model.adapter import attach_adapter, initialize_adapter
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage

from .outcomes import Case, differ, fill_zeros

# ---- [model] -------------------------------------------------------------------------------------------

MODEL: dict[str, Case] = {
    "depth": (1, {}),
    "width": (48, {}),
    "heads": (4, {}),
    "kv_heads": (1, {}),
    "context": (16, {}),
    "intermediate_size": (64, {}),
    "logit_softcap": (1.0, {}),
    "rope_base": (50.0, {}),
    "norm_eps": (0.1, {}),
    "family": ("gpt2", {}),
    "preset": ("nanochat-2026", {}),
    "norm": ("layer", {}),
    "positions": ("learned", {}),
    "rope_direction": (1, {"kv_heads": 1}),
    "activation": ("swiglu", {}),
    "bias": (True, {}),
    "tie_embeddings": (True, {}),
    "qk_norm": (False, {}),
    "embedding_norm": (False, {}),
    "flash_norm": (True, {}),
    "value_embeddings": (1, {}),
    "window_pattern": ("S", {"window_size": 2}),
    "window_size": (3, {"window_pattern": "S"}),
    "residual_scalars": (True, {}),
    "value_gates": (True, {"value_embeddings": 1}),
    "head_gates": (True, {}),
    "exclusive_attention": (True, {}),
    "skip_scalars": (True, {"depth": 4}),
    "back_out": (True, {}),
    "smear": (True, {}),
    "logit_shift": (3.0, {}),
    "head_dim": (32, {}),
    "qkv_bias": (True, {}),
    "mlp_bias": (True, {}),
    "qk_norm_weights": ("head", {"rope_base": 3.0}),
    "norm_placement": ("post", {}),
    "parallel_residual": (True, {}),
    "embedding_multiplier": (2.0, {"embedding_norm": False}),
    "partial_rotary_factor": (0.5, {}),
    "rope_pattern": ("RN", {}),
    "rope_local_base": (50.0, {"window_pattern": "S", "window_size": 9}),
    "rope_type": ("linear", {"rope_factor": 2.0}),
    "rope_factor": (3.0, {"rope_type": "ntk"}),
    "rope_original_context": (20, {"rope_type": "llama3", "rope_factor": 4.0}),
    "rope_low_freq_factor": (0.5, {"rope_type": "llama3", "rope_factor": 4.0, "rope_original_context": 60}),
    "rope_high_freq_factor": (2.0, {"rope_type": "llama3", "rope_factor": 4.0, "rope_original_context": 60}),
    "rope_beta_fast": (4.0, {"rope_type": "yarn", "rope_factor": 2.0, "rope_original_context": 4000}),
    "rope_beta_slow": (0.1, {"rope_type": "yarn", "rope_factor": 2.0, "rope_original_context": 400}),
    "rope_attention_factor": (2.0, {"rope_type": "yarn", "rope_factor": 2.0, "qk_norm": False}),
    "window_last_layer": (True, {"window_pattern": "S", "window_size": 2}),
}


def model_outcome(**table: Any) -> dict[str, Any]:
    """Logits of a row, by a model whose zero parameters are filled, and the longest row."""
    config = ModelConfig(
        **{"depth": 2, "width": 32, "heads": 2, "context": 24, "preset": "nanochat-2025", **table}
    ).resolve(60)
    model = Transformer(config)
    model.initialize(0)
    with torch.no_grad():
        logits = fill_zeros(model).compute_logits(model(torch.arange(16)[None]))
    # Positions differ only where attention sees them from both sides: the direction is a convention of the weights.
    sizes = {"parameters": model.count_parameters(), "context": config.context, "rope": config.rope_direction}
    return {"logits": logits, **sizes}


@pytest.mark.parametrize("key", MODEL)
def test_a_setting_of_the_model_changes_the_model(key):
    value, others = MODEL[key]
    assert differ(model_outcome(**others), model_outcome(**others, **{key: value}))


# ---- [optimizer] ---------------------------------------------------------------------------------------

OPTIMIZER: dict[str, Case] = {
    "matrix_lr": (0.5, {}),
    "embedding_lr": (0.05, {}),
    "head_lr": (0.05, {}),
    "scalar_lr": (0.5, {}),
    "adapter_lr": (0.05, {"adapter": AdapterConfig("lora", rank=2)}),
    "adam_betas": ((0.5, 0.6), {}),
    "adam_eps": (0.1, {}),
    "momentum": (0.5, {}),
    "weight_decay": (0.5, {}),
    "cautious_weight_decay": (True, {"weight_decay": 0.5}),
    "matrix_optimizer": ("normuon", {}),
    "newton_schulz": ("polar_express", {}),
    "newton_schulz_steps": (2, {}),
    "equilibrate": (True, {}),
    "normalize_update": (True, {}),
    "tied_updates": (2, {}),
    "zero_stage": (2, {}),
    "state": ("8bit", {}),
    "deterministic": ("off", {}),
}


def optimizer_outcome(adapter: AdapterConfig | None = None, **table: Any) -> dict[str, Any]:
    """The weights after three steps; how parameters are distributed and added up."""
    model, world = Transformer(ModelConfig(60, 1, 32, 2, 2, 16, residual_scalars=True)), World.start("cpu")
    model.initialize(0)
    if adapter:
        attach_adapter(model, adapter, model.config)
        initialize_adapter(model, 0)
    fill_zeros(model)
    optimizer = Optimizer(model, OptimizerConfig(**table), world)
    stage = Stage("pretrain", 3, None, next_token_loss, lambda progress: 1.0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        tokens, targets = torch.randint(60, (2, 2, 16), generator=draw)
        loop.train_step(stage, model, optimizer, [Batch(tokens, targets)], world)
    distribution = {"zero_stage": optimizer.partition.zero_stage, "deterministic": optimizer.deterministic}
    return {**{name: value.clone() for name, value in model.state_dict().items()}, **distribution}


@pytest.mark.parametrize("key", OPTIMIZER)
def test_a_setting_of_the_optimizer_changes_the_update(key):
    value, others = OPTIMIZER[key]
    assert differ(optimizer_outcome(**others), optimizer_outcome(**others, **{key: value}))


# ---- [adapter] -----------------------------------------------------------------------------------------

ADAPTER: dict[str, Any] = {"method": "dora", "rank": 3, "alpha": 5.0, "targets": ("q_proj", "fc1")}
ADAPTER_ELSEWHERE = ("stages", "init_from", "quantization")  # tests/train/test_stage_weights.py


@pytest.mark.parametrize("key", ADAPTER)
def test_a_setting_of_the_adapter_changes_what_is_trained(key):
    base = {"method": "lora", "rank": 2, "alpha": 4.0}
    plain, other = (optimizer_outcome(AdapterConfig(**table)) for table in (base, {**base, key: ADAPTER[key]}))
    assert differ(plain, other)
