"""RoPE in config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` of older files, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fledgling.config import ModelConfig, UserError
from fledgling.export.untrusted import check_value

FIELDS = {  # key of rope_parameters: our field, and its type
    "factor": ("rope_factor", float),
    "original_max_position_embeddings": ("rope_original_context", int),
    "low_freq_factor": ("rope_low_freq_factor", float),
    "high_freq_factor": ("rope_high_freq_factor", float),
    "beta_fast": ("rope_beta_fast", float),
    "beta_slow": ("rope_beta_slow", float),
    "attention_factor": ("rope_attention_factor", float),
}
PARAMETERS_BY_TYPE = {  # which of them a type reads
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}
REQUIRED_BY_TYPE = {"linear": ("factor",), "yarn": ("factor",), "llama3": PARAMETERS_BY_TYPE["llama3"], "default": ()}


def read_rope(
    config_json: Mapping[str, Any], theta: float, theta_key: str = "rope_theta", local_theta: float | None = None
) -> dict[str, Any]:
    """Returns our fields of RoPE: base, scaling, `partial_rotary_factor`, and the base of layers with a window.

    Args:
        config_json: the contents of config.json.
        theta: the class's default.
        theta_key: where files without `rope_parameters` have it.
        local_theta: default of layers with a window, in classes that do not scale them; 0: the theta of the others.

    Raises:
        UserError: a type is not supported, or lacks a number; YaRN's mscale, mscale_all_dim or truncate = false; two
            tables, or one of another form than the class has.
    """
    if config_json.get("rope_parameters") and config_json.get("rope_scaling"):
        raise UserError("config.json: it has rope_parameters and rope_scaling; remove the one that is not meant")
    where = "rope_parameters" if config_json.get("rope_parameters") else "rope_scaling"
    rope = config_json.get(where) or {}
    if not isinstance(rope, dict):
        raise UserError(f"config.json: {where} is {str(rope)[:60]!r}; expected a table")
    kinds = [rope.get(kind) for kind in ("full_attention", "sliding_attention")]
    whole, local = kinds if any(isinstance(kind, dict) for kind in kinds) else (rope, None)
    if local_theta is not None and rope is whole and rope:
        expected = "full_attention and sliding_attention" if where == "rope_parameters" else "rope_type"
        if where == "rope_parameters" or "rope_type" not in rope:
            given = ", ".join(map(str, rope))[:80]
            raise UserError(f"config.json: {where} has the keys {given}; this class expects {expected} in it")
    whole = whole if isinstance(whole, dict) else {}
    kind = whole.get("rope_type", whole.get("type", "default"))
    if not isinstance(kind, str) or kind not in PARAMETERS_BY_TYPE:
        raise UserError(
            f"config.json: {where} has the type {str(kind)[:40]!r}; supported are {', '.join(PARAMETERS_BY_TYPE)} "
            "(dynamic and longrope change with the length of a text)"
        )
    given = whole.get("rope_theta", config_json.get(theta_key, theta))
    fields: dict[str, Any] = {"rope_base": check_value("rope_theta", given, float), "rope_type": kind}
    share = whole.get("partial_rotary_factor", config_json.get("partial_rotary_factor"))
    if share is not None:
        fields["partial_rotary_factor"] = check_value("partial_rotary_factor", share, float)
    for key in PARAMETERS_BY_TYPE[kind]:
        if whole.get(key) is not None:
            fields[FIELDS[key][0]] = check_value(f"{where}.{key}", whole[key], FIELDS[key][1])
        elif key in REQUIRED_BY_TYPE[kind]:
            raise UserError(f"config.json: {where} of type {kind} has no {key}")
    for key in ("mscale", "mscale_all_dim"):
        if kind == "yarn" and whole.get(key) is not None:
            raise UserError(f"config.json: {where}.{key} is {str(whole[key])[:40]!r}, which is not supported")
    if kind == "yarn" and whole.get("truncate") is False:
        raise UserError(f"config.json: {where}.truncate is false, which is not supported; expected true")
    if kind != "default" and "rope_original_context" not in fields:
        context = config_json.get("original_max_position_embeddings", config_json.get("max_position_embeddings"))
        fields["rope_original_context"] = check_value("max_position_embeddings", context, int)
    local = local if isinstance(local, dict) else {}
    if local.get("rope_type", "default") != "default":
        raise UserError("config.json: rope_parameters.sliding_attention is scaled, which is not supported")
    if local_theta is not None:
        given = local.get("rope_theta", config_json.get("rope_local_base_freq", local_theta or fields["rope_base"]))
        fields["rope_local_base"] = check_value("rope_theta", given, float)
    return fields


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Returns the contents of `rope_parameters` of layers with full attention.

    `read_rope` reads them back, except the base of layers with a window (`rope_local_base`), which is not written.

    Raises UserError for a type that no class has.
    """
    if config.rope_type not in PARAMETERS_BY_TYPE:
        raise UserError(f"this model's rope_type is {config.rope_type!r}, and no class of transformers has it")
    rope: dict[str, Any] = {"rope_type": config.rope_type, "rope_theta": config.rope_base}
    for key in PARAMETERS_BY_TYPE[config.rope_type]:
        value = config.trained_context if key == "original_max_position_embeddings" else getattr(config, FIELDS[key][0])
        if key != "attention_factor" or value:
            rope[key] = value
    if config.partial_rotary_factor != 1.0 or config.family == "gpt_neox":  # whose default is .25
        rope["partial_rotary_factor"] = config.partial_rotary_factor
    return rope
