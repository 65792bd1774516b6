"""Counts the bytes that a forward pass keeps for backward, per layer and kind, and a layer's temporaries.

Autograd keeps exactly what each operation's derivative reads, so the kept bytes follow from the model's code line by
line (`fledgling/model`). All values are bytes; w is the width of the compute dtype (4 or 2).

Kept per token and layer without a compiler (E width, K key/value width, F intermediate size):

    streams     2 x 4 E         the input of each norm, in fp32
    norms       2 x w E         the output of each norm, read by the matrices after it (twice that with a weight)
    queries ..  the inputs of the query and key norms and of attention's matrix products
    attention   block by block: exp(scores) in fp32, in bf16 also the copy that the product reads, one byte
                per masked position, the products; with the library kernel: its result, and with a window the masks of
                its pieces
    feed_forward  ReLU^2 2 F, GELU 2 F, SwiGLU 4 F, each w wide

A compiler recomputes what is cheap: `compiled_activation_bytes` describes what was measured, so it is an estimate.
States, gradients and the output head are counted in `memory.py`.
"""

from __future__ import annotations

from fledgling.config import ModelConfig
from fledgling.plan.training_step import TrainingStep

QUERY_BLOCK = 128  # queries per block of attention, as in fledgling.model.attention
WINDOW_PIECE = 128  # fewest queries per piece of windowed attention, as in fledgling.model.window
MAX_BLOCKWISE_CONTEXT = 1024  # longest row that CPUs process block by block


def uses_blockwise_attention(context: int, device: str) -> bool:
    """Returns whether attention runs block by block (mirrors `fledgling.model.attention`)."""
    return device == "cpu" and context <= MAX_BLOCKWISE_CONTEXT


def count_scored_pairs(context: int, window: int | None = None) -> int:
    """Returns the (query, key) pairs per row and head that blockwise attention multiplies."""
    pairs = 0
    for start in range(0, context, QUERY_BLOCK):
        end, first = min(start + QUERY_BLOCK, context), 0 if window is None else max(0, start - window + 1)
        pairs += (end - start) * (end - first)
    return pairs


def count_masked_pairs(context: int, window: int) -> int:
    """Returns the (query, key) pairs per row of the masks that `fledgling.model.window.windowed_sdpa` makes."""
    pairs, size = 0, max(window, WINDOW_PIECE)
    for start in range(0, context, size):
        end = min(start + size, context)
        pairs += (end - start) * (end - max(0, start - window + 1))
    return pairs


def eager_activation_bytes(config: ModelConfig, step: TrainingStep, window: int | None = None) -> dict[str, int]:
    """Returns the bytes that one layer keeps without a compiler, by kind; exact for blockwise attention.

    window: tokens that a position sees; None: all before it.
    """
    rows, context, w = step.rows, step.context, step.value_bytes
    A, E, F = step.tokens, config.width, config.intermediate_size
    is_blockwise = uses_blockwise_attention(context, step.device)
    H, statistics = config.heads, 8 if config.norm == "layer" else 4
    kept = {
        "streams": A * 2 * (4 * E + statistics),
        "norms": A * 2 * w * E * (2 if config.norm == "rms_weighted" else 1),
        "queries_keys_values": A * _projection_bytes(config, w, is_blockwise or _repeats_heads(step)),
        "feed_forward": A * w * F * (4 if config.is_gated else 2),
    }
    if config.flash_norm:
        kept |= _deferred_norm_bytes(config, A, w)
    if config.residual_scalars:
        kept["residual"] = A * w * E  # the residual stream before scaling
    if features := _feature_bytes(config, A, w):
        kept["features"] = features
    if is_blockwise:
        pairs = rows * H * count_scored_pairs(context, window)
        masks = (rows if step.packed_documents else 1) * count_scored_pairs(context, window)
        weights = pairs * (4 if w == 4 else 4 + w) + masks
        kept["attention"] = (
            weights + A * (w * config.attention_width + H * w) + A * w * config.attention_width
        )  # products, row sums; the input of the output projection
    else:
        output_copied = config.positions == "rope"  # rotation changes the memory layout, so the output is copied
        kept["attention"] = A * ((1 + output_copied) * w * config.attention_width + 4 * H)
        kept["attention"] += 0 if window is None else _piece_mask_bytes(step, window)
        pairs = context * context if window is None else count_masked_pairs(context, window)
        kept["attention"] += 4 * rows * H * pairs if step.keeps_scores else 0
    return kept


def _piece_mask_bytes(step: TrainingStep, window: int) -> int:
    """Returns the bytes of a layer's masks where rows are read in pieces, in the dtype of the products."""
    rows = step.rows if step.packed_documents else 1
    return step.value_bytes * rows * count_masked_pairs(step.context, window)


def _feature_bytes(config: ModelConfig, A: int, w: int) -> int:
    """Returns the bytes that gates and exclusive attention keep in a layer; of value gates the mean over the layers."""
    Q, K, H, G = config.attention_width, config.kv_heads * config.head_width, config.heads, config.kv_heads
    copied = w < 4  # an fp32 copy in addition to the values
    kept = 0
    if config.value_gates:  # the embedding, and the gate before and after its factor
        tables = sum(map(config.has_value_embedding, range(config.depth)))
        kept += A * w * (K + 2 * G) * tables // config.depth
    if config.exclusive_attention:  # in fp32 y and v; the share, its numerator and denominator; y itself
        kept += A * (4 * Q + 4 * K * copied + 8 * H + 4 * G)
    if config.head_gates:  # the result, and the gate before and after its factor
        kept += A * w * (Q + 2 * H)
    return kept


def stream_bytes(config: ModelConfig, A: int, w: int) -> int:
    """Returns the bytes that smear, skip scalars and back-out keep outside the blocks, for A tokens."""
    smear = A * w * (2 * config.width + 2) if config.smear else 0  # the token, the one before, the gate and its product
    kept_again = 0 if w == 4 else config.num_skips + config.back_out  # in fp32 they are inputs of a norm, kept anyway
    return smear + A * w * config.width * kept_again


def _deferred_norm_bytes(config: ModelConfig, A: int, w: int) -> dict[str, int]:
    """Returns the bytes kept where 1 / RMS is applied after the products: raw results and the factor."""
    E, F, K = config.width, config.intermediate_size, config.kv_heads * config.head_width
    weighted, copied = config.norm == "rms_weighted", w < 4
    norm_reads = (weighted + copied) * E  # x times its weight; x in addition to its fp32 form
    products = E + 2 * K + (F if config.is_gated else 0 if config.activation == "relu2" and not config.mlp_bias else F)
    recomputed = E if (config.is_gated or config.activation == "relu2") and not config.mlp_bias else 0
    return {"norms": A * 2 * w * norm_reads, "deferred": A * w * (products + recomputed + 4)}


def _repeats_heads(step: TrainingStep) -> bool:
    """Returns whether a GPU repeats grouped keys and values (`fledgling.model.fused_attention`), whatever its age."""
    return step.device == "cuda" and (step.packed_documents or step.dtype == "float32")


def _projection_bytes(config: ModelConfig, w: int, plain: bool) -> int:
    """Returns the bytes kept per token for queries, keys and values; plain: grouped ones are repeated."""
    E, K, H, G = config.attention_width, config.kv_heads * config.head_width, config.heads, config.kv_heads
    repeated = H != G and plain
    total = 0
    for width, heads, is_key in ((E, H, False), (K, G, True)):
        if config.qk_norm:
            total += 4 * width + 4 * heads  # the norm's input in fp32, and its statistics
        total += w * (E if is_key and repeated else width)  # the input of the score product
    return total + w * (E if repeated else K)


def compiled_activation_bytes(config: ModelConfig, step: TrainingStep, window: int | None = None) -> dict[str, int]:
    """Returns the bytes that one layer keeps, by kind, where blocks are compiled: an estimate.

    Measured on torch 2.13 (docs/math/memory.md): everything is kept in the compute dtype, outputs of norms and
    activations are recomputed, and blockwise attention keeps its weights twice (or once in fp32).

    window: tokens that a position sees; None: all before it.
    """
    A, w = step.tokens, step.value_bytes
    E, F, K = config.width, config.intermediate_size, config.kv_heads * config.head_width
    norm = 2.8 if config.norm == "layer" else 2
    kept = {
        "streams": A * w * 2 * E,
        "norms": round(A * w * norm * E / 2) * 2,
        "queries_keys_values": A * w * ((E + K if config.qk_norm else 0) + E + 2 * K),
        "attention": A * w * 2 * E,
        "feed_forward": A * w * F * (3 if config.is_gated else 2),
    }
    if features := _feature_bytes(config, A, w):
        kept["features"] = features * w // 4  # fp32 is recomputed
    if uses_blockwise_attention(step.context, step.device):
        pairs = step.rows * config.heads * count_scored_pairs(step.context, window)
        kept["attention"] += 2 * w * pairs + (round(2.6 * A * w * E) if w < 4 else 0)
    elif step.device != "cuda" and window is not None:  # CUDA has block masks
        kept["attention"] += _piece_mask_bytes(step, window)
    return kept


def backward_peak_bytes(config: ModelConfig, tokens: int, w: int, compiled: bool = False) -> int:
    """Returns the temporary bytes of the feed-forward's backward pass.

    It runs first in a layer's backward, when nothing else of the layer is free yet. It needs the gradient of the
    residual stream, that of the intermediate activations and the temporaries of their derivative; kept activations that
    are no longer needed by then are subtracted. Exact without a compiler; compiled, an estimate from the same
    measurements.
    """
    eager_factors = {"relu2": 3, "gelu": 1, "gelu_exact": 1, "swiglu": 2, "geglu": 2}
    compiled_factors = {"relu2": 1.75, "gelu": 1.2, "gelu_exact": 1.2, "swiglu": 3.3, "geglu": 3.3}
    factor = (compiled_factors if compiled else eager_factors)[config.activation]
    return round(tokens * w * (config.width + factor * config.intermediate_size))
