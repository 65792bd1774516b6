"""Counts what an adapter trains and keeps, from its configuration and the model's alone.

Where `adapter` is None the weights themselves are trained.
"""

from __future__ import annotations

from math import prod

from fledgling.config import AdapterConfig, ModelConfig
from fledgling.plan.parameters import count_parameters, parameter_shapes

# Bytes of temporaries of 65,536 values, which are dequantized at once: indices twice, levels and products.
DEQUANTIZED_PART = {"int8": 8 << 16, "int4": 17 << 16, "nf4": 17 << 16}
QUANTIZED = {"int8": (8, 64), "int4": (4, 32), "nf4": (4, 64)}  # bits of a value, values of a scale


def adapter_shapes(config: ModelConfig, adapter: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of every trained parameter of an adapter, in the order of `named_parameters`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (out, columns) in adapter.select_matrices(config).items():
        shapes |= {f"{name}.adapter.lora_A": (adapter.rank, columns), f"{name}.adapter.lora_B": (out, adapter.rank)}
        if adapter.has_magnitude:
            shapes[f"{name}.adapter.magnitude"] = (out,)
    return shapes


def trained_shapes(config: ModelConfig, adapter: AdapterConfig | None) -> dict[str, tuple[int, ...]]:
    """Returns the name and shape of everything that is trained: the parameters, or those of the adapter."""
    return adapter_shapes(config, adapter) if adapter else parameter_shapes(config)


def parameter_bytes(config: ModelConfig, adapter: AdapterConfig | None) -> int:
    """Returns the bytes of all parameters: fp32, except the blocks' matrices under an adapter that are quantized."""
    total = 4 * count_parameters(config)["total"]
    if adapter is None:
        return total
    total += 4 * sum(map(prod, adapter_shapes(config, adapter).values()))
    if adapter.quantization == "none":
        return total
    bits, group = QUANTIZED[adapter.quantization]
    for out, columns in config.block_matrices().values():
        total += out * columns * bits // 8 + 2 * out * (columns // group) - 4 * out * columns
    return total


def dequantized_bytes(config: ModelConfig, adapter: AdapterConfig | None, value_bytes: int) -> dict[str, int]:
    """Returns the bytes of the largest matrix while it is dequantized, a part at a time.

    As a component of `memory_by_phase`; empty where nothing is quantized.
    """
    if adapter is None or adapter.quantization == "none":
        return {}
    return {
        "dequantized": value_bytes * max(map(prod, config.block_matrices().values()))
        + DEQUANTIZED_PART[adapter.quantization]
    }


def activation_bytes(config: ModelConfig, adapter: AdapterConfig | None, tokens: int, value_bytes: int) -> int:
    """Returns the bytes that an adapter adds to what is kept for backward: x A^T, and in DoRA the whole product."""
    if adapter is None:
        return 0
    matrices = adapter.select_matrices(config).values()
    widths = sum(adapter.rank + (out if adapter.has_magnitude else 0) for out, _ in matrices)
    return tokens * value_bytes * widths
