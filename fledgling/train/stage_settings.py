"""Settings that do not go together in a stage, or that no stage would follow. Start with `require_valid_settings`."""

from __future__ import annotations

from pathlib import Path

from fledgling.config import Recipe, StageConfig, UserError


def require_valid_settings(recipe: Recipe, name: str) -> None:
    """Raises UserError where settings of stage `name` exclude one another, or a table is given that no stage follows.

    A stage that has begun keeps a table without effect: its checkpoints name it.
    """
    require_weights_to_round(recipe, name)
    require_whole_weights(recipe, name)
    if not (Path(recipe.run.out) / name / "metrics.jsonl").is_file():
        require_effect(recipe)


def require_weights_to_round(recipe: Recipe, name: str) -> None:
    """Raises UserError for a stage that rounds the weights in training and does not train them."""
    table = recipe.stage_config(name)
    if isinstance(table, StageConfig) and table.quantization_aware != "none" and recipe.adapter.trains_in(name):
        raise UserError(
            f'{name}.quantization_aware="{table.quantization_aware}" trains the weights, which [adapter] freezes: '
            f'leave one out, or set adapter.quantization="{table.quantization_aware}"'
        )


def require_whole_weights(recipe: Recipe, name: str) -> None:
    """Raises UserError for an adapter with sharded weights, on any number of ranks: another start may have more."""
    if recipe.optimizer.zero_stage == 3 and recipe.adapter.trains_in(name):
        raise UserError(
            f"optimizer.zero_stage=3 shards what is trained, and {name} trains an adapter of whole, frozen weights: "
            "set optimizer.zero_stage to 2"
        )


def require_effect(recipe: Recipe) -> None:
    """Raises UserError for a teacher, or an adapter, from which no stage of the recipe learns."""
    stages = ", ".join(recipe.stages)
    if recipe.distill.teacher is not None and not any(map(recipe.has_teacher, recipe.stages)):
        raise UserError(
            f"distill.stages={list(recipe.distill.stages)}: no stage of this recipe ({stages}) would learn from "
            "distill.teacher: name one, or leave the teacher out"
        )
    if recipe.adapter.method != "none" and not any(map(recipe.adapter.trains_in, recipe.stages)):
        raise UserError(
            f"adapter.stages={list(recipe.adapter.stages)}: no stage of this recipe ({stages}) would train the "
            'adapter: name one, or set adapter.method="none"'
        )
