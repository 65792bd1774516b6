"""Counts the floating-point operations per token, in training and in decoding.

Each weight of a matrix costs 2 operations forward and 4 backward; attention adds its two products, scores and values,
over the attended keys. Per token, with a full window,

    6 (matrices + V E) + 12 L E T        depth 20, V 65,536, T 2,048: 3,491,758,080

Conventions: the embedding is a look-up and costs nothing; `full` attention counts the whole T x T square, as published
MFUs and ours do, although a causal kernel needs little more than half of it. `causal` counts
the (T + 1) / 2 keys that a token sees on average. Norms, activations and the softmax (well under 1 % of a block of
width 1,024) are not counted, as usual.
"""

from __future__ import annotations

from math import prod

from fledgling.config import AdapterConfig, ModelConfig
from fledgling.plan.adapter import adapter_shapes
from fledgling.plan.parameters import count_matrix_parameters

# Of the tokens of generated conversations, those of answers: the quickstart's fine-tuning had 1.90 M targets in 5.15 M
# tokens, 15 % of them text.
ANSWER_SHARE = 0.26


def mean_attended_keys(context: int, counted: str = "full", window_size: int | None = None) -> float:
    """Returns the attended keys per token that are counted, on average over a row of `context` tokens.

    counted: "full" or "causal", see above.
    window_size: of the layer, including the token itself; None for no window.
    """
    assert counted in ("full", "causal"), counted
    W = context if window_size is None else min(window_size, context)
    return W if counted == "full" else W - W * (W - 1) / (2 * context)  # the first W tokens see fewer


def total_attended_keys(config: ModelConfig, context: int, counted: str = "full") -> float:
    """Returns `mean_attended_keys` summed over the layers."""
    return sum(mean_attended_keys(context, counted, config.layer_window_size(layer)) for layer in range(config.depth))


def forward_flops(config: ModelConfig, context: int | None = None, counted: str = "full") -> dict[str, int]:
    """Returns the FLOPs of the forward pass of one token by component, and their `total`."""
    T = config.context if context is None else context
    L, E, Q, K = config.depth, config.width, config.attention_width, config.kv_heads * config.head_width
    counts = {
        "projections": 2 * L * (2 * E * Q + 2 * E * K),
        "attention": round(
            4 * Q * total_attended_keys(config, T, counted)
        ),  # scores and values: 2 products x 2 operations
        "feed_forward": 2 * L * (3 if config.is_gated else 2) * E * config.intermediate_size,
        "head": 2 * config.vocab_size * E,
    }
    return {"total": sum(counts.values()), **counts}


def training_flops(
    config: ModelConfig, context: int | None = None, counted: str = "full", adapter: AdapterConfig | None = None
) -> dict[str, int]:
    """Returns the FLOPs of forward and backward of one token by component: three times the forward pass.

    With an adapter a frozen matrix has no gradient of its own, twice its forward pass, and the adapter counts in full.
    """
    forward = forward_flops(config, context, counted)
    if adapter is None:
        return {name: 3 * count for name, count in forward.items()}
    counts = {name: (3 if name == "attention" else 2) * count for name, count in forward.items() if name != "total"}
    thin = sum(prod(shape) for shape in adapter_shapes(config, adapter).values() if len(shape) == 2)
    counts["adapter"] = 6 * thin
    return {"total": sum(counts.values()), **counts}


def training_flops_per_token(
    config: ModelConfig, context: int | None = None, adapter: AdapterConfig | None = None
) -> int:
    """Returns the FLOPs of forward and backward for one token of a row of `context` tokens (default: the model's)."""
    return training_flops(config, context, adapter=adapter)["total"]


def count_idle_head_flops(config: ModelConfig, generated: float, adapter: AdapterConfig | None = None) -> float:
    """Returns what the head does not compute, of a token's training, where only answers are learned.

    generated: the share of the rows that are generated conversations; of others, and of text, all tokens count.
    """
    return training_flops(config, adapter=adapter)["head"] * generated * (1 - ANSWER_SHARE)


def forward_flops_per_token(config: ModelConfig, context: int | None = None) -> int:
    """Returns the FLOPs of the forward pass alone for one token: a third of training's."""
    return forward_flops(config, context)["total"]


def decode_flops(config: ModelConfig, length: int) -> int:
    """Returns the FLOPs of one new token of a sequence of `length` tokens, the new one included."""
    return 2 * (count_matrix_parameters(config) + config.vocab_size * config.width) + round(
        4 * config.attention_width * total_attended_keys(config, length)
    )
