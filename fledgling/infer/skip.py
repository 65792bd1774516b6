"""Decoding that leaves out the columns of a feed-forward's second matrix that meet a zero.

The one idea: behind ReLU^2 most of the hidden layer is exactly 0, so y = W h needs the columns of W where h is not 0,
and no others. Stored as rows (F, C) they are read one by one where they lie (`embedding_bag`), and the result is the
same sum with its zeros left out. Below a share of zeros the whole matrix is quicker, and is taken: DENSE says where.

As `fledgling/infer/pack.py`, a pass over the engine's own copy of a model: where the model hands a weight to
`torch.nn.functional.linear`, this one answers. It holds the matrix twice, and serves single rows; more rows, which
have different zeros, take the whole matrix.

Source: ReLU^2's sparsity, arXiv 2402.03804; there with a predictor for the first matrix, here multiplied whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.infer.pack import PackedWeight
from fledgling.model.feed_forward import FeedForward, relu2
from fledgling.model.transformer import Transformer

MAX_ACTIVE_SHARE = {
    torch.float32: 0.4,
    torch.bfloat16: 0.2,
}  # of the columns wanted at most, else all (docs/benchmarks.md)
MIN_WEIGHT_NUMEL = (
    1 << 19
)  # values of a matrix that is worth it: smaller ones are read faster than their zeros are found


class ZeroSkippingWeight:
    """The weight (out, in) of a linear layer whose input is mostly 0; takes part in `F.linear` and nothing else."""

    def __init__(self, weight: Tensor, dense: Tensor | PackedWeight) -> None:
        self.dense, self.shape, self.dtype = dense, weight.shape, weight.dtype
        self.transposed = weight.detach().T.contiguous()  # (in, out)
        self.max_active = int(MAX_ACTIVE_SHARE[self.dtype] * self.shape[1])

    def copy_(self, weight: Tensor) -> None:
        """Take over other values (out, in) of any dtype."""
        self.transposed.copy_(weight.detach().T)
        self.dense.copy_(weight)

    def to(self, dtype: torch.dtype) -> ZeroSkippingWeight:
        """Itself: the model asks for its compute dtype, which is this one."""
        assert dtype == self.dtype, f"kept as {self.dtype}, asked for {dtype}"
        return self

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, arguments: tuple = (), named: Mapping[str, Any] | None = None
    ) -> Tensor:
        """x (..., in) -> (..., out) for F.linear(x, weight, bias or None)."""
        assert function is F.linear, f"a skipping weight does not take part in {function.__name__}"
        x, weight, *rest = arguments
        bias = rest[0] if rest else (named or {}).get("bias")
        if x.numel() == weight.shape[1]:
            flat = x.reshape(-1)
            active = flat.nonzero()[:, 0]
            if 0 < len(active) <= weight.max_active:
                y = sum_active_rows(weight.transposed, active, flat[active]).view(*x.shape[:-1], -1)
                return y if bias is None else y + bias
        return F.linear(x, weight.dense, bias)


def sum_active_rows(rows: Tensor, active: Tensor, factors: Tensor) -> Tensor:
    """Sum of factors (n,) times rows[active], rows (F, C) -> (C,); a part of it on each thread."""
    size = -(-len(active) // torch.get_num_threads())
    starts = torch.arange(0, len(active), size)
    parts = F.embedding_bag(active, rows, starts, mode="sum", per_sample_weights=factors)  # (threads, C)
    return parts[0] if len(parts) == 1 else parts.sum(0)


def skip_relu2_zeros(model: Transformer, packs: bool) -> dict[str, ZeroSkippingWeight]:
    """Let the second matrix of every ReLU^2 feed-forward skip; return these by the parameter's name.

    packs: the whole matrix, for where it is quicker, is a packed one.
    """
    made = {}
    for layer, block in enumerate(model.blocks):
        mlp = block.mlp
        if isinstance(mlp, FeedForward) and mlp.activation is relu2 and mlp.fc2.weight.numel() >= MIN_WEIGHT_NUMEL:
            weight = mlp.fc2.weight.detach()
            del mlp.fc2.weight
            mlp.fc2.weight = ZeroSkippingWeight(weight, PackedWeight(weight) if packs else weight.clone())
            made[f"blocks.{layer}.mlp.fc2.weight"] = mlp.fc2.weight
    return made
