"""Counts what an adapter trains and keeps, from its configuration and the model's alone.

Where `adapter` is None the weights themselves are trained.
"""

from __future__ import annotations

from math import prod

from fledgling.config import AdapterConfig, ModelConfig
from fledgling.plan.parameters import count_parameters, parameter_shapes


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


def count_all_parameters(config: ModelConfig, adapter: AdapterConfig | None) -> int:
    """Returns the number of all parameters, frozen ones and those of the adapter included."""
    thin = sum(map(prod, adapter_shapes(config, adapter).values())) if adapter else 0
    return count_parameters(config)["total"] + thin


def activation_bytes(config: ModelConfig, adapter: AdapterConfig | None, tokens: int, value_bytes: int) -> int:
    """Returns the bytes that an adapter adds to what is kept for backward: x A^T, and in DoRA the whole product."""
    if adapter is None:
        return 0
    matrices = adapter.select_matrices(config).values()
    widths = sum(adapter.rank + (out if adapter.has_magnitude else 0) for out, _ in matrices)
    return tokens * value_bytes * widths
