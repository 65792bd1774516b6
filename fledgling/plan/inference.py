"""Counts what inference needs: weights in each format, the key/value cache, and the conversations that fit a device.

Weights are read once for all conversations; every conversation has a cache of its own:

    cache = 2 x batch x tokens x layers x key/value width x bytes

float32 takes 4 N and bfloat16 2 N bytes. int8 and int4 have a bf16 scale for each group of GROUP_SIZES neighbouring
values. The matrices of the blocks and the head are quantized; the embedding (a look-up of few rows) and all vectors
stay bf16: hence a little over 1 N and .5 N bytes.
"""

from __future__ import annotations

from typing import Any

from fledgling.config import ModelConfig, Recipe, UserError
from fledgling.plan import flops
from fledgling.plan.hardware import find_device
from fledgling.plan.parameters import parameter_shapes

FORMATS = ("float32", "bfloat16", "int8", "int4")
BITS = {"int8": 8, "int4": 4}
GROUP_SIZES = {"int8": 64, "int4": 32}  # values per scale
CACHE_VALUE_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "int8": 2,
    "int4": 2,
}  # activations stay bf16 with quantized weights
RESERVED_SHARE = 0.1  # of a device's memory, for activations, logits and the allocator


def weight_bytes(
    config: ModelConfig, weight_format: str, group: int | None = None, head: bool = True, embedding: bool = False
) -> int:
    """Returns the bytes of all weights in a format.

    Args:
        weight_format: one of FORMATS.
        group: values of a scale; None: the format's default.
        head: whether the head is quantized too.
        embedding: whether an untied embedding is quantized too.
    """
    total = 0
    for name, shape in parameter_shapes(config).items():
        values = shape[0] * (shape[1] if len(shape) == 2 else 1)
        unquantized = len(shape) == 1 or name.startswith("positions.") or name.endswith(".gate.weight")
        unquantized |= (name.startswith("embedding.") and not embedding) or (name.startswith("head.") and not head)
        if weight_format == "float32":
            total += 4 * values
        elif weight_format == "bfloat16" or unquantized:
            total += 2 * values
        else:
            total += values * BITS[weight_format] // 8 + 2 * shape[0] * (
                shape[1] // (group or GROUP_SIZES[weight_format])
            )
    return total


def kv_cache_bytes(config: ModelConfig, rows: int, length: int, weight_format: str = "bfloat16") -> int:
    """Returns the bytes of a key/value cache for `rows` sequences of `length` tokens, and of their ids with smear."""
    values = 2 * config.depth * config.kv_heads * config.head_width
    return rows * length * (values * CACHE_VALUE_BYTES[weight_format] + 8 * config.smear)


def decode_cost(config: ModelConfig, length: int, weight_format: str = "bfloat16", rows: int = 1) -> dict[str, float]:
    """Returns the cost of one new token for each of `rows` sequences: FLOPs per token, bytes per step.

    length: tokens per sequence. Weights are read once for all rows (of the embedding only one vector per row), the
    cache once per row. Bytes over memory bandwidth is the minimum time of a step: below a device's FLOPs per byte,
    decoding is bound by memory.
    """
    token_flops, embedding_values = (
        flops.decode_flops(config, length),
        0 if config.tie_embeddings else 2 * config.vocab_size * config.width,
    )
    weights_read = weight_bytes(config, weight_format) - embedding_values * (2 if weight_format == "float32" else 1)
    bytes_moved = weights_read + kv_cache_bytes(config, rows, length, weight_format)
    return {
        "flops_per_token": token_flops,
        "bytes_per_step": bytes_moved,
        "flops_per_byte": token_flops * rows / bytes_moved,
    }


def plan_inference(config: ModelConfig, memory: int, length: int | None = None, rows: int = 1) -> dict[str, Any]:
    """Returns the plan's section on decoding `rows` conversations of `length` tokens (default: the context).

    conversations: how many of that length fit into `memory` bytes, a tenth left free; 0 if the weights do not fit.
    """
    length = length or config.context
    formats = {}
    for weight_format in FORMATS:
        weights, cache = weight_bytes(config, weight_format), kv_cache_bytes(config, 1, length, weight_format)
        formats[weight_format] = {
            "weights": weights,
            "cache": rows * cache,
            "total": weights + rows * cache,
            "conversations": max(0, int(((1 - RESERVED_SHARE) * memory - weights) // cache)),
            "decode": decode_cost(config, length, weight_format, rows),
        }
    return {
        "length": length,
        "rows": rows,
        "cache_per_token": kv_cache_bytes(config, 1, 1),
        "device": memory,
        "formats": formats,
    }


def plan_recipe_inference(recipe: Recipe, gpu: str | None, length: int | None, conversations: int) -> dict[str, Any]:
    """Returns `plan_inference` of a recipe's model on the device `gpu` (default: run.hardware), with the device's name.

    Raises UserError for an unknown device, and for a length that is not in [1, context] or fewer than 1 conversation.
    """
    if conversations < 1 or (length is not None and length < 1):
        given = f"--conversations {conversations}" + (f" --length {length}" if length is not None else "")
        raise UserError(f"{given}: expected at least 1")
    config = recipe.resolve_model()
    if length is not None and length > config.context:
        raise UserError(f"--length {length}: expected at most the model's context, {config.context}")
    device = find_device(gpu or recipe.run.hardware)
    return {"device_name": device.name, **plan_inference(config, device.memory, length, conversations)}
