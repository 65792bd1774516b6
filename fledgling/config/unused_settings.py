"""Which settings nothing reads, since another setting switches them off: the rank of an adapter without an adapter.

`SWITCHES` is a table: the settings, and a function of the recipe that says what switches them off. A stage's rows are
in `STAGE_SWITCHES`, those of [model] in `unused_model_settings.py`. What settings change is compared with the tables in
tests/invariants/test_settings_that_change_nothing.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fledgling.config.distill import TEXT_STAGES
from fledgling.config.recipe import STAGES, DPOConfig, Recipe
from fledgling.config.toml import format_toml_value
from fledgling.config.unused_model_settings import explain_unused_model, has_no_scalars, is_embedding_the_head
from fledgling.config.variants import CRITIC_SETTINGS, OBJECTIVE_SETTINGS, OBJECTIVE_TRAITS

MUON_FIELDS = ("momentum", "newton_schulz", "newton_schulz_steps", "equilibrate", "normalize_update")
WEIGHTS_FIELDS = (  # of [optimizer]: of what a stage with an adapter does not train
    *("matrix_lr", "embedding_lr", "weight_decay", "cautious_weight_decay", "matrix_optimizer", "tied_updates"),
    *MUON_FIELDS,
)
VALUE_HEAD_FIELDS = ("head_lr", "scalar_lr")  # a critic and a reward model's score have these rates too
TEACHER_FIELDS = ("match", "weight", "temperature", "every", "until", "top_k")  # of text alone; RL reads the teacher
INIT_FIELDS = ("init_context", "init_rope")
# Of stages that a recipe leaves out: by the rules of rates; by exams, held-out and the tokenizer's text.
READ_OF_STAGES_LEFT_OUT = frozenset({"pretrain.batch_tokens", "pretrain.steps", "pretrain.mixture", "sft.mixture"})

MANY = 3  # settings

Reason = Callable[[Recipe], str]  # returns the setting that switches others off, and its value; "" while they are read


def describe_unused(recipe: Recipe) -> list[str]:
    """Returns one line for each setting that a user has stated and nothing reads, with the setting that decides it.

    More than MANY of one table for one reason share a line: those of a recipe whose stage is left out.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for name in sorted(recipe.stated):
        table, _, field = name.partition(".")
        if reason := explain_unused(recipe, table, field):
            value = format_toml_value(getattr(getattr(recipe, table), field))
            found.setdefault((table, reason), {})[field] = f"{name} = {value} is not read: {reason}"
    lines = []
    for (table, reason), fields in found.items():
        is_long = len(fields) > MANY
        lines += [f"[{table}] is not read ({', '.join(fields)}): {reason}"] if is_long else list(fields.values())
    return lines


def explain_unused(recipe: Recipe, table: str, field: str) -> str:
    """Returns why nothing reads `table.field`, as the setting that decides it and its value; "" where it is read."""
    if table == "model":
        return explain_unused_model(recipe, field)
    if table in STAGES:
        return _explain_stage(recipe, table, field)
    reasons = (reason(recipe) for name, names, reason in SWITCHES if name == table and field in names)
    return next((reason for reason in reasons if reason), "")


# ---- why: each returns "" while the settings are read ------------------------------------------------


def _without_adapter(recipe: Recipe) -> str:
    return 'adapter.method is "none"' if recipe.adapter.method == "none" else ""


def _without_adapted_stage(recipe: Recipe) -> str:
    return "" if any(map(recipe.adapter.trains_in, recipe.stages)) else "no stage is in adapter.stages"


def _with_adapter_everywhere(recipe: Recipe) -> str:
    adapted = all(map(recipe.adapter.trains_in, recipe.stages))
    return f'every stage is in adapter.stages, and adapter.method is "{recipe.adapter.method}"' if adapted else ""


def _with_adapter_and_no_value_head(recipe: Recipe) -> str:
    return "" if _trains_value_head(recipe) else _with_adapter_everywhere(recipe)


def _without_scalars(recipe: Recipe) -> str:
    is_unused = not _trains_value_head(recipe) and has_no_scalars(recipe)
    return 'model.norm is "rms", and no part has biases, gates or learned positions' if is_unused else ""


def _trains_value_head(recipe: Recipe) -> bool:
    scores = recipe.dpo.trains_head and "dpo" in recipe.stages
    return scores or (recipe.rl.uses_critic and "rl" in recipe.stages)


def _with_one_matrix(recipe: Recipe) -> str:
    """Returns why no parameter has the role of an embedding: it is the head, and has its rate."""
    is_head = recipe.run.init_from is None and is_embedding_the_head(recipe)
    return "model.tie_embeddings is true, and optimizer.head_lr is the rate of both" if is_head else ""


def _with_adamw(recipe: Recipe) -> str:
    return 'optimizer.matrix_optimizer is "adamw"' if recipe.optimizer.matrix_optimizer == "adamw" else ""


def _without_weight_decay(recipe: Recipe) -> str:
    return "optimizer.weight_decay is 0" if recipe.optimizer.weight_decay == 0 else ""


def _without_pretraining(recipe: Recipe) -> str:
    return "" if "pretrain" in recipe.stages else "pretrain is not among the stages"


def _without_teacher(recipe: Recipe) -> str:
    return "" if recipe.distill.teacher else "there is no distill.teacher"


def _without_taught_stage(recipe: Recipe) -> str:
    return "" if any(map(recipe.has_teacher, recipe.stages)) else "no stage is in distill.stages"


def _without_taught_text(recipe: Recipe) -> str:
    taught = [stage for stage in recipe.stages if stage in TEXT_STAGES and recipe.has_teacher(stage)]
    return "" if taught else "no stage that learns from text is in distill.stages"


def _without_init(recipe: Recipe) -> str:
    return "" if recipe.run.init_from else "there is no run.init_from"


def _without_init_context(recipe: Recipe) -> str:
    return "" if recipe.run.init_context else "there is no run.init_context"


def _with_init(recipe: Recipe) -> str:
    return "run.init_from brings its tokenizer" if recipe.run.init_from else ""


SWITCHES: tuple[tuple[str, Sequence[str], Reason], ...] = (  # table, its fields, what switches them off
    ("tokenizer", ("max_characters", "max_digits", "letter_tokens", "sources"), _with_init),
    ("adapter", ("rank", "alpha", "targets", "stages", "init_from", "quantization"), _without_adapter),
    ("adapter", ("rank", "alpha", "targets", "init_from", "quantization"), _without_adapted_stage),
    ("optimizer", ("adapter_lr",), _without_adapter),
    ("optimizer", ("adapter_lr",), _without_adapted_stage),
    ("optimizer", WEIGHTS_FIELDS, _with_adapter_everywhere),
    ("optimizer", VALUE_HEAD_FIELDS, _with_adapter_and_no_value_head),
    ("optimizer", ("embedding_lr",), _with_one_matrix),
    ("optimizer", ("scalar_lr",), _without_scalars),
    ("optimizer", MUON_FIELDS, _with_adamw),
    ("optimizer", ("cautious_weight_decay",), _without_weight_decay),
    ("optimizer", ("tied_updates",), _without_pretraining),
    ("distill", ("stages", *TEACHER_FIELDS), _without_teacher),
    ("distill", ("teacher", *TEACHER_FIELDS), _without_taught_stage),
    ("distill", TEACHER_FIELDS, _without_taught_text),
    ("run", INIT_FIELDS, _without_init),
    ("run", ("init_rope",), _without_init_context),
)


# ---- the tables of stages ----------------------------------------------------------------------------


def _explain_stage(recipe: Recipe, stage: str, field: str) -> str:
    """Returns why nothing reads a setting of a stage, "" where it is read."""
    name = f"{stage}.{field}"
    if stage not in recipe.stages and name not in READ_OF_STAGES_LEFT_OUT:
        return f"{stage} is not among the stages"
    table = recipe.stage_config(stage)
    reasons = [reason(table) for fields, reason in STAGE_SWITCHES if field in fields and hasattr(table, field)]
    if stage == "dpo":
        reasons.append(_explain_dpo(recipe.dpo, field))
    elif stage == "rl":
        reasons += [reason(table) for fields, reason in RL_SWITCHES if field in fields]
    return next((f"{stage}.{reason}" for reason in reasons if reason), "")


# Of all stages: fields, and a function of the table that returns the field that switches them off and its value.
STAGE_SWITCHES: tuple[tuple[Sequence[str], Callable[[Any], str]], ...] = (
    (("mtp_decay_steps",), lambda table: "" if table.mtp_targets else "mtp_targets is 0"),
    (("core_max_per_task",), lambda table: "" if table.core_every else "core_every is 0"),
    (("num_epochs",), lambda table: "" if table.steps is None else f"steps is {table.steps}"),
    (("final_lr_fraction",), lambda table: "" if table.decay_fraction else "decay_fraction is 0"),
    (("decay_fraction",), lambda table: "final_lr_fraction is 1" if table.final_lr_fraction == 1 else ""),
    (("mixture_unit",), lambda table: "" if _count_sources(table.mixture) > 1 else "mixture has one source"),
)


def _count_sources(mixture: dict[str, float]) -> int:
    return sum(weight > 0 for weight in mixture.values())


def _explain_dpo(dpo: DPOConfig, field: str) -> str:
    """Returns what switches off a setting of [dpo]: an objective without it, or one whose model writes no answers."""
    unused = OBJECTIVE_SETTINGS - OBJECTIVE_TRAITS[dpo.objective].settings
    if dpo.trains_head:
        unused |= {"mixture", "eval_every", "eval_questions", "sample_every"}
    return f'objective is "{dpo.objective}"' if field in unused else ""


RL_SWITCHES: tuple[tuple[frozenset[str], Callable[[Any], str]], ...] = (  # of [rl], likewise
    (CRITIC_SETTINGS, lambda rl: "" if rl.uses_critic else f'algorithm is "{rl.algorithm}"'),
    (frozenset({"drop_uniform_groups"}), lambda rl: _explain_kept_groups(rl)),
    (frozenset({"length_penalty", "length_penalty_free_tokens"}), lambda rl: _explain_penalty(rl)),
    (frozenset({"length_penalty_free_tokens"}), lambda rl: "" if rl.length_penalty else "length_penalty is 0"),
    (frozenset({"reward_timeout"}), lambda rl: _explain_timeout(rl)),
)


def _explain_kept_groups(rl: Any) -> str:
    """Returns what keeps groups of equal rewards whatever `drop_uniform_groups` is."""
    if rl.uses_critic or rl.uses_teacher:
        return f'algorithm is "{rl.algorithm}", which keeps all groups'
    kept_by = "kl_weight" if rl.kl_weight else "entropy_weight" if rl.entropy_weight else ""
    return f"{kept_by} keeps all groups" if kept_by else ""


def _explain_penalty(rl: Any) -> str:
    """Returns why no answer is penalized for its length, or why that teaches nothing."""
    if rl.uses_teacher:
        return f'algorithm is "{rl.algorithm}", which learns from no reward'
    free = rl.length_penalty_free_tokens
    is_free = free is not None and free >= rl.max_new_tokens
    return f"length_penalty_free_tokens is {free}, and rl.max_new_tokens {rl.max_new_tokens}" if is_free else ""


def _explain_timeout(rl: Any) -> str:
    has_own = any(":" in name.removeprefix("model:") for name in rl.rewards)
    return "" if has_own else "rewards has no reward of your own"
