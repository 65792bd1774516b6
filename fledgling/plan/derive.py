"""Fills the open fields of a recipe by the rules of `fledgling.config.scaling_rules`, for `plan`, `config` and `train`.

A field that a recipe gives is never changed. What follows from the depth alone is filled before a run begins
(`derive_recipe`); what follows from a stage's own length, once that is known (`derive_stage`). Rates follow from the
batch of pretraining: where its examples decide that, they are filled once its text is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fledgling.config import ModelConfig, Recipe, RLConfig, StageConfig
from fledgling.config import scaling_rules as rules
from fledgling.plan.horizon import compute_horizon
from fledgling.plan.parameters import count_law_parameters
from fledgling.plan.stage_length import open_batch

DIGITS = 3  # of a derived rate: more would promise what no rule holds
RATES = ("matrix", "embedding", "head", "scalar")


@dataclass(frozen=True)
class Derived:
    """A field that a rule has filled: its name ("optimizer.head_lr"), the value, and the rule's number."""

    name: str
    value: float
    rule: int

    def describe(self) -> str:
        """Returns the field as text."""
        return f"{self.name} = {self.value:g} (rule {self.rule})"


def find_run_size(pretrain: StageConfig, config: ModelConfig, rows: int | None = None) -> rules.RunSize:
    """Returns what the rules follow from. A pretraining that ends by `num_epochs` counts as one of rule 2's tokens.

    rows: of a step, which the examples of pretraining have decided; None: by `batch_tokens` or the depth.
    """
    batch_tokens = pretrain.batch_tokens if rows is None else rows * config.context
    horizon = compute_horizon(config, batch_tokens, pretrain.steps)
    return rules.RunSize(config.width, count_law_parameters(config), horizon.tokens, horizon.batch_tokens)


def needs_examples(recipe: Recipe) -> bool:
    """Returns whether the batch of a recipe's pretraining, and so every open rate, is known once its text is prepared.

    Raises UserError if [pretrain] gives the batch twice.
    """
    return "pretrain" in recipe.stages and open_batch("pretrain", recipe.pretrain)


def derive_recipe(recipe: Recipe, config: ModelConfig | None = None, rows: int | None = None) -> Recipe:
    """Returns a recipe whose horizon, rates and weight decay are all given, and what depends on nothing else.

    Rates and weight decay stay open where the batch of pretraining is not known yet.

    Args:
        config: the model, where it is not the recipe's own: weights that were given.
        rows: of a step of pretraining, if its examples have decided them.

    Raises UserError as `compute_horizon` and `needs_examples`.
    """
    config, optimizer, pretrain = config or recipe.resolve_model(), recipe.optimizer, recipe.pretrain
    if optimizer.adapter_lr is None and recipe.adapter.method != "none":
        optimizer = replace(optimizer, adapter_lr=round_rate(rules.adapter_rate(config.width)))
        recipe = replace(recipe, optimizer=optimizer)
    size, is_decided = find_run_size(pretrain, config, rows), not needs_examples(recipe)
    if is_decided or rows is not None:
        recipe = _derive_rates(recipe, size)
    if is_decided and "pretrain" in recipe.stages:
        pretrain = replace(pretrain, batch_tokens=size.batch_tokens)
        if pretrain.steps is None and pretrain.num_epochs is None:
            pretrain = replace(pretrain, steps=size.tokens // size.batch_tokens)
        recipe = replace(recipe, pretrain=pretrain)
    for name in recipe.stages:
        steps = recipe.stage_config(name).steps
        if steps is not None:
            recipe = derive_warmup(recipe, name, steps)
    return recipe


def _derive_rates(recipe: Recipe, size: rules.RunSize) -> Recipe:
    """Returns the recipe with the learning rates and the weight decay of a run of this size."""
    optimizer, rates = recipe.optimizer, rules.role_rates(size, recipe.optimizer.matrix_optimizer)
    is_open = [role for role in RATES if getattr(optimizer, f"{role}_lr") is None]
    filled: dict[str, Any] = {f"{role}_lr": round_rate(rates[role]) for role in is_open}
    optimizer = replace(optimizer, **filled)
    if optimizer.weight_decay is None:
        # A given rate below the rule's does not raise the decay: at a rate near 0, weights have to stay as they are.
        rate = max(round_rate(rates["matrix"]), optimizer.matrix_lr or 0.0)
        optimizer = replace(optimizer, weight_decay=round_rate(rules.weight_decay(size, rate)))
    return replace(recipe, optimizer=optimizer)


def derive_warmup(recipe: Recipe, name: str, steps: int) -> Recipe:
    """Returns the recipe with the warm-up of a stage of `steps` steps."""
    table = recipe.stage_config(name)
    if table.warmup_steps is not None:
        return recipe
    return _replace_stage(recipe, name, warmup_steps=rules.warmup_steps(steps, recipe.optimizer.adam_betas[1]))


def derive_stage(
    recipe: Recipe, name: str, steps: int, batch_tokens: int, config: ModelConfig, rows: int | None = None
) -> Recipe:
    """Returns the recipe with warm-up and learning rate of a stage whose length is known.

    Args:
        batch_tokens: of a step; 0 for a stage whose rate does not depend on it (dpo, rl).
        config: the model.
        rows: of a step of pretraining, if its examples have decided them. While they have not, rates that follow from
            them stay open.
    """
    recipe = derive_warmup(recipe, name, steps)
    rows = batch_tokens // config.context if name == "pretrain" else rows
    size, rate = find_run_size(recipe.pretrain, config, rows), 1.0
    is_decided = rows is not None or not needs_examples(recipe)
    if is_decided:
        recipe = _derive_rates(recipe, size)
    if recipe.stage_config(name).learning_rate is not None:
        return recipe
    is_full = recipe.run.init_from is None and name == recipe.stages[0]  # from random weights: a pretraining
    is_full |= recipe.adapter.trains_in(name)  # its thin matrices start from zero, and have a rate of their own
    if isinstance(recipe.stage_config(name), RLConfig):
        rate = rules.rl_rate(config.width)
    elif name == "dpo":
        rate = rules.DPO_LR
    elif not is_full and not is_decided:
        return recipe
    elif not is_full and name == "midtrain":
        rate = rules.midtrain_rate(batch_tokens / size.batch_tokens)
    elif not is_full and name == "sft":
        rate = rules.sft_rate(steps * batch_tokens / size.tokens, batch_tokens / size.batch_tokens)
    return _replace_stage(recipe, name, learning_rate=round_rate(rate))


def derive_known(recipe: Recipe, lengths: Mapping[str, tuple[int, int]] | None = None) -> Recipe:
    """Returns the recipe with all that rules fill in before its data are read.

    lengths: (steps, tokens of a step) of stages that are known; None: those whose tables give both.
    """
    config = recipe.resolve_model()
    first = (lengths or {}).get("pretrain")
    rows = first[1] // config.context if first else None
    derived = derive_recipe(recipe, config, rows)
    for name in recipe.stages:
        table = derived.stage_config(name)
        steps, batch = table.steps, table.batch_tokens if isinstance(table, StageConfig) else 0
        if lengths is not None:
            steps, batch = lengths.get(name, (None, None))
        if steps is not None and batch is not None:
            derived = derive_stage(derived, name, steps, batch, config, rows)
    return derived


def list_derived(given: Recipe, derived: Recipe) -> list[Derived]:
    """Returns the fields that are open in `given` and filled in `derived`, in the order of a recipe."""
    found = []
    for table in ("optimizer", *derived.stages):
        before, after = (getattr(recipe, table) for recipe in (given, derived))
        for field, value in vars(after).items():
            number = rules.RULE_NUMBERS.get(f"{table}.{field}", rules.RULE_NUMBERS.get(field))
            if number is not None and getattr(before, field) is None and value is not None:
                found.append(Derived(f"{table}.{field}", value, number))
    return found


def round_rate(value: float) -> float:
    """Returns a rate to as many digits as a recipe shows."""
    return float(f"{value:.{DIGITS}g}")


def _replace_stage(recipe: Recipe, name: str, **values: Any) -> Recipe:
    tables: dict[str, Any] = {name: replace(recipe.stage_config(name), **values)}
    return replace(recipe, **tables)
