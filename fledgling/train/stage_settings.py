"""Settings that do not go together in a stage, or that no stage would follow. Start with `require_valid_settings`.

What follows from the recipe's tables alone is in `fledgling.config.unused_settings`; what only the tasks or the device
show is here.
"""

from __future__ import annotations

from pathlib import Path

from fledgling.config import Recipe, StageConfig, UserError
from fledgling.plan.optimizer_state import resolve_state
from fledgling.tasks.exam_names import exam_names


def require_valid_settings(recipe: Recipe, name: str) -> None:
    """Raises UserError where settings of stage `name` exclude one another, or a stated table affects no stage.

    A stage that has begun keeps a table without effect: its checkpoints name it.
    """
    require_weights_to_round(recipe, name)
    require_whole_weights(recipe, name)
    require_two_matrices(recipe, name)
    require_mtp_targets(recipe, name)
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


def require_two_matrices(recipe: Recipe, name: str) -> None:
    """Raises UserError for optimizer.tied_updates with model.tie_embeddings or with weights that are given."""
    updates = recipe.optimizer.tied_updates
    if not updates or name != "pretrain":
        return
    if recipe.resolve_model().tie_embeddings:
        raise UserError(
            f"optimizer.tied_updates={updates} unties embedding and head, and model.tie_embeddings keeps them one "
            "matrix: leave one out"
        )
    if recipe.run.init_from is not None:
        raise UserError(
            f"optimizer.tied_updates={updates} begins with one matrix, and run.init_from gives the weights of both: "
            "leave one out"
        )


def require_mtp_targets(recipe: Recipe, name: str) -> None:
    """Raises UserError for settings of multi-token prediction without effect, and for mtp_targets with a teacher."""
    table = recipe.stage_config(name)
    if not isinstance(table, StageConfig):
        return
    if table.mtp_targets and recipe.has_teacher(name):
        raise UserError(
            f"{name}.mtp_targets={table.mtp_targets}: a stage with a teacher predicts the next token alone; "
            "leave mtp_targets out, or the stage out of distill.stages"
        )
    if table.mtp_decay_steps and not table.mtp_targets:
        raise UserError(f"{name}.mtp_decay_steps={table.mtp_decay_steps} needs mtp_targets, such as 2")


def describe_unused_here(recipe: Recipe, name: str, device_kind: str, ranks: int) -> list[str]:
    """Returns one line for each stated setting that stage `name` does not read, given its exams, device and ranks.

    device_kind: "cpu", "cuda", ...
    """
    lines, table, state = [], recipe.stage_config(name), recipe.optimizer.state
    is_examined = exam_names(table, recipe.sft.mixture) or (name == "dpo" and recipe.dpo.trains_head)
    if f"{name}.eval_questions" in recipe.stated and not is_examined:
        given = f"{name}.eval_questions = {table.eval_questions}"
        lines.append(f"{given} is not read: nothing in {name}.mixture has an exam")
    if "optimizer.state" in recipe.stated and resolve_state(state, device_kind) != state:
        lines.append(f'optimizer.state = "{state}" is not read: a {device_kind.upper()} has no other memory')
    if "optimizer.zero_stage" in recipe.stated and ranks == 1:
        lines.append(f"optimizer.zero_stage = {recipe.optimizer.zero_stage} is not read: one rank shards nothing")
    return lines


def require_effect(recipe: Recipe) -> None:
    """Raises UserError for a teacher or an adapter that no stage uses, and for adapter.init_from without a method."""
    stages = ", ".join(recipe.stages)
    if recipe.adapter.method == "none" and "adapter.init_from" in recipe.stated:
        raise UserError(
            f'adapter.init_from={recipe.adapter.init_from}: adapter.method is "none", so that the stages would train '
            "all weights and no adapter: set adapter.method to lora, rslora or dora, or adapter.init_from=none"
        )
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
