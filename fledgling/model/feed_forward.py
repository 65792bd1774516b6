"""The feed-forward part of a block: two matrices around an activation, or three with a gate.

`input_projections` read the residual stream and `output_projection` writes to it. The products are those of linear.py.

Sources: ReLU^2, Primer, So et al. 2021, arXiv 2109.08668; GELU in its tanh form, Hendrycks & Gimpel 2016, arXiv
1606.08415; SwiGLU, Shazeer 2020, arXiv 2002.05202.

B batch, T time, C width of the stream, F intermediate size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import ModelConfig
from fledgling.model.linear import Linear, apply_linear, apply_linears


def relu2(x: Tensor) -> Tensor:
    """Computes max(x, 0)^2."""
    return x.relu().square()


def gelu_tanh(x: Tensor) -> Tensor:
    """Computes x Phi(x) of x (...) with the tanh form of Phi, within 5e-4 of it: what GPT-2 was trained with."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": relu2,
    "gelu": gelu_tanh,
    "gelu_exact": F.gelu,
    "swiglu": F.silu,
    "geglu": gelu_tanh,
}


class FeedForward(nn.Module):
    """fc2(activation(fc1 x))."""

    def __init__(self, config: ModelConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(config.width, config.intermediate_size, bias=config.mlp_bias)  # (F, C)
        self.fc2 = Linear(config.intermediate_size, config.width, bias=config.mlp_bias)  # (C, F)
        # whether a factor r of the input can be applied as r^2 after fc2
        self.scale_commutes = activation is relu2 and not config.mlp_bias

    @property
    def input_projections(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the residual stream."""
        return (self.fc1,)

    @property
    def output_projection(self) -> nn.Linear:
        """The matrix that writes to the residual stream."""
        return self.fc2

    def compute_activations(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> the input of fc2 (B, T, F), without a scale that is applied after fc2."""
        return self.activation(apply_linear(x, self.fc1, None if self.scale_commutes else deferred_scale))

    def forward(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); deferred_scale (B, T, 1): see `apply_linear`."""
        output_scale = deferred_scale.square() if deferred_scale is not None and self.scale_commutes else None
        return apply_linear(self.compute_activations(x, deferred_scale), self.fc2, output_scale)


class GatedFeedForward(nn.Module):
    """down(activation(gate x) * up x)."""

    def __init__(self, config: ModelConfig, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = Linear(config.width, config.intermediate_size, bias=config.mlp_bias)  # (F, C)
        self.up_proj = Linear(config.width, config.intermediate_size, bias=config.mlp_bias)  # (F, C)
        self.down_proj = Linear(config.intermediate_size, config.width, bias=config.mlp_bias)  # (C, F)
        self.scale_commutes = not config.mlp_bias  # the factor of `up`, which is linear, can be applied after down

    @property
    def input_projections(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the residual stream."""
        return self.gate_proj, self.up_proj

    @property
    def output_projection(self) -> nn.Linear:
        """The matrix that writes to the residual stream."""
        return self.down_proj

    def compute_activations(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> the input of down (B, T, F), without a scale that is applied after down."""
        if deferred_scale is not None and self.scale_commutes:
            return self.activation(apply_linear(x, self.gate_proj, deferred_scale)) * apply_linear(x, self.up_proj)
        gate, up = apply_linears(x, self.input_projections, deferred_scale)
        return self.activation(gate) * up

    def forward(self, x: Tensor, deferred_scale: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); deferred_scale (B, T, 1): see `apply_linear`."""
        output_scale = deferred_scale if self.scale_commutes else None
        return apply_linear(self.compute_activations(x, deferred_scale), self.down_proj, output_scale)


def make_feed_forward(config: ModelConfig) -> FeedForward | GatedFeedForward:
    """Returns the part that `config.activation` names."""
    activation = ACTIVATIONS[config.activation]
    return GatedFeedForward(config, activation) if config.is_gated else FeedForward(config, activation)
