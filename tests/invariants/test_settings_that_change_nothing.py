"""A setting that changes nothing is reported, and one that is reported changes nothing: of models, optimizers and RL.

The values are those of `settings/`, each tried with other settings than those with which it matters.
"""

from dataclasses import replace
from typing import Any

import pytest

from fledgling.config import AdapterConfig, Recipe, RLConfig, UserError
from fledgling.config.unused_settings import explain_unused
from fledgling.optim.roles import assign_role
from fledgling.plan.parameters import parameter_shapes

from .settings.outcomes import differ
from .settings.test_model_settings import MODEL, OPTIMIZER, model_outcome, optimizer_outcome
from .settings.test_rl_settings import RL, rl_outcome

YARN = {"rope_type": "yarn", "rope_factor": 2.0, "rope_original_context": 400}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama"},
    "without norms": {"qk_norm": False, "embedding_norm": False},
    "window": {"window_pattern": "S", "window_size": 9},
    "ntk": {"rope_type": "ntk", "rope_factor": 2.0},
    "yarn": YARN,
    "no rotation": {"rope_pattern": "N"},
}
EXPORTED = {"rope_direction", "rope_original_context"}  # conventions, which exports write


@pytest.mark.parametrize("name", MODELS)
def test_a_setting_of_the_model_is_reported_where_and_only_where_it_changes_nothing(name):
    base = MODELS[name]
    plain, recipe = model_outcome(**base), Recipe()
    small = {"depth": 2, "width": 32, "heads": 2, "context": 24, "preset": "nanochat-2025"}
    for key, (value, _) in MODEL.items():
        if key in base or key in small:
            continue
        model = replace(recipe.model, **{**small, **base, key: value})
        reason = explain_unused(replace(recipe, model=model), "model", key)
        try:
            changes = differ(plain, model_outcome(**base, **{key: value}))
        except UserError:
            continue  # rejected in one line
        complete = replace(recipe.model, **small, **base).resolve(60)
        if changes:
            assert not reason or key in EXPORTED, f"{key} is read: {reason}"
        elif getattr(complete, key) != value and key not in EXPORTED:
            assert reason, f"model.{key} changes nothing, and that is not reported"


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "adapter": {"adapter": AdapterConfig("lora", rank=2)},
    "adamw": {"matrix_optimizer": "adamw"},
    "without decay": {"weight_decay": 0.0},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_setting_of_the_optimizer_is_reported_where_and_only_where_it_changes_nothing(name):
    base = OPTIMIZERS[name]
    plain = optimizer_outcome(**base)
    stage, adapter = ("sft" if "adapter" in base else "pretrain"), base.get("adapter", AdapterConfig())
    recipe = replace(Recipe(stages=(stage,)), adapter=adapter)
    recipe = replace(recipe, model=replace(recipe.model, residual_scalars=True))  # as that of the outcome
    table = {"weight_decay": 0.0, **{field: value for field, value in base.items() if field != "adapter"}}
    for key, (value, _) in OPTIMIZER.items():
        if key in base or (key == "state" and "adapter" in base):  # an adapter of this size is not rounded
            continue
        stated = replace(recipe, optimizer=replace(recipe.optimizer, **{**table, key: value}))
        reason = explain_unused(stated, "optimizer", key)
        changes = differ(plain, optimizer_outcome(**base, **{key: value}))
        assert changes == (not reason), f"optimizer.{key}: {reason or 'changes nothing, and that is not reported'}"


@pytest.mark.parametrize("name", MODELS)
def test_the_rate_of_scalars_is_reported_where_and_only_where_no_parameter_has_it(name):
    recipe = Recipe(stages=("pretrain",))
    for key, (value, others) in MODEL.items():
        table = {"depth": 2, "width": 32, "heads": 2, "context": 24, **MODELS[name], **others, key: value}
        stated = replace(recipe, model=replace(recipe.model, **table))
        try:
            shapes = parameter_shapes(stated.resolve_model())
        except UserError:
            continue  # rejected in one line
        has_scalars = any(assign_role(each, shape) == "scalar" for each, shape in shapes.items())
        assert has_scalars == (not explain_unused(stated, "optimizer", "scalar_lr")), f"{name}, {key}"


def test_a_setting_of_rl_that_is_reported_changes_nothing_and_every_other_one_is_read(monkeypatch):
    """All reported settings together change nothing; the others are read in a run of the algorithm."""
    for algorithm in ("grpo", "gspo", "ppo"):
        base = {"algorithm": algorithm, "length_penalty": 0.5, "length_penalty_free_tokens": 3}
        recipe = replace(Recipe(), rl=replace(RLConfig(), max_new_tokens=3, **base))
        unused = {name for name in RL if explain_unused(recipe, "rl", name)}
        assert {"length_penalty"} <= unused and ("gamma" in unused) == (algorithm != "ppo")
        assert ("drop_uniform_groups" in unused) == (algorithm == "ppo")
        values = {name: RL[name][0] for name in unused if name not in base}
        read: set[str] = set()
        with monkeypatch.context() as patch:

            def record(table: RLConfig, name: str, read: set[str] = read) -> Any:
                read.add(name)
                return object.__getattribute__(table, name)

            patch.setattr(RLConfig, "__getattribute__", record, raising=False)
            plain = rl_outcome(**base)
        assert not differ(plain, rl_outcome(**base, **values)), values
        assert RL.keys() - unused - {"kl_target"} <= read  # which is rejected without a kl_weight
