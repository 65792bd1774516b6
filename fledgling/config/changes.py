"""What happens to a setting that is changed when a run is resumed: it takes effect, is rejected, ignored or not read.

`compare_recipes` compares the recipe that is asked for with the one that a checkpoint was saved with, field by field.
A change of what the weights, the optimizer's state or the order of the data follow from is rejected; a change of what
only concerns finished work is ignored, and one that another setting switches off is not read (`unused_settings.py`).
Every field of a recipe has a rule here, and tests/config/test_changes.py fails for one without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Any, Literal

from fledgling.config.recipe import STAGES, Recipe
from fledgling.config.toml import format_toml_value
from fledgling.config.unused_settings import explain_unused

Outcome = Literal["takes effect", "rejected", "ignored", "not read"]
MAX_SHOWN = 40  # characters of a value in the table
SUPERVISED = ("pretrain", "midtrain", "sft")


@dataclass(frozen=True)
class Rule:
    """The outcome of a changed field when its stage is resumed, and why.

    between_stages: the outcome when the next stage starts from the weights of the one before; None: the same.
    """

    outcome: Outcome
    reason: str
    between_stages: Outcome | None = None


@dataclass(frozen=True)
class ChangedSetting:
    """One field whose value differs: its name ("model.depth"), both values in TOML's notation, and what happens."""

    name: str
    saved: str
    wanted: str
    outcome: Outcome
    reason: str


NEXT_STEP_RULE = Rule("takes effect", "from the next step on")
NEXT_EVAL_RULE = Rule("takes effect", "from the next evaluation or save on")
PLACEMENT_RULE = Rule("takes effect", "it says where and how the run computes")
PLAN_ONLY_RULE = Rule("takes effect", "only `plan` reads it")
WEIGHTS = Rule("rejected", "the weights were made with it")
OPTIMIZER_STATE_RULE = Rule("rejected", "the optimizer's state has other tensors", "takes effect")
ADAPTER = Rule("rejected", "the stage's adapter was made with it", "takes effect")
DATA_ORDER_RULE = Rule("rejected", "the order of the data follows from it", "takes effect")
TOKENIZER = Rule("rejected", "the run's tokenizer and weights were made with it")
TOKENIZER_TEXT = Rule("ignored", "the run's tokenizer is trained already")
LABEL_RULE = Rule("takes effect", "a label")

OPEN_MODEL_FIELDS = (
    *(
        "head_dim",
        "qkv_bias",
        "mlp_bias",
        "qk_norm_weights",
        "norm_placement",
        "parallel_residual",
        "embedding_multiplier",
    ),
    *("partial_rotary_factor", "rope_pattern", "rope_local_base", "rope_type", "rope_factor", "rope_original_context"),
    *("rope_low_freq_factor", "rope_high_freq_factor", "rope_beta_fast", "rope_beta_slow", "rope_attention_factor"),
    "window_last_layer",
)
OPTIONAL_MODEL_FIELDS = (
    *("residual_scalars", "value_gates", "head_gates", "exclusive_attention", "skip_scalars", "back_out", "smear"),
    "logit_shift",
)
INIT = Rule("ignored", "the run has begun from its initial weights")
TOP_RULES = {
    "name": LABEL_RULE,
    "description": LABEL_RULE,
    "seed": Rule("rejected", "the weights and the order of the data of every stage follow from it"),
    "stages": Rule("takes effect", "for the stages that are not done"),
}
TABLE_RULES: dict[str, dict[str, Rule]] = {
    "tokenizer": {
        "vocab_size": TOKENIZER,
        "max_digits": TOKENIZER,
        "letter_tokens": TOKENIZER,
        "max_characters": TOKENIZER_TEXT,
        "sources": TOKENIZER_TEXT,
    },
    "model": {
        "vocab_size": WEIGHTS,
        "depth": WEIGHTS,
        "width": WEIGHTS,
        "heads": WEIGHTS,
        "kv_heads": WEIGHTS,
        "context": Rule("rejected", "the weights and the rows of the data were made with it"),
        "intermediate_size": WEIGHTS,
        "logit_softcap": WEIGHTS,
        "rope_base": WEIGHTS,
        "norm_eps": WEIGHTS,
        "family": WEIGHTS,
        "preset": WEIGHTS,
        "norm": WEIGHTS,
        "positions": WEIGHTS,
        "rope_direction": WEIGHTS,
        "activation": WEIGHTS,
        "bias": WEIGHTS,
        "tie_embeddings": WEIGHTS,
        "qk_norm": WEIGHTS,
        "embedding_norm": WEIGHTS,
        "flash_norm": WEIGHTS,
        "value_embeddings": WEIGHTS,
        "window_pattern": WEIGHTS,
        "window_size": WEIGHTS,
        **dict.fromkeys(OPTIONAL_MODEL_FIELDS, WEIGHTS),
        **dict.fromkeys(OPEN_MODEL_FIELDS, WEIGHTS),
    },
    "optimizer": {
        "matrix_lr": NEXT_STEP_RULE,
        "embedding_lr": NEXT_STEP_RULE,
        "head_lr": NEXT_STEP_RULE,
        "scalar_lr": NEXT_STEP_RULE,
        "adapter_lr": NEXT_STEP_RULE,
        "adam_betas": NEXT_STEP_RULE,
        "adam_eps": NEXT_STEP_RULE,
        "momentum": NEXT_STEP_RULE,
        "weight_decay": NEXT_STEP_RULE,
        "cautious_weight_decay": NEXT_STEP_RULE,
        "matrix_optimizer": OPTIMIZER_STATE_RULE,
        "newton_schulz": NEXT_STEP_RULE,
        "newton_schulz_steps": NEXT_STEP_RULE,
        "equilibrate": NEXT_STEP_RULE,
        "normalize_update": NEXT_STEP_RULE,
        "tied_updates": Rule("rejected", "embedding and head were one matrix for that many updates", "takes effect"),
        "zero_stage": PLACEMENT_RULE,
        "state": NEXT_STEP_RULE,
        "deterministic": PLACEMENT_RULE,
    },
    "adapter": {
        "method": ADAPTER,
        "rank": ADAPTER,
        "alpha": ADAPTER,
        "targets": ADAPTER,
        "quantization": ADAPTER,
        "stages": ADAPTER,
        "init_from": Rule("ignored", "the adapter is trained already", "takes effect"),
    },
    "distill": {
        "teacher": Rule("takes effect", "a teacher whose predictions differ is rejected"),
        "stages": NEXT_STEP_RULE,
        "match": NEXT_STEP_RULE,
        "weight": NEXT_STEP_RULE,
        "temperature": NEXT_STEP_RULE,
        "every": NEXT_STEP_RULE,
        "until": NEXT_STEP_RULE,
        "top_k": NEXT_STEP_RULE,
    },
    "run": {
        "out": Rule("takes effect", "a run is where its directory is"),
        **dict.fromkeys(("init_from", "init_context", "init_rope"), INIT),
        "device": PLACEMENT_RULE,
        "dtype": NEXT_STEP_RULE,
        "compile": PLACEMENT_RULE,
        "fp8": NEXT_STEP_RULE,
        "recompute": PLACEMENT_RULE,
        "threads": PLACEMENT_RULE,
        "max_rollbacks": NEXT_STEP_RULE,
        "loggers": PLACEMENT_RULE,
        "data_dir": PLACEMENT_RULE,
        "hardware": PLAN_ONLY_RULE,
        "ranks": PLAN_ONLY_RULE,
    },
}
LOOP_RULES = {
    "steps": Rule("takes effect", "the schedule and the end follow it"),
    "num_epochs": Rule("takes effect", "the schedule and the end follow it"),
    "micro_batch_size": Rule("ignored", "a stage keeps its micro-batches, or takes smaller ones", "takes effect"),
    "learning_rate": NEXT_STEP_RULE,
    "warmup_steps": NEXT_STEP_RULE,
    "decay_fraction": NEXT_STEP_RULE,
    "final_lr_fraction": NEXT_STEP_RULE,
    "eval_every": NEXT_EVAL_RULE,
    "eval_questions": NEXT_EVAL_RULE,
    "sample_every": NEXT_EVAL_RULE,
    "save_every": NEXT_EVAL_RULE,
    "keep_checkpoints": NEXT_EVAL_RULE,
}
SUPERVISED_RULES = {
    **LOOP_RULES,
    "mixture": DATA_ORDER_RULE,
    "batch_tokens": DATA_ORDER_RULE,
    "examples_per_step": DATA_ORDER_RULE,
    "batch_warmup_steps": DATA_ORDER_RULE,
    "context_warmup_steps": DATA_ORDER_RULE,
    "mtp_targets": NEXT_STEP_RULE,
    "mtp_decay_steps": NEXT_STEP_RULE,
    "mixture_unit": DATA_ORDER_RULE,
    "train_on": NEXT_STEP_RULE,
    "quantization_aware": NEXT_STEP_RULE,
    "core_every": NEXT_EVAL_RULE,
    "core_max_per_task": NEXT_EVAL_RULE,
}
DPO_RULES = {
    **LOOP_RULES,
    "mixture": NEXT_EVAL_RULE,
    "objective": Rule("rejected", "the pairs and the trained parameters depend on it", "takes effect"),
    "pairs": DATA_ORDER_RULE,
    "batch_size": DATA_ORDER_RULE,
    "beta": NEXT_STEP_RULE,
    "target_margin": NEXT_STEP_RULE,
    "desirable_weight": NEXT_STEP_RULE,
    "undesirable_weight": NEXT_STEP_RULE,
}
RL_RULES = {
    **LOOP_RULES,
    "mixture": NEXT_EVAL_RULE,
    "algorithm": Rule("rejected", "the critic and its optimizer's state depend on it", "takes effect"),
    "tasks": DATA_ORDER_RULE,
    "rewards": NEXT_STEP_RULE,
    "reward_timeout": NEXT_STEP_RULE,
    "length_penalty": NEXT_STEP_RULE,
    "length_penalty_free_tokens": NEXT_STEP_RULE,
    "prompts_per_round": DATA_ORDER_RULE,
    "group_size": DATA_ORDER_RULE,
    "stale_rounds": DATA_ORDER_RULE,
    "epochs": DATA_ORDER_RULE,
    "minibatches": DATA_ORDER_RULE,
    "clip_ratio": NEXT_STEP_RULE,
    "clip_ratio_high": NEXT_STEP_RULE,
    "kl_weight": NEXT_STEP_RULE,
    "kl_target": NEXT_STEP_RULE,
    "entropy_weight": NEXT_STEP_RULE,
    "temperature": NEXT_STEP_RULE,
    "max_new_tokens": NEXT_STEP_RULE,
    "advantage_normalization": NEXT_STEP_RULE,
    "loss_normalization": NEXT_STEP_RULE,
    "drop_uniform_groups": NEXT_STEP_RULE,
    "gamma": NEXT_STEP_RULE,
    "gae_lambda": NEXT_STEP_RULE,
    "value_weight": NEXT_STEP_RULE,
    "value_clip": NEXT_STEP_RULE,
}
# Fields that rules fill where a recipe leaves them open: a resumed run keeps the values that it ran with.
DERIVED_FIELDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr", "weight_decay"),
    **dict.fromkeys(STAGES, ("learning_rate", "warmup_steps")),
    "pretrain": ("learning_rate", "warmup_steps", "batch_tokens", "steps"),
}
STAGE_RULES = {**dict.fromkeys(SUPERVISED, SUPERVISED_RULES), "dpo": DPO_RULES, "rl": RL_RULES}


def find_rule(table: str, field: str) -> Rule:
    """Returns the rule of `table.field`, or of a field outside of tables where `table` is empty."""
    if not table:
        return TOP_RULES[field]
    return (STAGE_RULES[table] if table in STAGES else TABLE_RULES[table])[field]


def list_fields(recipe: Recipe) -> list[tuple[str, str, Any]]:
    """Returns (table, field, value) of every field of a recipe; the table is empty for those outside of tables."""
    listed: list[tuple[str, str, Any]] = []
    for entry in fields(recipe):
        if entry.metadata.get("internal"):
            continue
        value = getattr(recipe, entry.name)
        if hasattr(value, "__dataclass_fields__"):
            listed += [(entry.name, inner.name, getattr(value, inner.name)) for inner in fields(value)]
        else:
            listed.append(("", entry.name, value))
    return listed


def compare_recipes(
    saved: Recipe, wanted: Recipe, stage: str, done: Iterable[str], is_resumed: bool, step: int = 0, vocab_size: int = 0
) -> list[ChangedSetting]:
    """Returns the fields in which `wanted` differs from `saved`, the recipe of the checkpoint that is loaded.

    Args:
        stage: the stage that is started.
        done: the stages that have finished, whose tables concern nothing any more.
        is_resumed: whether the checkpoint is of this stage; else it is of the stage before.
        step: the checkpoint's.
        vocab_size: of the tokenizer, with which open fields of [model] are filled in: a value that a recipe states and
            the same value derived are no difference.
    """
    changed = []
    complete = [recipe.model.resolve(vocab_size or 256) for recipe in (saved, wanted)]
    for (table, field, before), (_, _, after) in zip(list_fields(saved), list_fields(wanted), strict=True):
        if _make_canonical(before) == _make_canonical(after) or (table, field) == ("run", "out"):
            continue
        if table == "model" and getattr(complete[0], field) == getattr(complete[1], field):
            continue
        rule = find_rule(table, field)
        outcome: Outcome = rule.outcome if is_resumed or rule.between_stages is None else rule.between_stages
        reason = rule.reason if outcome == rule.outcome else f"{stage} starts with it"
        if table in STAGES and (table != stage or stage in done):
            outcome, reason = ("ignored", f"{table} is done") if table in done else ("takes effect", f"in {table}")
        elif table == stage and is_resumed and field == "steps" and after is not None and after <= step:
            outcome, reason = "rejected", f"the checkpoint has {step} steps already"
        elif table == stage and is_resumed and field == "micro_batch_size" and _is_smaller(after, before):
            outcome, reason = NEXT_STEP_RULE.outcome, NEXT_STEP_RULE.reason
        elif (
            (table, field) == ("rl", "kl_weight") and table == stage and is_resumed and wanted.rl.kl_target is not None
        ):
            outcome, reason = "ignored", "rl.kl_target has adapted it since"
        unused = explain_unused(wanted, table, field)
        if unused and explain_unused(saved, table, field) and outcome != "ignored":
            outcome, reason = "not read", unused
        name = f"{table}.{field}" if table else field
        changed.append(ChangedSetting(name, *_show_difference(before, after), outcome, reason))
    return changed


def keep_derived(saved: Recipe, wanted: Recipe) -> Recipe:
    """Returns `wanted` with the saved values of derived fields that it leaves open."""
    for table, names in DERIVED_FIELDS.items():
        before, after = getattr(saved, table), getattr(wanted, table)
        kept: dict[str, Any] = {name: getattr(before, name) for name in names if getattr(after, name) is None}
        if table == "pretrain" and (after.num_epochs is not None or after.examples_per_step is not None):
            kept = {name: value for name, value in kept.items() if name not in ("batch_tokens", "steps")}
        tables: dict[str, Any] = {table: replace(after, **kept)}
        wanted = replace(wanted, **tables)
    return wanted


def keep_ignored(saved: Recipe, wanted: Recipe, changed: Iterable[ChangedSetting]) -> Recipe:
    """Returns `wanted` with the saved values of the fields that are ignored: the recipe that really runs."""
    for setting in changed:
        if setting.outcome != "ignored":
            continue
        table, _, field = setting.name.rpartition(".")
        source, target = (getattr(recipe, table) if table else recipe for recipe in (saved, wanted))
        kept: dict[str, Any] = {field: getattr(source, field)}
        wanted = replace(wanted, **({table: replace(target, **kept)} if table else kept))
    return wanted


def format_changes(changed: Iterable[ChangedSetting]) -> list[str]:
    """Returns the lines of a table: setting, saved and wanted value, what happens and why."""
    rows = [("setting", "saved", "wanted", "what happens")]
    rows += [(c.name, c.saved, c.wanted, f"{c.outcome}: {c.reason}") for c in changed]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])) for row in rows]


def _is_smaller(wanted: int | None, saved: int | None) -> bool:
    return wanted is not None and saved is not None and wanted < saved


def _make_canonical(value: Any) -> Any:
    """Returns a value that compares as the run does: the sources of a mixture are used in their order."""
    return list(value.items()) if isinstance(value, Mapping) else value


def _show_difference(before: Any, after: Any) -> tuple[str, str]:
    """Returns two values as in a recipe: of tables the entries that differ, of long texts what follows their beginning.

    What is still long is cut.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping) and {*before.items()} != {*after.items()}:
        same = {key for key in before if key in after and before[key] == after[key]}
        before, after = ({key: item for key, item in table.items() if key not in same} for table in (before, after))
    texts = ["not set" if value is None else format_toml_value(value) for value in (before, after)]
    if max(map(len, texts)) > MAX_SHOWN:
        first_difference = next(n for n, (a, b) in enumerate(zip_longest(*texts)) if a != b)
        start = max(0, first_difference - MAX_SHOWN // 4)
        texts = [f"...{text[start:]}" if start else text for text in texts]
    first, second = (text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..." for text in texts)
    return first, second
