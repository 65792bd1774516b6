"""How much of the feed-forward's hidden layer is exactly zero, layer by layer: what decoding need not multiply.

ReLU^2 gives exact zeros; GELU and SwiGLU give none worth counting. The activations are made again from what each
feed-forward was given, so the model has no code for being watched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fledgling.data.batch import Batch
from fledgling.evals.measurement import Measurement
from fledgling.model.transformer import Transformer


@torch.no_grad()
def measure_activation_sparsity(model: Transformer, batches: Sequence[Batch]) -> list[Measurement]:
    """The share of exact zeros in all layers, then in each (from 1), over every token of the batches; n tokens."""
    shares: list[list[float]] = [[] for _ in model.blocks]
    hooks = [
        block.mlp.register_forward_pre_hook(
            lambda mlp, given, kept=kept: kept.append(float((mlp.compute_activations(*given) == 0).double().mean()))
        )
        for block, kept in zip(model.blocks, shares, strict=True)
    ]
    try:
        for batch in batches:
            there = batch.to(model.head.weight.device)
            model(there.tokens, there.document_ids)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(batch.tokens.numel() for batch in batches)
    layers = [sum(kept) / len(kept) for kept in shares]  # all batches are of one size
    found = [Measurement("zeros", sum(layers) / len(layers), n=tokens)]
    return found + [Measurement(f"zeros_layer_{n:02}", share, n=tokens) for n, share in enumerate(layers, start=1)]
