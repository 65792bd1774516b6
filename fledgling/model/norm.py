"""Normalization over the width: by the root mean square, without or with a weight, or by mean and variance.

Every norm is a function of x (..., C), computed in fp32 whatever x is; `make_norm` returns the one of a configuration.

Sources: RMSNorm, Zhang & Sennrich 2019, arXiv 1910.07467; LayerNorm, Ba et al. 2016, arXiv 1607.06450.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledgling.config import ModelConfig


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Returns x (..., C) divided by its root mean square over C; computed in fp32, in x's dtype."""
    if x.device.type == "cuda" and not torch.is_grad_enabled():
        return F.rms_norm(x, x.shape[-1:], None, eps)  # one kernel, in fp32 inside
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x)


class RMSNorm(nn.Module):
    """`rms_norm`, without a weight."""

    weight = None

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return rms_norm(x, self.eps)


class WeightedRMSNorm(nn.Module):
    """`rms_norm` times a weight (C,), applied in x's dtype after the rounding, as in Llama."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return rms_norm(x, self.eps) * self.weight.to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / standard deviation, times a weight (C,), plus a bias (C,); in fp32.

    On CUDA without gradients, weight and bias are rounded to x's dtype first, so that one kernel computes it.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        if x.device.type == "cuda" and not torch.is_grad_enabled():
            return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        wide = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return wide.type_as(x)


class EmbeddingScale(nn.Module):
    """x times a constant, as in Gemma."""

    def __init__(self, multiplier: float) -> None:
        super().__init__()
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x * self.multiplier


def make_embedding_norm(config: ModelConfig) -> nn.Module:
    """Returns what the embedded tokens pass through: `embedding_norm`, `embedding_multiplier`, or nothing."""
    if config.embedding_norm:
        return RMSNorm(config.norm_eps)
    return nn.Identity() if config.embedding_multiplier == 1.0 else EmbeddingScale(config.embedding_multiplier)


def make_norm(config: ModelConfig) -> nn.Module:
    """Returns the norm that `config.norm` names: before attention, before the feed-forward part, and at the end."""
    if config.norm == "rms":
        return RMSNorm(config.norm_eps)
    return (LayerNorm if config.norm == "layer" else WeightedRMSNorm)(config.width, config.norm_eps)
