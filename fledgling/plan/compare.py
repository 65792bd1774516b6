"""Decoders side by side: what a block of each family holds, and what that makes in all.

The one idea: GPT's feed-forward is two matrices of H/E = 4, Llama's three of 2.66 to 3.5, so a block of either has
about 12 E^2 parameters; the rest of the difference is embeddings, positions, biases and norms.

Hidden widths as published: GPT-2 4 E; Llama 2 7B 11,008 / 4,096 = 2.69; Llama 3 8B 14,336 / 4,096 = 3.5.
"""

from __future__ import annotations

from typing import Any

from fledgling.config import ModelTable
from fledgling.model.config import FAMILIES, ModelConfig, from_table
from fledgling.plan import flops
from fledgling.plan.size import formula, parameters


def compare(depths: tuple[int, ...], vocab_size: int, context: int) -> list[dict[str, Any]]:
    """Return one entry a depth and family, our own first: what a block holds, and the counts."""
    return [
        describe(from_table(ModelTable(depth=depth, context=context, family=family), vocab_size))
        for depth in depths
        for family in FAMILIES
    ]


def describe(config: ModelConfig) -> dict[str, Any]:
    """Return what a block of this model holds, its parameters by component and its formula."""
    counts, (terms, simple) = parameters(config), formula(config)
    block = sum(counts[name] for name in ("attention", "feed_forward", "norms")) // config.depth
    words = {"rms": "RMSNorm without weights", "rms_weighted": "RMSNorm", "layer": "LayerNorm"}
    activation = {"relu2": "ReLU^2", "gelu": "GELU", "swiglu": "SwiGLU"}[config.activation]
    return {
        "family": config.family,
        "depth": config.depth,
        "width": config.width,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "hidden": config.hidden,
        "hidden_ratio": config.hidden / config.width,
        "block": {
            "positions": {"rope": "rotary", "learned": "learned, added once"}[config.positions],
            "norms": f"2 x {words[config.norm]}" + (", queries and keys normalized" if config.qk_norm else ""),
            "attention_matrices": 4,
            "feed_forward_matrices": 3 if config.gated else 2,
            "activation": activation,
            "biases": config.bias,
            "parameters": block,
            "parameters_per_width_squared": block / config.width**2,
        },
        "head": "tied to the embedding" if config.tied else "its own matrix",
        "parameters": counts,
        "formula": terms,
        "simplified": simple,
        "flops_per_token": flops.per_token(config),
    }
