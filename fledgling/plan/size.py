"""How many parameters a model has, by component, from its configuration alone.

The one idea: a count is a formula, and a test holds the formula against the counted tensors. With an untied
head, a 4x feed-forward, no biases, no norm weights and as many key/value heads as query heads it is

    2 V C + 12 L C^2        V vocabulary, C width, L layers; depth 20 with V 65,536: 560,988,160

What it is not: it builds no model.
"""

from __future__ import annotations

from fledgling.model.config import ModelConfig


def parameters(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each component, and their `total`."""
    V, L, C = config.vocab_size, config.depth, config.width
    kv_width = config.kv_heads * config.head_width
    counts = {
        "embedding": V * C,
        "attention": L * (2 * C * C + 2 * C * kv_width),  # query and output; key and value
        "feed_forward": L * (3 if config.gated else 2) * C * config.hidden,
        "norms": 0,
        "head": V * C,
    }
    return {"total": sum(counts.values()), **counts}


def matrices(config: ModelConfig) -> int:
    """Return the parameters of the blocks' matrices: what Muon updates."""
    counts = parameters(config)
    return counts["attention"] + counts["feed_forward"]
