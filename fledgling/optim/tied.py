"""Embedding and head as one matrix at first, and as two later in the run.

While tied, each of the two receives the sum of both gradients, and the head's learning rate. They begin equal
(`fledgling.model.tied_initialization`), so they and their moments stay equal: what is computed is a model with
`model.tie_embeddings`. After the last tied update each has its own gradient and its own rate, from equal
weights and moments. Nothing is added or copied in the middle of a run, so a checkpoint has the same tensors at every
step. From the start the two take the memory of an untied model.

Tied matrices: Press & Wolf 2017, arXiv 1608.05859. Untied at two thirds of the run, with weights and optimizer state
copied: the GPT-2 speed-runs (Jordan et al. 2024, modded-nanogpt).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EMBEDDING, HEAD = "embedding.weight", "head.weight"


def tie_gradients(gradients: dict[str, Tensor], step: Tensor, tied_updates: int) -> None:
    """Replaces the gradients of embedding and head, of the same rows, by their sum, without waiting for a GPU.

    Args:
        gradients: by name, of what this rank owns; it may own no rows of the two.
        step: 0-d, the number of the update, from 1.
        tied_updates: the number of first updates that are of one matrix.
    """
    if not tied_updates or EMBEDDING not in gradients:
        return
    is_tied = step <= tied_updates
    if is_tied.device.type == "cpu" and not is_tied:  # a GPU's answer is not read, because that would wait for it
        return
    embedding, head = gradients[EMBEDDING], gradients[HEAD]
    head.add_(torch.where(is_tied, embedding, 0.0))
    embedding.copy_(torch.where(is_tied, head, embedding))


def choose_lr(name: str, role: str, lr: Callable[[str], Tensor], step: Tensor, tied_updates: int) -> Tensor:
    """Returns the learning rate of a parameter, 0-d, exact: of a tied embedding the head's.

    Args:
        name: of the parameter.
        role: of the parameter.
        lr: returns the learning rate of a role, 0-d, on the CPU.
        step: 0-d, the number of this update, from 1.
        tied_updates: in which embedding and head are one matrix.
    """
    if not tied_updates or name != EMBEDDING:
        return lr(role)
    is_tied = step <= tied_updates
    return is_tied * float(lr("head")) + ~is_tied * float(lr(role))
