"""What a forward pass keeps for backward, by layer and kind, and what a layer needs for a moment.

The one idea: autograd keeps what each operation's derivative reads, and nothing else; so the bytes kept are a list that
follows the model line by line (`fledgling/model`). Everything is bytes; w is the compute dtype's width (4 or 2).

Kept per token and layer without a compiler (E width, K key/value width, F hidden width):

    streams     2 x 4 E         what each norm reads, in fp32
    norms       2 x w E         what it gives, read by the matrices after it (twice that with a weight)
    queries ..  what their norm reads, and what the products of attention read
    attention   block by block: the weights exp(scores) in fp32, in bf16 a second time as the product reads them, a byte
                for each masked place, the products; by the library's kernel: its result
    feed_forward  ReLU^2 2 F, GELU 2 F, SwiGLU 4 F, each w wide

A compiler recomputes what is cheap: `compiled` says what it was found to keep, which is an estimate.

What it is not: states, gradients and the head (`memory.py`).
"""

from __future__ import annotations

from fledgling.config import ModelConfig

QUERY_BLOCK = 128  # queries a block of attention, as in fledgling.model.attention
MAX_BLOCKWISE_CONTEXT = 1024  # rows up to which CPUs take them block by block


def uses_blockwise_attention(context: int, device: str) -> bool:
    """Whether attention goes block by block (`fledgling.model.attention.is_plain`)."""
    return device == "cpu" and context <= MAX_BLOCKWISE_CONTEXT


def count_scored_pairs(context: int, window: int | None = None) -> int:
    """Return the (query, key) pairs of one row and head that attention by blocks multiplies."""
    pairs = 0
    for start in range(0, context, QUERY_BLOCK):
        end, first = min(start + QUERY_BLOCK, context), 0 if window is None else max(0, start - window + 1)
        pairs += (end - start) * (end - first)
    return pairs


def eager_activation_bytes(
    config: ModelConfig, rows: int, context: int, w: int, device: str, documents: bool, window: int | None = None
) -> dict[str, int]:
    """Return the bytes one layer, of that window, keeps, by kind, where nothing is compiled. Exact by blocks."""
    A, E, F = rows * context, config.width, config.intermediate_size
    H, statistics = config.heads, 8 if config.norm == "layer" else 4
    kept = {
        "streams": A * 2 * (4 * E + statistics),
        "norms": A * 2 * w * E * (2 if config.norm == "rms_weighted" else 1),
        "queries_keys_values": A * _projection_bytes(config, w, uses_blockwise_attention(context, device)),
        "feed_forward": A * w * F * (4 if config.is_gated else 2),
    }
    if config.flash_norm:
        kept |= _deferred_norm_bytes(config, A, w)
    if config.residual_scalars:
        kept["residual"] = A * w * E  # the stream before it is mixed
    if uses_blockwise_attention(context, device):
        pairs = rows * H * count_scored_pairs(context, window)
        masks = (rows if documents else 1) * count_scored_pairs(context, window)
        weights = pairs * (4 if w == 4 else 4 + w) + masks
        kept["attention"] = weights + A * (w * E + H * w) + A * w * E  # products, row sums; what the output reads
    else:
        copied = config.positions == "rope"  # rotation leaves another order in memory: the output is put back in order
        kept["attention"] = A * ((1 + copied) * w * E + 4 * H)
    return kept


def _deferred_norm_bytes(config: ModelConfig, A: int, w: int) -> dict[str, int]:
    """Bytes kept where 1 / RMS is taken behind the products: these as they were, and the factor instead of the norm."""
    E, F, K = config.width, config.intermediate_size, config.kv_heads * config.head_width
    weighted, copied = config.norm == "rms_weighted", w < 4
    read = (weighted + copied) * E  # x times its weight; x beside its fp32 form
    behind = E + 2 * K + (F if config.is_gated else 0 if config.activation == "relu2" and not config.bias else F)
    passed = E if (config.is_gated or config.activation == "relu2") and not config.bias else 0
    return {"norms": A * 2 * w * read, "deferred": A * w * (behind + passed + 4)}


def _projection_bytes(config: ModelConfig, w: int, plain: bool) -> int:
    """Bytes a token keeps of queries, keys and values."""
    E, K, H, G = config.width, config.kv_heads * config.head_width, config.heads, config.kv_heads
    repeated = H != G and plain
    total = 0
    for width, heads, is_key in ((E, H, False), (K, G, True)):
        if config.qk_norm:
            total += 4 * width + 4 * heads  # what the norm reads, in fp32, and its statistics
        total += w * (E if is_key and repeated else width)  # what the product of scores reads
    return total + w * (E if repeated else K)


def compiled_activation_bytes(
    config: ModelConfig, rows: int, context: int, w: int, device: str, documents: bool, window: int | None = None
) -> dict[str, int]:
    """Return the bytes one layer keeps, by kind, where blocks are compiled: an estimate.

    Measured on torch 2.13 (docs/benchmarks.md): everything is kept in the compute dtype, what a norm or an activation
    can make again is made again, and attention by blocks keeps its weights twice (or once in fp32).
    """
    A, E, F, K = rows * context, config.width, config.intermediate_size, config.kv_heads * config.head_width
    norm = 2.8 if config.norm == "layer" else 2
    kept = {
        "streams": A * w * 2 * E,
        "norms": round(A * w * norm * E / 2) * 2,
        "queries_keys_values": A * w * ((E + K if config.qk_norm else 0) + E + 2 * K),
        "attention": A * w * 2 * E,
        "feed_forward": A * w * F * (3 if config.is_gated else 2),
    }
    if uses_blockwise_attention(context, device):
        pairs = rows * config.heads * count_scored_pairs(context, window)
        kept["attention"] += 2 * w * pairs + (round(2.6 * A * w * E) if w < 4 else 0)
    return kept


def backward_peak_bytes(config: ModelConfig, tokens: int, w: int, compiled: bool = False) -> int:
    """Return the bytes that the feed-forward's backward needs beyond all that is kept.

    It is the first thing a layer's backward does, so nothing else of the layer is free yet: the stream's gradient, the
    hidden layer's and what its derivative makes on the way; what was kept and is spent by then is subtracted. Exact
    without a compiler; compiled, an estimate from the same measurements.
    """
    eager_hidden = {"relu2": 3, "gelu": 1, "swiglu": 2}
    fused_hidden = {"relu2": 1.75, "gelu": 1.2, "swiglu": 3.3}
    hidden = (fused_hidden if compiled else eager_hidden)[config.activation]
    return round(tokens * w * (config.width + hidden * config.intermediate_size))
