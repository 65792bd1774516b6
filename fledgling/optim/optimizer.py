"""The optimizer: state by parameter name, one update for all ranks.

One idea: equal-shaped matrices are moved as one stack, everything else tensor by tensor, and state is saved whole and
by parameter name, so that it can be loaded into any other arrangement. Gradients are summed over ranks (the loss was
divided by the global count of targets). The update of every rank is the same: this is ZeRO stage 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fledgling.config import OptimizerTable, UserError
from fledgling.optim.groups import role_of, rules
from fledgling.optim.rules import adamw_, muon
from fledgling.world import World


class Optimizer:
    """AdamW and Muon over the parameters of a model, by role.

    compiled: fuse the rules with torch.compile (needs a C++ compiler on CPU); the result is the same up to rounding.
    dtype: of Muon's products; bf16 is enough for the update, fp32 keeps splits of a batch equal to fp32's precision.
    """

    def __init__(
        self,
        model: nn.Module,
        table: OptimizerTable,
        world: World,
        rate: float = 1.0,
        compiled: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.table, self.world, self.rate, self.dtype = table, world, rate, dtype
        self.parameters = dict(model.named_parameters())
        self.rules = rules(table)
        self.multiplier, self.count = 1.0, 0
        self._adamw: Callable = torch.compile(adamw_, dynamic=False) if compiled else adamw_
        self.single: dict[str, str] = {}  # name -> role
        self.stacks: dict[tuple[int, ...], list[str]] = defaultdict(list)  # shape -> names
        self.state: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            role = role_of(name, tuple(parameter.shape))
            if self.rules[role].name == "muon":
                self.stacks[tuple(parameter.shape)].append(name)
            else:
                self.single[name] = role
                self.state[f"{name}.mean"] = torch.zeros_like(parameter)
                self.state[f"{name}.square"] = torch.zeros_like(parameter)
        self.velocity = {
            shape: torch.stack([torch.zeros_like(self.parameters[name]) for name in names])
            for shape, names in self.stacks.items()
        }

    def schedule(self, multiplier: float) -> None:
        """Set the multiplier of every rate for the next step."""
        self.multiplier = multiplier

    @torch.no_grad()
    def step(self) -> float:
        """Sum gradients over ranks, move every parameter once, drop the gradients; return the gradient's norm.

        A gradient that is not finite moves nothing: the norm returned is then nan or inf, and the caller decides.
        """
        if self.world.size > 1:
            for parameter in self.parameters.values():
                parameter.grad = self.world.sum(parameter.grad)
        norms = torch._foreach_norm([p.grad for p in self.parameters.values()])
        norm = float(torch.stack(norms).square().sum().sqrt())
        if norm == norm and norm != float("inf"):
            self.count += 1
            self._move()
        for parameter in self.parameters.values():
            parameter.grad = None
        return norm

    def _move(self) -> None:
        table, step = self.table, torch.tensor(float(self.count))
        for name, role in self.single.items():
            parameter = self.parameters[name]
            mean, square = self.state[f"{name}.mean"], self.state[f"{name}.square"]
            self._adamw(
                parameter,
                parameter.grad,
                mean,
                square,
                step,
                self._rate(role),
                table.adam_betas,
                table.adam_eps,
                0.0,
            )
        for shape, names in self.stacks.items():
            stack = torch.stack([self.parameters[name] for name in names])
            gradient = torch.stack([self.parameters[name].grad for name in names])
            moved, self.velocity[shape] = muon(
                stack,
                gradient,
                self.velocity[shape],
                self._rate("matrix"),
                table.momentum,
                table.weight_decay,
                table.newton_schulz_steps,
                self.dtype,
            )
            for name, value in zip(names, moved.unbind(), strict=True):
                self.parameters[name].copy_(value)

    def _rate(self, role: str) -> Tensor:
        return torch.tensor(self.rules[role].rate * self.rate * self.multiplier)

    def tensors(self) -> dict[str, Tensor]:
        """All state by parameter name, whole: `<name>.mean`, `.square`, `.velocity`, and `count` (updates so far)."""
        saved = {name: tensor.clone() for name, tensor in self.state.items()}
        for shape, names in self.stacks.items():
            saved |= {f"{name}.velocity": self.velocity[shape][i].clone() for i, name in enumerate(names)}
        saved["count"] = torch.tensor(self.count)
        return saved

    @torch.no_grad()
    def load_tensors(self, saved: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; raises UserError naming the first tensor that is missing or misshapen."""
        for name, own in self.tensors().items():
            if name not in saved or saved[name].shape != own.shape:
                found = tuple(saved[name].shape) if name in saved else "nothing"
                raise UserError(f"optimizer state {name}: expected shape {tuple(own.shape)}, found {found}")
        for name, tensor in self.state.items():
            tensor.copy_(saved[name])
        for shape, names in self.stacks.items():
            for i, name in enumerate(names):
                self.velocity[shape][i].copy_(saved[f"{name}.velocity"])
        self.count = int(saved["count"])
