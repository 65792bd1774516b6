"""FlashNorm: the norm's weight folded into the matrices that follow, and its division taken behind their products.

One idea: a linear layer commutes with scaling its input. With r = 1 / RMS(x), one number a token, and the weight g,

    W (g r x) = r (W diag(g)) x

so g can be folded into W once (`fold`: nothing is left to multiply), and r can be applied to the result, so that the
product need not wait for the mean over the width (`deferred`). Where r passes further:

    queries, keys, values   r behind each product
    ReLU^2 without bias     max(0, r h)^2 = r^2 max(0, h)^2: r^2 behind the second matrix
    GELU, and any bias      behind the first matrix: neither is homogeneous
    SwiGLU                  silu(r gate) is not homogeneous: r on the gate; that of `up` passes behind the last matrix

Exact up to rounding: within 1e-5 of plain RMSNorm in fp32. The norm before the head stays where it is: its result is
what a model returns.

Source: Graef et al. 2024, arXiv 2407.09577.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fledgling.config import ModelConfig, UserError

NormOutput = tuple[
    Tensor, Tensor | None
]  # what the matrices read (..., C), and what their products are still to be times


def apply_norm(norm: nn.Module, x: Tensor) -> NormOutput:
    """x (..., C) -> norm(x), and nothing left to do."""
    return norm(x), None


def apply_norm_deferred(norm: nn.Module, x: Tensor) -> NormOutput:
    """x (..., C) -> x times the norm's weight where it has one, and 1 / RMS(x) (..., 1), from fp32, in x's dtype."""
    factor = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.eps).type_as(x)
    return (x if norm.weight is None else x * norm.weight.to(x.dtype)), factor


def fold_norm_weights(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same model with every norm's weight multiplied into the matrices behind it, and left as ones.

    state: names as the model's, not changed. Raises UserError where a norm has no weight of that kind, or where the
    head, which the last norm's weight goes into, is the embedding too.
    """
    if config.norm != "rms_weighted":
        raise UserError(f'only weights of RMSNorm are folded, and this model\'s norm is "{config.norm}"')
    if config.tie_embeddings:
        raise UserError("the last norm cannot be folded into a head that is the embedding too (model.tie_embeddings)")
    inward = ("gate_proj", "up_proj") if config.is_gated else ("fc1",)
    readers = {"norm.weight": ("head.weight",)}
    for layer in range(config.depth):
        block = f"blocks.{layer}"
        readers[f"{block}.attention_norm.weight"] = tuple(f"{block}.attention.{n}_proj.weight" for n in "qkv")
        readers[f"{block}.mlp_norm.weight"] = tuple(f"{block}.mlp.{n}.weight" for n in inward)
    folded = dict(state)
    for weight, matrices in readers.items():
        folded |= {name: state[name] * state[weight] for name in matrices}  # (out, C) x (C,)
        folded[weight] = torch.ones_like(state[weight])
    return folded


def drop_norm_weights(config: ModelConfig, folded: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A folded model as one whose norms have no weights at all: its description, and its state."""
    kept = {name: tensor for name, tensor in folded.items() if not name.endswith("norm.weight")}
    return replace(config, norm="rms"), kept
