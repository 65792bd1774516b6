"""Products that skip the columns of a feed-forward's second matrix that meet a zero.

After ReLU^2 most activations are exactly 0, so y = W h needs only the columns of W where h is not 0. Stored as rows (F,
C) they are read one by one in place (`embedding_bag`), and the result is the same sum without its zeros. With a smaller
share
of zeros the whole matrix is faster, and is used: `MAX_ACTIVE_SHARE` is the limit.

The matrix is held twice. Only single rows skip; several rows, which have different zeros, use the whole matrix.

Source: the sparsity of ReLU^2, arXiv 2402.03804; there with a predictor for the first matrix, here multiplied whole.

C width, F intermediate size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.kernels.packed_weight import PackedWeight
from fledgling.model.feed_forward import FeedForward, relu2
from fledgling.model.linear import is_plain
from fledgling.model.transformer import Transformer

MAX_ACTIVE_SHARE = {
    torch.float32: 0.4,
    torch.bfloat16: 0.2,
}  # of the columns; above it all are used (docs/decisions/measured-choices.md)
MEASURED_ROWS = 8  # activations of a text that the speed is measured on
MIN_WEIGHT_NUMEL = 1 << 19  # smaller matrices are read faster than their zeros are found


class ZeroSkippingWeight:
    """The weight (out, in) of a linear layer whose input is mostly 0; takes part in `F.linear` only."""

    def __init__(self, weight: Tensor, dense: Tensor | PackedWeight) -> None:
        self.dense, self.shape, self.dtype = dense, weight.shape, weight.dtype
        self.transposed = weight.detach().T.contiguous()  # (in, out)
        self.max_active = int(MAX_ACTIVE_SHARE[self.dtype] * self.shape[1])

    def copy_(self, weight: Tensor) -> None:
        """Takes over the values of a weight (out, in) of any dtype."""
        self.transposed.copy_(weight.detach().T)
        self.dense.copy_(weight)

    def to(self, dtype: torch.dtype) -> ZeroSkippingWeight:
        """Returns itself; dtype is the model's compute dtype, which must be the weight's."""
        assert dtype == self.dtype, f"stored as {self.dtype}, requested as {dtype}"
        return self

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Computes x (..., in) -> (..., out) for F.linear(x, weight, bias or None)."""
        assert function is F.linear, f"a zero-skipping weight does not take part in {function.__name__}"
        x, weight, *rest = args
        bias = rest[0] if rest else (kwargs or {}).get("bias")
        if x.numel() == weight.shape[1]:
            flat = x.reshape(-1)
            active = flat.nonzero()[:, 0]
            if 0 < len(active) <= weight.max_active:
                y = sum_active_rows(weight.transposed, active, flat[active]).view(*x.shape[:-1], -1)
                return y if bias is None else y + bias
        return F.linear(x, weight.dense, bias)


def sum_active_rows(rows: Tensor, active: Tensor, factors: Tensor) -> Tensor:
    """Returns the sum of factors (n,) times rows[active], rows (F, C) -> (C,); each thread sums a part."""
    size = -(-len(active) // torch.get_num_threads())
    starts = torch.arange(0, len(active), size)
    parts = F.embedding_bag(active, rows, starts, mode="sum", per_sample_weights=factors)  # (threads, C)
    return parts[0] if len(parts) == 1 else parts.sum(0)


def measure_zero_skipping(
    model: Transformer, skipping: Sequence[ZeroSkippingWeight], tokens: Sequence[int], repeats: int = 3
) -> float:
    """Measures how many times as fast single rows are when zeros are skipped.

    As in decoding, a row meets the matrices of all layers in turn, so that none stays in the processor's cache. The
    rows are the activations of the feed-forwards of `model` for the last MEASURED_ROWS of `tokens`.

    Args:
        model: whose second matrices `skipping` are, in the order of its layers.
        skipping: the skipping weight of each ReLU^2 feed-forward.
        tokens: ids of a text.
        repeats: rounds; whole and skipping products take turns, and the fastest round counts.

    Returns:
        Seconds of the whole products divided by seconds of the skipping ones.
    """
    inputs: list[Tensor] = []  # of each layer, (rows, F)
    feed_forwards: list[Any] = [block.mlp for block in model.blocks if isinstance(block.mlp, FeedForward)]
    hooks = [
        mlp.register_forward_pre_hook(lambda mlp, args: inputs.append(mlp.compute_activations(*args)[0]))
        for mlp in feed_forwards
        if isinstance(mlp.fc2.weight, ZeroSkippingWeight)
    ]
    with torch.inference_mode():
        model(torch.tensor([list(tokens)], device=model.embedding.weight.device))
        for hook in hooks:
            hook.remove()
        rows = [layer[-MEASURED_ROWS:, None] for layer in inputs]
        ways: dict[str, Sequence[Any]] = {"whole": [weight.dense for weight in skipping], "skipping": skipping}
        fastest: dict[str, float] = {}
        for _ in range(repeats):
            for name, weights in ways.items():
                start = time.perf_counter()
                for i in range(len(rows[0])):
                    for layer, weight in zip(rows, weights, strict=True):
                        F.linear(layer[i], weight)
                fastest[name] = min(fastest.get(name, math.inf), time.perf_counter() - start)
    return fastest["whole"] / fastest["skipping"]


def skip_relu2_zeros(model: Transformer, packs: bool) -> dict[str, ZeroSkippingWeight]:
    """Replaces the second matrix of every ReLU^2 feed-forward by one that skips zeros; returns these by name.

    packs: whether the whole matrix, for where it is faster, is stored in oneDNN's layout.
    """
    replaced = {}
    for layer, mlp in list_skippable_layers(model):
        weight = mlp.fc2.weight.detach()
        del mlp.fc2.weight
        skipping = ZeroSkippingWeight(weight, PackedWeight(weight) if packs else weight.clone())
        mlp.fc2.weight = skipping  # type: ignore[assignment]
        replaced[f"blocks.{layer}.mlp.fc2.weight"] = skipping
    return replaced


def list_skippable_layers(model: Transformer) -> list[tuple[int, FeedForward]]:
    """Returns numbers and feed-forwards of the layers that can skip zeros: those with ReLU^2 and a large matrix."""
    return [
        (layer, block.mlp)
        for layer, block in enumerate(model.blocks)
        if isinstance(block.mlp, FeedForward)
        and block.mlp.activation is relu2
        and is_plain(block.mlp.fc2)
        and isinstance(block.mlp.fc2.weight, nn.Parameter)
        and block.mlp.fc2.weight.numel() >= MIN_WEIGHT_NUMEL
    ]
