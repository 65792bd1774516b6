"""FlashNorm: the norm's weight folded into the matrices that follow, and its division applied after their products.

A linear layer commutes with scaling its input. With r = 1 / RMS(x), one number for each token, and the weight g,

    W (g r x) = r (W diag(g)) x

so g can be folded into W once (`fold_norm_weights`: nothing is left to multiply), and r can be applied to the result,
so that the product need not wait for the mean over the width (`apply_norm_deferred`). Where r can be deferred further:

    queries, keys, values   r after each product
    ReLU^2 without bias     max(0, r h)^2 = r^2 max(0, h)^2: r^2 after the second matrix
    GELU, and any bias      r after the first matrix: neither is homogeneous
    SwiGLU                  r on the gate, because silu(r gate) is not homogeneous; that of `up` after the last matrix

Exact up to rounding: within 1e-5 of plain RMSNorm in fp32. The norm before the head is never deferred: its result is
what a model returns.

Source: Graef et al. 2024, arXiv 2407.09577.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig, UserError
from fledgling.model.norm import RMSNorm, WeightedRMSNorm

NormOutput = tuple[Tensor, Tensor | None]  # input of the matrices (..., C), and the scale still to be applied (..., 1)


def apply_norm(norm: nn.Module, x: Tensor) -> NormOutput:
    """x (..., C) -> norm(x), and no deferred scale."""
    return norm(x), None


def apply_norm_deferred(norm: nn.Module, x: Tensor) -> NormOutput:
    """x (..., C) -> x times the norm's weight, if any, and 1 / RMS(x) (..., 1), computed in fp32, in x's dtype.

    On CUDA without gradients nothing is deferred: there a norm is one kernel, and its scale would be several.
    """
    assert isinstance(norm, RMSNorm | WeightedRMSNorm)
    if x.device.type == "cuda" and not torch.is_grad_enabled():
        return norm(x), None
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.eps).type_as(x)
    return (x if norm.weight is None else x * norm.weight.to(x.dtype)), scale


def fold_norm_weights(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the same model with every norm's weight multiplied into the matrices after it; the weights become ones.

    Args:
        state: tensors by the model's names; not changed.

    Raises:
        UserError: the norms have no weights of that kind; or the head, which the last norm's weight is folded into, is
            also the embedding.
    """
    if config.norm != "rms_weighted":
        raise UserError(f'only weights of RMSNorm can be folded, and this model\'s norm is "{config.norm}"')
    if not config.has_plain_blocks:
        raise UserError("norms can be folded only where each comes right before its matrices")
    if config.tie_embeddings:
        raise UserError("the last norm cannot be folded into a head that is also the embedding (model.tie_embeddings)")
    input_projections = ("gate_proj", "up_proj") if config.is_gated else ("fc1",)
    readers: dict[str, tuple[str, ...]] = {"norm.weight": ("head.weight",)}
    for layer in range(config.depth):
        block = f"blocks.{layer}"
        readers[f"{block}.attention_norm.weight"] = tuple(f"{block}.attention.{n}_proj.weight" for n in "qkv")
        readers[f"{block}.mlp_norm.weight"] = tuple(f"{block}.mlp.{n}.weight" for n in input_projections)
    folded = dict(state)
    for weight, matrices in readers.items():
        folded |= {name: state[name] * state[weight] for name in matrices}  # (out, C) x (C,)
        folded[weight] = torch.ones_like(state[weight])
    return folded


def drop_norm_weights(config: ModelConfig, folded: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Returns the configuration and tensors of a folded model whose norms have no weights at all."""
    tensors = {name: tensor for name, tensor in folded.items() if not name.endswith("norm.weight")}
    return replace(config, norm="rms"), tensors
