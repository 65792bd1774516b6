"""The feed-forward part of a block: two matrices around an activation, or three with a gate.

One idea: `inward` matrices read the stream and `outward` ones write to it; what stands between is one function.
Weights are cast to the dtype of what comes in.

Sources: ReLU^2, Primer, So et al. 2021, arXiv 2109.08668; GELU in its tanh form, Hendrycks & Gimpel 2016, arXiv
1606.08415; SwiGLU, Shazeer 2020, arXiv 2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import ModelConfig


def apply_linear(x: Tensor, linear: nn.Linear, deferred_scale: Tensor | None = None) -> Tensor:
    """x W^T + b with the fp32 master weights cast to x's dtype: the products run in the compute dtype.

    factor (..., 1): what x was still to be times (flash_norm.py); then the result is factor (x W^T) + b.
    """
    bias = None if linear.bias is None else linear.bias.to(x.dtype)
    if deferred_scale is None:
        return F.linear(x, linear.weight.to(x.dtype), bias)
    y = F.linear(x, linear.weight.to(x.dtype)) * deferred_scale
    return y if bias is None else y + bias


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return x.relu().square()


def gelu_tanh(x: Tensor) -> Tensor:
    """x Phi(x) with Phi by its tanh form, within 5e-4 of it: what GPT-2 was trained with."""
    return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """fc2(activation(fc1 x)), hidden width F."""

    def __init__(self, config: ModelConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = nn.Linear(config.width, config.intermediate_size, bias=config.bias)  # (F, C)
        self.fc2 = nn.Linear(config.intermediate_size, config.width, bias=config.bias)  # (C, F)
        self.scale_commutes = activation is relu2 and not config.bias  # a factor r of its input is r^2 of its output

    @property
    def input_projections(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the stream."""
        return (self.fc1,)

    @property
    def output_projection(self) -> nn.Linear:
        """The matrix that writes to it."""
        return self.fc2

    def compute_activations(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> what the second matrix reads (B, T, F), less a factor that passes behind it."""
        return self.activation(apply_linear(x, self.fc1, None if self.scale_commutes else deferred_scale))

    def forward(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); factor (B, T, 1): see `project`."""
        behind = deferred_scale.square() if deferred_scale is not None and self.scale_commutes else None
        return apply_linear(self.compute_activations(x, deferred_scale), self.fc2, behind)


class GatedFeedForward(nn.Module):
    """down(silu(gate x) * up x), hidden width F."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.intermediate_size, bias=config.bias)  # (F, C)
        self.up_proj = nn.Linear(config.width, config.intermediate_size, bias=config.bias)  # (F, C)
        self.down_proj = nn.Linear(config.intermediate_size, config.width, bias=config.bias)  # (C, F)
        self.scale_commutes = not config.bias  # the factor of `up`, which is linear

    @property
    def input_projections(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the stream."""
        return self.gate_proj, self.up_proj

    @property
    def output_projection(self) -> nn.Linear:
        """The matrix that writes to it."""
        return self.down_proj

    def compute_activations(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> what the last matrix reads (B, T, F), less a factor that passes behind it."""
        up = apply_linear(x, self.up_proj, None if self.scale_commutes else deferred_scale)
        return F.silu(apply_linear(x, self.gate_proj, deferred_scale)) * up

    def forward(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); factor (B, T, 1): see `project`."""
        return apply_linear(
            self.compute_activations(x, deferred_scale), self.down_proj, deferred_scale if self.scale_commutes else None
        )


def make_feed_forward(config: ModelConfig) -> FeedForward | GatedFeedForward:
    """The part that `config.activation` names."""
    if config.is_gated:
        return GatedFeedForward(config)
    return FeedForward(config, relu2 if config.activation == "relu2" else gelu_tanh)
