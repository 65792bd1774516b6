"""The critic of PPO, and the score of a reward model: a linear value head on the model's last hidden state.

Policy and critic share one forward: the value of a token's state is read from the hidden state that predicts the token.
The head is a submodule of the model called `critic`, so its parameters have names, roles and optimizer state like all
others. In a checkpoint they are a group of their own, so that the group "model" stays a language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fledgling.model.transformer import Transformer

CRITIC = "critic"


class ValueHead(nn.Module):
    """Maps hidden states (B, T, C) to values (B, T) in fp32; the values of an untrained head are 0."""

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, hidden: Tensor, with_bias: bool = True) -> Tensor:
        """Returns values (B, T) of hidden states (B, T, C); without the bias where only differences have a meaning."""
        values = (hidden.float() @ self.weight.T)[..., 0]
        return values + self.bias if with_bias else values


def attach_critic(model: Transformer) -> None:
    """Adds a critic to the model."""
    model.add_module(CRITIC, ValueHead(model.config.width, model.head.weight.device))


def get_critic(model: Transformer) -> ValueHead:
    """Returns the model's critic."""
    critic = model.get_submodule(CRITIC)
    assert isinstance(critic, ValueHead)
    return critic


def split_critic(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns a model's tensors as groups of a checkpoint: "model" and, if the model has one, "critic"."""
    critic = {name: value for name, value in tensors.items() if name.startswith(f"{CRITIC}.")}
    groups = {"model": {name: value for name, value in tensors.items() if name not in critic}}
    return {**groups, **({CRITIC: critic} if critic else {})}
