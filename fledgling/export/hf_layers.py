"""Layers in config.json: which have a window, and which have no positions, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fledgling.config import ModelConfig, UserError
from fledgling.export.untrusted import check_value

LAYER_TYPES = {"sliding_attention": "S", "full_attention": "L"}
GEMMA_PATTERN = "sliding_window_pattern"
QUERY_SCALAR = "query_pre_attn_scalar"


def read_layers(
    family: str, window_rule: str, config_json: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the fields that say which layers have a window, and which have no positions.

    Args:
        window_rule: `OpenClass.window`.
        values: our sizes.

    Raises:
        UserError: naming the key that is not supported.
    """
    depth = values["depth"]
    fields: dict[str, Any] = {}
    rotated: Any = []
    if family == "smollm3":
        rotated = config_json.get("no_rope_layers")
        if rotated is None:
            interval = check_value("no_rope_layer_interval", config_json.get("no_rope_layer_interval", 4), int)
            rotated = [int((layer + 1) % interval != 0) for layer in range(depth)]
        if not isinstance(rotated, list) or len(rotated) != depth or set(map(str, rotated)) - {"0", "1"}:
            raise UserError(f"config.json: no_rope_layers is not a list of {depth} numbers 0 or 1")
        fields["rope_pattern"] = shorten_pattern("".join("NR"[int(value)] for value in rotated))
    window, types = config_json.get("sliding_window"), config_json.get("layer_types")
    if family == "phi3":  # its class does not look at the types of layers
        types = None
    uses = config_json.get("use_sliding_window", False) or (family == "smollm3" and types is not None)
    is_unused = family in ("qwen2", "qwen3", "smollm3") and not uses  # the other classes do not look at it
    if window is None or is_unused or window_rule == "no":
        return fields
    if types is None:
        first, every = config_json.get("max_window_layers", 28), 4
        if family == "gemma3":
            every = check_value(GEMMA_PATTERN, config_json.get(GEMMA_PATTERN, 6), int)
        pattern = {
            "all": "S" * depth,
            "from": "".join("S" if layer >= first else "L" for layer in range(depth)) if type(first) is int else "",
            "unrotated": "".join("L" if int(value) else "S" for value in rotated),
            "every": "".join("L" if (layer + 1) % every == 0 else "S" for layer in range(depth)),
        }[window_rule]
    elif not isinstance(types, list) or len(types) != depth or not all(str(one) in LAYER_TYPES for one in types):
        raise UserError(f"config.json: layer_types is not a list of {depth} of {', '.join(LAYER_TYPES)}")
    else:
        pattern = "".join(LAYER_TYPES[one] for one in types)
    if "S" in pattern:
        fields |= {
            "window_pattern": shorten_pattern(pattern),
            "window_size": check_value("sliding_window", window, int),
            "window_last_layer": True,
        }
    return fields


def shorten_pattern(pattern: str) -> str:
    """Returns the shortest beginning of a pattern that gives it when repeated; "" where all letters are L or R."""
    if not set(pattern) - {"L"} or not set(pattern) - {"R"}:
        return ""
    sizes = range(1, len(pattern) + 1)
    return next(pattern[:n] for n in sizes if (pattern[:n] * len(pattern))[: len(pattern)] == pattern)


def write_layers(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys that say which layers have a window, and which have no positions."""
    letters = ((config.window_pattern or "L") * config.depth)[: config.depth]
    types = [next(name for name, letter in LAYER_TYPES.items() if letter == one) for one in letters]
    values: dict[str, Any] = {"sliding_window": config.window_size if "S" in letters else None}
    if config.family == "smollm3":
        rotated = ((config.rope_pattern or "R") * config.depth)[: config.depth]
        values["no_rope_layers"] = [int(letter == "R") for letter in rotated]
    if config.family in ("mistral", "phi3"):
        if set(letters) == {"S", "L"}:
            raise UserError("this model has windows in some layers, and its class has them in all or none")
        return values
    if config.family in ("qwen2", "qwen3", "smollm3"):
        values |= {"use_sliding_window": "S" in letters, "max_window_layers": config.depth}
    if config.family == "gemma3":
        values |= {QUERY_SCALAR: config.head_width, "sliding_window": config.window_size or config.context}
        values["final_logit_softcapping"] = config.logit_softcap or None
    if config.family == "olmo2":
        return {}
    return values | {"layer_types": types}
