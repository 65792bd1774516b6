"""Random matrices, and the same in 8 or 4 bits."""

import torch

from fledgling.kernels.format import quantize_matrix
from fledgling.kernels.quantized_tensor import QuantizedTensor


def make_matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def quantize(weight: torch.Tensor, bits: int, group_size: int, dtype: torch.dtype = torch.bfloat16) -> QuantizedTensor:
    return QuantizedTensor(*quantize_matrix(weight, bits, group_size), bits, dtype)
