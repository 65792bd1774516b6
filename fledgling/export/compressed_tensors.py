"""Matrices of a Hugging Face directory in 8 or 4 bits, in the form that compressed-tensors, transformers and vLLM read.

    int8  as our own quantized checkpoints (kernels/format.py): whole numbers -127 to 127, a scale for 64 columns
    int4  whole numbers -8 to 7, a scale for 32 columns: evenly spaced, since the form has no table of levels

A linear layer NAME has NAME.weight_packed, int32 with the lowest columns in the lowest bits, each number plus 2^(bits -
1); NAME.weight_scale (out, groups); NAME.weight_shape. Head and embedding stay as they are.

Source: the format "pack-quantized" of compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.own_class import needs_own_class
from fledgling.kernels.format import DEFAULT_GROUP_SIZES, quantize_matrix

BITS = {"int8": 8, "int4": 4}
SCALE_CANDIDATES = (1.0, 0.95, 0.9, 0.85, 0.8)  # times a group's first scale
MODULES = ("self_attn", "mlp", "attention")  # of whose linear layers the weights are quantized
NOT_LINEAR = ("value_embedding", "gate")  # modules of our own class within these


def check_compression(config: ModelConfig, kind: str) -> None:
    """Raises UserError for an unknown kind, GPT-2, or rows that are no whole groups."""
    if kind not in BITS:
        raise UserError(f"--quantize {kind}: expected {' or '.join(BITS)}")
    if config.family == "gpt2":
        raise UserError("GPT-2's class has no linear layers, so compressed-tensors has no place for quantized ones")
    group = DEFAULT_GROUP_SIZES[BITS[kind]]
    for name, columns in (
        ("width", config.width),
        ("intermediate_size", config.intermediate_size),
        ("width of all heads", config.attention_width),
    ):
        if columns % group:
            raise UserError(f"the model's {name} is {columns}; expected a multiple of {group} for {kind}")


def list_skipped(config: ModelConfig) -> tuple[str, ...]:
    """Returns the layers of blocks that stay as they are: `o_proj` of NanoChat's class, none of the others.

    That class initializes `o_proj.weight` as it loads.
    """
    return ("o_proj",) if config.family == "fledgling" and not needs_own_class(config) else ()


def quantization_config(config: ModelConfig, kind: str) -> dict[str, Any]:
    """Returns the entry `quantization_config` of config.json."""
    bits = BITS[kind]
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**weights, "group_size": DEFAULT_GROUP_SIZES[bits]},
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ["lm_head", "embed_out", *(f"re:.*{name}" for name in list_skipped(config))],
    }


def compress_tensors(
    config: ModelConfig, tensors: Iterator[tuple[str, Tensor]], kind: str
) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of the directory, with the matrices of linear layers quantized.

    Args:
        config: of the model.
        tensors: by the names of Hugging Face; a matrix of a linear layer is (N, K).
        kind: one of BITS.
    """
    bits = BITS[kind]
    for name, tensor in tensors:
        parts = name.split(".")
        is_skipped = not set(parts) & set(MODULES) or set(parts) & {*list_skipped(config), *NOT_LINEAR}
        if tensor.ndim != 2 or parts[-1] != "weight" or is_skipped:
            yield name, tensor
            continue
        group = DEFAULT_GROUP_SIZES[bits]
        values, scales = quantize_matrix(tensor, 8, group) if bits == 8 else quantize_evenly(tensor.float(), group)
        yield f"{name}_packed", pack_values(values, bits)
        yield f"{name}_scale", scales.to(tensor.dtype)
        yield f"{name}_shape", torch.tensor(tensor.shape, dtype=torch.int64)


def quantize_evenly(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Returns whole numbers -8 to 7, int8 (N, K), and the scale of each group of columns with the least error, bf16."""
    groups = weight.reshape(-1, group_size)
    first = groups.abs().amax(1, keepdim=True) / 7
    best = torch.full_like(first, float("inf"))
    values, scale = torch.zeros_like(groups), torch.zeros_like(first)
    for factor in SCALE_CANDIDATES:
        candidate = (first * factor).to(torch.bfloat16).float()
        rounded = (groups / candidate).nan_to_num(0.0).round().clamp(-8, 7)
        error = (rounded * candidate - groups).square().sum(1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, candidate, scale)
        values = torch.where(better, rounded, values)
    return values.to(torch.int8).view(weight.shape), scale.to(torch.bfloat16).view(len(weight), -1)


def pack_values(values: Tensor, bits: int) -> Tensor:
    """Packs int8 (N, K) into int32 (N, K bits / 32), the lowest columns in the lowest bits."""
    unsigned = (values.to(torch.int64) + (1 << (bits - 1))).view(len(values), -1, 32 // bits)
    words = (unsigned << torch.arange(0, 32, bits)).sum(-1)  # (N, K bits / 32), below 2^32
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
