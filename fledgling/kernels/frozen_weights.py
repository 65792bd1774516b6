"""Frozen matrices in 8 or 4 bits, for a model of which only an adapter is trained (QLoRA, arXiv 2305.14314).

A product dequantizes its matrix temporarily, in forward and in backward, so nothing of it is kept between. Only the
blocks' matrices are quantized: a token reads one row of the embedding, and the head's chunked loss reads its weight
whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.kernels.format import DEFAULT_GROUP_SIZES, check_columns, quantize_matrix
from fledgling.kernels.nf4 import GROUP_SIZE, nf4_levels, quantize_nf4
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.model.transformer import Transformer

BITS = {"int8": 8, "int4": 4, "nf4": 4}


def quantize_weight(name: str, weight: Tensor, quantization: str, dtype: torch.dtype) -> QuantizedTensor:
    """Returns a quantized matrix. Raises UserError for a width that does not fit.

    Args:
        name: of the matrix, for error messages.
        weight: (N, K).
        quantization: one of BITS.
        dtype: the nominal one of the result.
    """
    bits = BITS[quantization]
    group_size = GROUP_SIZE if quantization == "nf4" else DEFAULT_GROUP_SIZES[bits]
    check_columns(name, weight.shape[1], bits, group_size)
    if quantization == "nf4":
        return QuantizedTensor(*quantize_nf4(weight), bits, dtype, nf4_levels())
    return QuantizedTensor(*quantize_matrix(weight, bits, group_size), bits, dtype)


def quantize_blocks(model: Transformer, quantization: str) -> None:
    """Replaces the matrices of a model's blocks by quantized ones, one after the other."""
    for name in model.config.block_matrices():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        packed = quantize_weight(f"{name}.weight", linear.weight, quantization, model.compute_dtype)
        linear.weight = nn.Parameter(packed, requires_grad=False)


def measure_rounding_error(model: Transformer, weights: Mapping[str, Tensor]) -> float:
    """Returns how far the quantized matrices of a model's blocks are from given ones: a share of their norm.

    It is the error of a merge too, which has the rounded values.
    """
    squares = torch.zeros(2, dtype=torch.float64)
    for name in model.config.block_matrices():
        packed, given = model.get_parameter(f"{name}.weight").data, weights[f"{name}.weight"].float()
        assert isinstance(packed, QuantizedTensor)
        rounded = packed.dequantize(torch.float32).to(given.device)
        squares += torch.stack([(rounded - given).square().sum(), given.square().sum()]).double().cpu()
    return float((squares[0] / squares[1]).sqrt())


def round_to_quantized(weights: Mapping[str, Tensor], config: ModelConfig, quantization: str) -> dict[str, Tensor]:
    """Returns weights with the values that the quantized matrices have."""
    rounded = dict(weights)
    for name in config.block_matrices():
        packed = quantize_weight(f"{name}.weight", weights[f"{name}.weight"], quantization, torch.float32)
        rounded[f"{name}.weight"] = packed.dequantize(torch.float32)
    return rounded
