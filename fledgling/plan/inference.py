"""What answering takes: weights in each format, the key/value cache, and how many conversations fit a device.

The one idea: weights are read once for all conversations, every conversation has a cache of its own:

    cache = 2 x batch x tokens x layers x key/value width x bytes

float32 4 N and bfloat16 2 N bytes. int8 and int4 have a bf16 scale for each group of GROUPS neighbouring values.
Quantized are the blocks' matrices and the head; the embedding, a look-up of few rows, and all vectors stay bf16: hence
a little over 1 N and .5 N bytes.
"""

from __future__ import annotations

from typing import Any

from fledgling.config import ModelConfig
from fledgling.plan import flops
from fledgling.plan.parameters import parameter_shapes

FORMATS = ("float32", "bfloat16", "int8", "int4")
BITS = {"int8": 8, "int4": 4}
GROUP_SIZES = {"int8": 64, "int4": 32}  # values that share a scale
CACHE_VALUE_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "int8": 2,
    "int4": 2,
}  # activations stay bf16 beside quantized weights
RESERVED_SHARE = 0.1  # of a device's memory left for activations, logits and the allocator


def weight_bytes(
    config: ModelConfig, form: str, group: int | None = None, head: bool = True, embedding: bool = False
) -> int:
    """Return the bytes of all weights in one of FORMATS; head, embedding: whether these are quantized too."""
    total = 0
    for name, shape in parameter_shapes(config).items():
        values = shape[0] * (shape[1] if len(shape) == 2 else 1)
        whole = len(shape) == 1 or name.startswith("positions.")
        whole |= (name.startswith("embedding.") and not embedding) or (name.startswith("head.") and not head)
        if form == "float32":
            total += 4 * values
        elif form == "bfloat16" or whole:
            total += 2 * values
        else:
            total += values * BITS[form] // 8 + 2 * shape[0] * (shape[1] // (group or GROUP_SIZES[form]))
    return total


def kv_cache_bytes(config: ModelConfig, rows: int, length: int, form: str = "bfloat16") -> int:
    """Return the bytes of a key/value cache for `rows` sequences of `length` tokens."""
    return 2 * rows * length * config.depth * config.kv_heads * config.head_width * CACHE_VALUE_BYTES[form]


def decode_cost(config: ModelConfig, length: int, form: str = "bfloat16", rows: int = 1) -> dict[str, float]:
    """Return what one new token of each of `rows` sequences of `length` tokens costs: FLOPs a token, bytes a step.

    Weights are read once for all rows (of the embedding only the rows' own vectors), each row's cache for itself. Bytes
    over memory bandwidth is the least time of a step: below a device's FLOPs per byte, decoding is bound by memory.
    """
    count, table = (
        flops.decode_flops(config, length),
        0 if config.tie_embeddings else 2 * config.vocab_size * config.width,
    )
    read = weight_bytes(config, form) - table * (2 if form == "float32" else 1)
    moved = read + kv_cache_bytes(config, rows, length, form)
    return {"flops_per_token": count, "bytes_per_step": moved, "flops_per_byte": count * rows / moved}


def plan_inference(config: ModelConfig, memory: int, length: int | None = None, rows: int = 1) -> dict[str, Any]:
    """Return the plan's section on answering `rows` conversations of `length` tokens (default: the context).

    conversations: how many of that length fit into `memory` bytes, a tenth left free; 0 where the weights do not.
    """
    length = length or config.context
    found = {}
    for form in FORMATS:
        held, each = weight_bytes(config, form), kv_cache_bytes(config, 1, length, form)
        found[form] = {
            "weights": held,
            "cache": rows * each,
            "total": held + rows * each,
            "conversations": max(0, int(((1 - RESERVED_SHARE) * memory - held) // each)),
            "decode": decode_cost(config, length, form, rows),
        }
    return {
        "length": length,
        "rows": rows,
        "cache_per_token": kv_cache_bytes(config, 1, 1),
        "device": memory,
        "formats": found,
    }
