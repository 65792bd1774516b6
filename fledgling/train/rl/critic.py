"""The critic of PPO: a linear value head on the shared trunk, and what it says about packed answers.

The one idea: the value of a token's state is read off the hidden state that predicts the token, so policy and
critic share one forward. The head is a child of the model called `critic`: its parameters have names, roles and
optimizer state like all others; in a checkpoint they are a group of their own, so that the model's group stays a
language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.config import Recipe
from fledgling.model.transformer import Transformer

CRITIC = "critic"


class ValueHead(nn.Module):
    """(B, T, C) -> (B, T), 0 at the start: an untrained critic expects nothing."""

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in fp32."""
        return (hidden.float() @ self.weight.T)[..., 0] + self.bias


def uses_critic(recipe: Recipe, stage: str) -> bool:
    """Whether a stage learns with a critic."""
    return stage == "rl" and recipe.rl.algorithm == "ppo"


def attach_critic(model: Transformer) -> None:
    """Give the model a critic."""
    model.add_module(CRITIC, ValueHead(model.config.width, model.head.weight.device))


def split_critic(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A model's tensors as groups of a checkpoint: "model" and, where there is one, "critic"."""
    critic = {name: value for name, value in tensors.items() if name.startswith(f"{CRITIC}.")}
    groups = {"model": {name: value for name, value in tensors.items() if name not in critic}}
    return {**groups, **({CRITIC: critic} if critic else {})}
