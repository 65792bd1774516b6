"""The share of exact zeros in the activations of the feed-forward network, by layer: products that decoding can skip.

ReLU^2 gives exact zeros; GELU and SwiGLU give almost none. The activations are recomputed from the input of each
feed-forward network, so that the model has no code for this measurement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fledgling.data.batch import Batch
from fledgling.evals.measurement import Measurement
from fledgling.model.transformer import Transformer


@torch.no_grad()
def measure_activation_sparsity(model: Transformer, batches: Sequence[Batch]) -> list[Measurement]:
    """Returns the share of exact zeros in all layers, then in each (from 1), over the n tokens of the batches."""
    shares: list[list[float]] = [[] for _ in model.blocks]
    hooks = [
        block.get_submodule("mlp").register_forward_pre_hook(
            lambda mlp, inputs, layer_shares=layer_shares: layer_shares.append(
                _share_of_zeros(mlp.compute_activations(*inputs))
            )
        )
        for block, layer_shares in zip(model.blocks, shares, strict=True)
    ]
    try:
        for batch in batches:
            on_device = batch.to(model.head.weight.device)
            model(on_device.tokens, on_device.document_ids)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(batch.tokens.numel() for batch in batches)
    layers = [sum(layer_shares) / len(layer_shares) for layer_shares in shares]  # all batches have one size
    mean = Measurement("zeros", sum(layers) / len(layers), n=tokens)
    return [mean, *(Measurement(f"zeros_layer_{n:02}", share, n=tokens) for n, share in enumerate(layers, start=1))]


def _share_of_zeros(activations: torch.Tensor) -> float:
    """Returns the share of exact zeros; counted, because some devices have no float64 to average in."""
    return int((activations == 0).sum()) / activations.numel()
