"""How many parameters a model has, by component, from its configuration alone.

The one idea: a count is a formula, and a law holds the formula against the counted tensors. For every family

    embeddings + positions + layers x (attention + feed-forward + norms) + final norm + head

V vocabulary, E width, K key/value width, F hidden width of the feed-forward, L layers, T context. With an untied head,
F = 4 E, no biases, no norm weights and as many key/value heads as query heads it becomes 2 V E + 12 L E^2: depth 20
with V 65,536 has 560,988,160. Without biases the feed-forward holds two matrices of E F, or three where it is gated.

What it is not: it builds no model. `tensors` names every tensor the model has, in the model's own order.
"""

from __future__ import annotations

from fledgling.config import ModelConfig

COMPONENTS = ("embedding", "positions", "attention", "feed_forward", "norms", "final_norm", "head")
OPTIONAL_COMPONENTS = ("value_embeddings", "residual_scalars")  # named only where a model has them
NORM_VECTORS = {"rms": (), "rms_weighted": ("weight",), "layer": ("weight", "bias")}


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each component, and their `total`."""
    V, L, E, F = config.vocab_size, config.depth, config.width, config.intermediate_size
    K = config.kv_heads * config.head_width
    inward = 2 if config.is_gated else 1  # matrices that read the stream
    norm = len(NORM_VECTORS[config.norm]) * E
    counts = {
        "embedding": V * E,
        "positions": config.context * E if config.positions == "learned" else 0,
        "attention": L * (2 * E * E + 2 * E * K + config.bias * (2 * E + 2 * K)),  # query, output; key, value
        "feed_forward": L * ((inward + 1) * E * F + config.bias * (inward * F + E)),
        "norms": L * 2 * norm,
        "final_norm": norm,
        "head": 0 if config.tie_embeddings else V * E,
    }
    extras = {
        "value_embeddings": V * K * sum(map(config.has_value_embedding, range(L))),
        "residual_scalars": 2 * L * config.residual_scalars,
    }
    counts |= {name: count for name, count in extras.items() if count}
    return {"total": sum(counts.values()), **counts}


def count_matrix_parameters(config: ModelConfig) -> int:
    """Return the parameters of the blocks' matrices: what Muon updates, and what every token is multiplied by."""
    E, K = config.width, config.kv_heads * config.head_width
    return config.depth * (2 * E * E + 2 * E * K + (3 if config.is_gated else 2) * E * config.intermediate_size)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter, in the order of `Transformer.named_parameters`."""
    V, E, F, K = config.vocab_size, config.width, config.intermediate_size, config.kv_heads * config.head_width
    head, embedding = {"head.weight": (V, E)}, {"embedding.weight": (V, E)}
    found = dict(head if config.tie_embeddings else embedding)
    if config.positions == "learned":
        found["positions.weight"] = (config.context, E)
    names = ("gate_proj", "up_proj", "down_proj") if config.is_gated else ("fc1", "fc2")
    linear = {f"attention.{n}_proj": (out, E) for n, out in (("q", E), ("k", K), ("v", K), ("o", E))}
    linear |= {f"mlp.{name}": (F, E) for name in names[:-1]} | {f"mlp.{names[-1]}": (E, F)}
    vectors = NORM_VECTORS[config.norm]
    for layer in range(config.depth):
        block = f"blocks.{layer}."
        if config.residual_scalars:
            found[f"{block}residual.weight"] = (2,)
        found |= {f"{block}attention_norm.{vector}": (E,) for vector in vectors}
        for name, shape in linear.items():
            if name == f"mlp.{names[0]}":
                if config.has_value_embedding(layer):
                    found[f"{block}attention.value_embedding.weight"] = (V, K)
                found |= {f"{block}mlp_norm.{vector}": (E,) for vector in vectors}
            found[f"{block}{name}.weight"] = shape
            if config.bias:
                found[f"{block}{name}.bias"] = shape[:1]
    found |= {f"norm.{vector}": (E,) for vector in vectors}
    return found if config.tie_embeddings else found | head


def parameter_formula(config: ModelConfig) -> tuple[str, str]:
    """Return the size as a sum of its terms, and simplified: for people, in the letters above."""
    grouped = "2 E^2 + 2 E K" if config.kv_heads != config.heads else "4 E^2"
    wide = f"{3 if config.is_gated else 2} E F"
    bias = f" + {'2 ' if config.is_gated else ''}F + 3 E + 2 K" if config.bias else ""
    norm = {0: "", 1: "E", 2: "2 E"}[len(NORM_VECTORS[config.norm])]
    block = f"{grouped} + {wide}{bias}" + (f" + {norm and 2 * len(NORM_VECTORS[config.norm])} E" if norm else "")
    tables = sum(map(config.has_value_embedding, range(config.depth)))
    terms = [
        "V E",
        "T E" if config.positions == "learned" else "",
        f"L ({block})",
        norm,
        "" if config.tie_embeddings else "V E",
    ]
    terms += [f"{tables} V K" if tables else "", "2 L" if config.residual_scalars else ""]
    wide_ratio = (3 if config.is_gated else 2) * config.intermediate_size / config.width
    squares = 2 + 2 * config.kv_heads / config.heads + wide_ratio
    small = " + vectors" if config.bias or norm or config.positions == "learned" or config.residual_scalars else ""
    extra = f" + {tables} V K" if tables else ""
    simple = f"{'' if config.tie_embeddings else '2 '}V E{extra} + {squares:.4g} L E^2{small}"
    return " + ".join(filter(None, terms)), simple
