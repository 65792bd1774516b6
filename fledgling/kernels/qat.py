"""Quantization-aware training: every product multiplies by the weights that the quantized model will have.

A matrix is rounded to the format of `quantize` (format.py) and read back; the gradient of the rounded matrix is taken
for the weight's (the straight-through estimator, Bengio et al. 2013, arXiv 1308.3432), so the weights move until they
are good after rounding. What `fledgling quantize` then writes is what was trained, bit for bit in fp32.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fledgling.kernels.format import DEFAULT_GROUP_SIZES, check_columns, dequantize_matrix, quantize_matrix
from fledgling.kernels.quantized_model import should_quantize
from fledgling.model.linear import Linear
from fledgling.model.transformer import Transformer

QAT_BITS = {"int8": 8, "int4": 4}


def fake_quantize_matrix(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Returns a matrix (N, K) with the values that it has after quantization, in fp32."""
    return dequantize_matrix(*quantize_matrix(weight, bits, group_size), bits, torch.float32)


def fake_quantize(model: Transformer, quantization: str) -> None:
    """Makes a model compute with quantized values of its matrices (blocks and head) wherever gradients are computed.

    Raises UserError for a matrix whose width is not a multiple of the group.
    """
    bits = QAT_BITS[quantization]
    group_size = DEFAULT_GROUP_SIZES[bits]
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, Linear) and should_quantize(
            model.config, weight, tuple(module.weight.shape), head=True, embedding=False
        ):
            check_columns(weight, module.weight.shape[1], bits, group_size)
            module.fake_quantizer = partial(fake_quantize_matrix, bits=bits, group_size=group_size)
