"""Counts the parameters of a model by component, from its configuration alone.

Every count is a formula; an invariant compares it with the tensors of a real model. For every family

    embeddings + positions + layers x (attention + feed-forward + norms) + final norm + head

V vocabulary, E width, K key/value width, F intermediate size of the feed-forward, L layers, T context. With an untied
head, F = 4 E, no biases, no norm weights and as many key/value heads as query heads it becomes 2 V E + 12 L E^2: depth
20 with V 65,536 has 560,988,160. Without biases the feed-forward holds two matrices of E F, or three if it is gated.
"""

from __future__ import annotations

from math import prod

from fledgling.config import ModelConfig
from fledgling.config.model import GATE_WIDTH

COMPONENTS = ("embedding", "positions", "attention", "feed_forward", "norms", "final_norm", "head")
SMALL = {"residual_scalars", "gates", "skip_connections"}  # components of a few values
NORM_VECTORS = {"rms": (), "rms_weighted": ("weight",), "layer": ("weight", "bias")}


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Returns the number of parameters of each component, and their `total`."""
    V, L, E, F = config.vocab_size, config.depth, config.width, config.intermediate_size
    Q, K = config.attention_width, config.kv_heads * config.head_width
    input_matrices = 2 if config.is_gated else 1  # matrices that read the stream
    norm = len(NORM_VECTORS[config.norm]) * E
    biases = config.bias * E + config.qkv_bias * (Q + 2 * K)
    counts = {
        "embedding": V * E,
        "positions": config.context * E if config.positions == "learned" else 0,
        "attention": L * (2 * E * Q + 2 * E * K + biases + sum(_qk_norms(config))),  # query, output; key, value
        "feed_forward": L * ((input_matrices + 1) * E * F + config.mlp_bias * (input_matrices * F + E)),
        "norms": L * norm * (4 if config.norm_placement == "both" else 2),
        "final_norm": norm,
        "head": 0 if config.tie_embeddings else V * E,
    }
    extras = {
        "value_embeddings": V * K * sum(map(config.has_value_embedding, range(L))),
        "residual_scalars": 2 * L * config.residual_scalars,
        "gates": sum(prod(shape) for name, shape in parameter_shapes(config).items() if name.endswith("gate.weight")),
        "skip_connections": config.num_skips + config.back_out + config.smear,
    }
    counts |= {name: count for name, count in extras.items() if count}
    return {"total": sum(counts.values()), **counts}


def _qk_norms(config: ModelConfig) -> tuple[int, int]:
    """Returns the widths of the weights that normalize queries and keys; 0 where they have none."""
    D, heads = config.head_width, (config.heads, config.kv_heads)
    if not config.qk_norm or config.qk_norm_weights == "none":
        return 0, 0
    return (D * heads[0], D * heads[1]) if config.qk_norm_weights == "layer" else (D, D)


def count_law_parameters(config: ModelConfig) -> int:
    """Returns the N of laws of loss and of the horizon: all parameters but value embeddings, which multiply nothing.

    So a model with them counts as large as one without, whose past runs are then of its size.
    """
    counts = count_parameters(config)
    return counts["total"] - counts.get("value_embeddings", 0)


def count_matrix_parameters(config: ModelConfig) -> int:
    """Returns the parameters of the blocks' matrices: those that Muon updates and that every token is multiplied by."""
    E, Q, K = config.width, config.attention_width, config.kv_heads * config.head_width
    return config.depth * (2 * E * Q + 2 * E * K + (3 if config.is_gated else 2) * E * config.intermediate_size)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every parameter, in the order of `Transformer.named_parameters`."""
    V, E, K = config.vocab_size, config.width, config.kv_heads * config.head_width
    head: dict[str, tuple[int, ...]] = {"head.weight": (V, E)}
    embedding: dict[str, tuple[int, ...]] = {"embedding.weight": (V, E)}
    shapes = dict(head if config.tie_embeddings else embedding)
    gate_width = min(GATE_WIDTH, E)
    if config.smear:
        shapes |= {"smear.scale.weight": (1,), "smear.gate.weight": (1, gate_width)}
    if config.positions == "learned":
        shapes["positions.weight"] = (config.context, E)
    matrices = config.layer_matrices()
    first_of_mlp = next(name for name in matrices if name.startswith("mlp."))
    vectors = NORM_VECTORS[config.norm]
    for layer in range(config.depth):
        block = f"blocks.{layer}."
        if config.residual_scalars:
            shapes[f"{block}residual.weight"] = (2,)
        if config.norm_placement != "post":
            shapes |= {f"{block}attention_norm.{vector}": (E,) for vector in vectors}
        for name, shape in matrices.items():
            if name == first_of_mlp:
                for norm, width in zip("qk", _qk_norms(config), strict=True):
                    shapes |= {f"{block}attention.query_key.{norm}_norm.weight": (width,)} if width else {}
                if config.has_value_embedding(layer):
                    shapes[f"{block}attention.value_embedding.weight"] = (V, K)
                    if config.value_gates:
                        shapes[f"{block}attention.value_embedding.gate.weight"] = (config.kv_heads, gate_width)
                if config.head_gates:
                    shapes[f"{block}attention.gate.weight"] = (config.heads, gate_width)
                placed = {"pre": ("mlp_norm",), "post": ("attention_output_norm",)}
                for norm in placed.get(config.norm_placement, ("attention_output_norm", "mlp_norm")):
                    shapes |= {f"{block}{norm}.{vector}": (E,) for vector in vectors}
            shapes[f"{block}{name}.weight"] = shape
            if has_bias(config, name):
                shapes[f"{block}{name}.bias"] = shape[:1]
        if config.norm_placement != "pre":
            shapes |= {f"{block}mlp_output_norm.{vector}": (E,) for vector in vectors}
    if config.num_skips:
        shapes["skip_connections.skips.weight"] = (config.num_skips,)
    if config.back_out:
        shapes["skip_connections.back_out.weight"] = (1,)
    shapes |= {f"norm.{vector}": (E,) for vector in vectors}
    return shapes if config.tie_embeddings else shapes | head


def has_bias(config: ModelConfig, name: str) -> bool:
    """Returns whether a matrix of a block, such as "attention.q_proj", has a bias."""
    if name.endswith(("q_proj", "k_proj", "v_proj")):
        return config.qkv_bias
    return config.bias if name.endswith("o_proj") else config.mlp_bias


def parameter_formula(config: ModelConfig) -> tuple[str, str]:
    """Returns the count as a sum of its terms, and simplified, in the letters above."""
    attention = "2 E^2 + 2 E K" if config.kv_heads != config.heads else "4 E^2"
    if config.attention_width != config.width:
        attention = "2 E Q + 2 E K"
    feed_forward = f"{3 if config.is_gated else 2} E F"
    if config.mlp_bias == config.bias:
        bias = f" + {'2 ' if config.is_gated else ''}F + 3 E + 2 K" if config.bias else ""
    else:
        bias = f" + {'2 ' if config.is_gated else ''}F + E" if config.mlp_bias else " + 2 E + 2 K"
    norm = {0: "", 1: "E", 2: "2 E"}[len(NORM_VECTORS[config.norm])]
    block = f"{attention} + {feed_forward}{bias}" + (
        f" + {norm and 2 * len(NORM_VECTORS[config.norm])} E" if norm else ""
    )
    tables = sum(map(config.has_value_embedding, range(config.depth)))
    counts = count_parameters(config)
    terms = [
        "V E",
        "T E" if config.positions == "learned" else "",
        f"L ({block})",
        norm,
        "" if config.tie_embeddings else "V E",
    ]
    terms += [f"{tables} V K" if tables else "", "2 L" if config.residual_scalars else ""]
    terms += [f"{counts[name]} {name}" for name in ("gates", "skip_connections") if name in counts]
    feed_forward_squares = (3 if config.is_gated else 2) * config.intermediate_size / config.width
    squares = (2 + 2 * config.kv_heads / config.heads) * config.attention_width / config.width + feed_forward_squares
    has_vectors = config.bias or config.mlp_bias or norm
    vectors_note = " + vectors" if has_vectors or config.positions == "learned" or counts.keys() & SMALL else ""
    tables_term = f" + {tables} V K" if tables else ""
    simplified = f"{'' if config.tie_embeddings else '2 '}V E{tables_term} + {squares:.4g} L E^2{vectors_note}"
    return " + ".join(filter(None, terms)), simplified


def rule_of_thumb_bytes(count: int) -> dict[str, int]:
    """Returns the usual rule of thumb for `count` parameters, in bytes: 2 + 2 + 8 per parameter, and 16 to 20 in total.

    It ignores activations and logits, which depend on tokens and not on parameters, and assumes AdamW for all
    parameters.
    """
    return {"states": 12 * count, "low": 16 * count, "high": 20 * count}
