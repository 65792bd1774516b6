"""The initial weights of a model whose embedding and head begin as one matrix (`optimizer.tied_updates`)."""

from __future__ import annotations

import torch

from fledgling.model.transformer import INIT_STD, Transformer


@torch.no_grad()
def tie_initial_weights(model: Transformer) -> None:
    """Sets the initialized embedding and the head to the matrix that `Transformer.initialize` gives a tied model."""
    config = model.config
    assert not config.tie_embeddings, "the model has two matrices"
    if config.family == "fledgling":  # whose untied embedding is drawn with standard deviation 1
        model.embedding.weight.mul_(INIT_STD)
    model.head.weight.copy_(model.embedding.weight)
