"""How many bytes one rank needs at its peak: an estimate, made before the run.

The one idea: states are counted, activations are counted tensor by tensor as a block keeps them for
backward, and the logits are only ever there a chunk at a time (`fledgling.model.logprob`). The usual rule
of thumb, 16 to 20 bytes a parameter, leaves out exactly the last two and is 3 to 9 times too low for this
family.

Held against measured peaks of a system of the same shape (whole logits, depth 12 to 20): within 20 %. Not
in it: the allocator's fragmentation, cuDNN and NCCL workspaces, evaluation. Leave a tenth of the device
free.
"""

from __future__ import annotations

from fledgling.model.config import ModelConfig
from fledgling.plan.size import matrices, parameters

BYTES = {"float32": 4, "bfloat16": 2}
# What a block keeps for backward, in units of C a token: two normed inputs 2, queries, keys and values 3,
# queries and keys normed and rotated 2, attention's output 1, the hidden layer before and after ReLU^2 8.
KEPT_PER_BLOCK = 16
CHUNK_VALUES = 1 << 22  # logits of one chunk, as in fledgling.model.logprob
HEADROOM = 0.85  # share of a device's memory that an automatic micro-batch may fill


def per_rank(
    config: ModelConfig, rows: int, dtype: str = "bfloat16", ranks: int = 1, *, whole_logits: bool = False
) -> dict[str, int]:
    """Return the estimated peak in bytes by component, and their `total`.

    rows: rows of `context` tokens in one forward/backward on this rank; dtype: of the products (weights and
    states are float32); ranks: optimizer state is sharded over them; whole_logits: as if the logits of all
    rows were kept.
    """
    N, M, V, C = parameters(config)["total"], matrices(config), config.vocab_size, config.width
    width, tokens = BYTES[dtype], rows * config.context
    # the product and its gradient, two float32 steps between them, and the head's own gradient
    chunked = min(tokens * V, CHUNK_VALUES) * (2 * width + 8) + V * C * 4
    logits = tokens * V * (4 + width) if whole_logits else chunked
    counts = {
        "parameters": 4 * N,
        "gradients": 4 * N,
        "optimizer": (4 * M + 8 * (N - M)) // ranks,  # Muon: one momentum; AdamW: two moments
        "cast_weights": 0 if dtype == "float32" else width * (N - V * C),  # the embedding is looked up, not cast
        "activations": tokens * C * (config.depth * KEPT_PER_BLOCK * width + 8),
        "logits": logits,
    }
    return {"total": sum(counts.values()), **counts}


def kv_cache(config: ModelConfig, rows: int, capacity: int, dtype: str = "bfloat16") -> int:
    """Return the bytes of a key/value cache for `rows` sequences of at most `capacity` tokens."""
    return 2 * rows * capacity * config.depth * config.kv_heads * config.head_width * BYTES[dtype]


def micro_batch(config: ModelConfig, rows: int, memory: int, dtype: str = "bfloat16", ranks: int = 1) -> int:
    """Return the most rows of one forward/backward that divide a rank's `rows` and fit into `memory` bytes.

    1 where nothing fits: the run may then still succeed, and `plan` says that it probably will not.
    """
    fitting = (
        size
        for size in range(min(rows, 64), 1, -1)
        if rows % size == 0 and per_rank(config, size, dtype, ranks)["total"] <= HEADROOM * memory
    )
    return next(fitting, 1)
