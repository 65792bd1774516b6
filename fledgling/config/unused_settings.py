"""Which settings nothing reads, since another setting switches them off: the rank of an adapter without an adapter."""

from __future__ import annotations

from fledgling.config.recipe import STAGES, Recipe, RLConfig
from fledgling.config.toml import format_toml_value
from fledgling.config.variants import CRITIC_SETTINGS, OBJECTIVE_SETTINGS, OBJECTIVE_TRAITS

MUON_FIELDS = ("momentum", "newton_schulz", "newton_schulz_steps", "equilibrate", "normalize_update")
INIT_FIELDS = ("init_context", "init_rope")
# Of stages that a recipe leaves out: by the rules of rates; by exams and the tokenizer's text.
READ_OF_STAGES_LEFT_OUT = frozenset({"pretrain", "sft.mixture"})


def describe_unused(recipe: Recipe) -> list[str]:
    """Returns one line for each setting that a user has stated and nothing reads, with the setting that decides it."""
    lines = []
    for name in sorted(recipe.stated):
        table, _, field = name.partition(".")
        if reason := explain_unused(recipe, table, field):
            value = getattr(getattr(recipe, table), field)
            lines.append(f"{name} = {format_toml_value(value)} is not read: {reason}")
    return lines


def explain_unused(recipe: Recipe, table: str, field: str) -> str:
    """Returns why nothing reads `table.field`, as the setting that decides it and its value; "" where it is read."""
    if table in STAGES:
        return _explain_stage(recipe, table, field)
    if (table == "adapter" and field != "method") or (table, field) == ("optimizer", "adapter_lr"):
        if recipe.adapter.method == "none":
            return 'adapter.method is "none"'
        if field != "stages" and not any(recipe.adapter.trains_in(stage) for stage in recipe.stages):
            return "no stage is in adapter.stages"
    if table == "optimizer" and field in MUON_FIELDS and recipe.optimizer.matrix_optimizer == "adamw":
        return 'optimizer.matrix_optimizer is "adamw"'
    if table == "distill" and not recipe.rl.uses_teacher:
        if field != "teacher" and not recipe.distill.teacher:
            return "there is no distill.teacher"
        if field != "stages" and not any(recipe.has_teacher(stage) for stage in recipe.stages):
            return "no stage is in distill.stages"
    if table == "run" and field in INIT_FIELDS and recipe.run.init_from is None:
        return "there is no run.init_from"
    return ""


def _explain_stage(recipe: Recipe, stage: str, field: str) -> str:
    """Returns why nothing reads a setting of a stage, "" where it is read."""
    table = recipe.stage_config(stage)
    if field == "mtp_decay_steps" and not getattr(table, "mtp_targets", 0):
        return f"{stage}.mtp_targets is 0"
    if field == "core_max_per_task" and not getattr(table, "core_every", 0):
        return f"{stage}.core_every is 0"
    if field == "num_epochs" and table.steps is not None and stage != "pretrain":
        return f"{stage}.steps is {table.steps}"
    if field == "final_lr_fraction" and not table.decay_fraction:
        return f"{stage}.decay_fraction is 0"
    if stage == "dpo" and field in OBJECTIVE_SETTINGS - OBJECTIVE_TRAITS[recipe.dpo.objective].settings:
        return f'dpo.objective is "{recipe.dpo.objective}"'
    if stage == "rl" and (reason := _explain_rl(recipe.rl, field)):
        return reason
    is_read = stage in recipe.stages or not READ_OF_STAGES_LEFT_OUT.isdisjoint((stage, f"{stage}.{field}"))
    return "" if is_read else f"{stage} is not among the stages"


def _explain_rl(rl: RLConfig, field: str) -> str:
    """Returns why nothing reads a setting of [rl], "" where it is read."""
    if field in CRITIC_SETTINGS and not rl.uses_critic:
        return f'rl.algorithm is "{rl.algorithm}"'
    if field == "length_penalty_free_tokens" and not rl.length_penalty:
        return "rl.length_penalty is 0"
    if field == "reward_timeout" and not any(":" in name.removeprefix("model:") for name in rl.rewards):
        return "rl.rewards has no reward of your own"
    if field == "drop_uniform_groups" and (rl.kl_weight or rl.entropy_weight):
        return f"rl.{'kl_weight' if rl.kl_weight else 'entropy_weight'} keeps all groups"
    return ""
