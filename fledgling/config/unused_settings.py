"""Which settings nothing reads, since another setting switches them off: the rank of an adapter without an adapter."""

from __future__ import annotations

from fledgling.config.recipe import Recipe

MUON_FIELDS = ("momentum", "newton_schulz", "newton_schulz_steps", "equilibrate", "normalize_update")
PPO_FIELDS = ("gamma", "gae_lambda", "value_weight", "value_clip")
FIELDS_OF_OBJECTIVES = {
    "target_margin": "simpo",
    "desirable_weight": "kto",
    "undesirable_weight": "kto",
}


def explain_unused(recipe: Recipe, table: str, field: str) -> str:
    """Returns why nothing reads `table.field`, as the setting that decides it and its value; "" where it is read."""
    if table == "adapter" and field != "method" and recipe.adapter.method == "none":
        return 'adapter.method is "none"'
    if (table, field) == ("optimizer", "adapter_lr") and recipe.adapter.method == "none":
        return 'adapter.method is "none"'
    if table == "optimizer" and field in MUON_FIELDS and recipe.optimizer.matrix_optimizer == "adamw":
        return 'optimizer.matrix_optimizer is "adamw"'
    if field == "mtp_decay_steps" and not getattr(recipe, table).mtp_targets:
        return f"{table}.mtp_targets is 0"
    if table == "distill" and field != "teacher" and not recipe.distill.teacher and recipe.rl.algorithm != "distill":
        return "there is no distill.teacher"
    if table == "dpo" and recipe.dpo.objective != FIELDS_OF_OBJECTIVES.get(field, recipe.dpo.objective):
        return f'dpo.objective is "{recipe.dpo.objective}"'
    if table == "rl" and field in PPO_FIELDS and recipe.rl.algorithm != "ppo":
        return f'rl.algorithm is "{recipe.rl.algorithm}"'
    if table == "rl" and field == "length_penalty_free_tokens" and not recipe.rl.length_penalty:
        return "rl.length_penalty is 0"
    return ""
