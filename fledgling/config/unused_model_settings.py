"""Which settings of [model] nothing reads: the size of a window without a window, RoPE's with learned positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fledgling.config.errors import UserError
from fledgling.config.model import ModelConfig
from fledgling.config.recipe import Recipe

ROPE_FIELDS = (
    *("rope_base", "rope_direction", "partial_rotary_factor", "rope_type", "rope_factor", "rope_original_context"),
    *("rope_low_freq_factor", "rope_high_freq_factor", "rope_beta_fast", "rope_beta_slow", "rope_attention_factor"),
    "rope_local_base",
)
LLAMA3_FIELDS = ("rope_low_freq_factor", "rope_high_freq_factor")
YARN_FIELDS = ("rope_beta_fast", "rope_beta_slow", "rope_attention_factor")


def explain_unused_model(recipe: Recipe, field: str) -> str:
    """Returns why nothing reads `model.field`, as the setting that decides it and its value; "" where it is read.

    Of a model whose sizes do not fit together, which is an error elsewhere, it returns "" too. With `run.init_from`
    the weights decide [model]: one line names its ignored settings where they are read.
    """
    config = _resolve_model(recipe)
    if config is None:
        return ""
    reasons = (reason(config) for fields, reason in MODEL_SWITCHES if field in fields)
    return next((f"model.{reason}" for reason in reasons if reason), "")


def is_embedding_the_head(recipe: Recipe) -> bool:
    """Returns whether the recipe's model has one matrix for both and no other embedding."""
    config = _resolve_model(recipe)
    return config is not None and config.tie_embeddings and not config.value_embeddings


def has_no_scalars(recipe: Recipe) -> bool:
    """Returns whether the recipe's model has matrices alone: no bias, weight of a norm, gate or learned position."""
    config = _resolve_model(recipe)
    if config is None or config.positions == "learned" or config.norm != "rms":
        return False
    gates = (config.residual_scalars, config.value_gates, config.head_gates, config.num_skips)
    norms = config.qk_norm and config.qk_norm_weights != "none"
    return not any((config.bias, config.qkv_bias, config.mlp_bias, config.back_out, config.smear, norms, *gates))


def _resolve_model(recipe: Recipe) -> ModelConfig | None:
    """Returns the model that the recipe describes; None where it does not decide it, or its sizes do not fit."""
    if recipe.run.init_from is not None:
        return None
    try:
        return recipe.resolve_model()
    except UserError:
        return None


def _without_rope(config: ModelConfig) -> str:
    if any(map(config.has_rope, range(config.depth))):
        return ""
    return f'rope_pattern is "{config.rope_pattern}"' if config.positions == "rope" else 'positions is "learned"'


def _without_window(config: ModelConfig) -> str:
    return "" if "S" in config.window_pattern else f'window_pattern is "{config.window_pattern}"'


def _with_whole_window(config: ModelConfig) -> str:
    is_whole = "S" in config.window_pattern and config.window_size >= config.context
    return f"window_size is {config.window_size}, and model.context {config.context}" if is_whole else ""


def _without_other_frequencies(config: ModelConfig) -> str:
    """Returns why a type of RoPE changes no frequency."""
    is_same = config.rope_factor == 1 and not (config.rope_type == "yarn" and config.rope_attention_factor)
    return "rope_factor is 1" if is_same and config.rope_type != "default" else ""


def _unless_rope_type(*types: str) -> Callable[[ModelConfig], str]:
    return lambda config: "" if config.rope_type in types else f'rope_type is "{config.rope_type}"'


# Fields, and a function of the complete model that returns what switches them off, and its value.
MODEL_SWITCHES: tuple[tuple[Sequence[str], Callable[[ModelConfig], str]], ...] = (
    ((*ROPE_FIELDS, "rope_pattern"), lambda c: 'positions is "learned"' if c.positions == "learned" else ""),
    (ROPE_FIELDS, _without_rope),
    (("window_size", "window_last_layer", "rope_local_base"), _without_window),
    (("window_size", "window_last_layer"), _with_whole_window),
    (("rope_type", *LLAMA3_FIELDS, "rope_beta_fast", "rope_beta_slow"), _without_other_frequencies),
    (("rope_factor", "rope_original_context"), _unless_rope_type("linear", "ntk", "yarn", "llama3")),
    (LLAMA3_FIELDS, _unless_rope_type("llama3")),
    (YARN_FIELDS, _unless_rope_type("yarn")),
    (("embedding_multiplier",), lambda c: "embedding_norm is true" if c.embedding_norm else ""),
    (("qk_norm_weights",), lambda c: "" if c.qk_norm else "qk_norm is false"),
    (("preset",), lambda c: "" if c.family == "fledgling" else f'family is "{c.family}"'),
    (("skip_scalars",), lambda c: "" if c.depth >= 4 else f"depth is {c.depth}"),
)
