"""Roles of parameters: every parameter has exactly one role, and every role exactly one update rule."""

from __future__ import annotations

from dataclasses import dataclass

from fledgling.config import OptimizerConfig

# Rates of an optimizer outside a run, whose size no rule can know; a run's recipe has all of its rates.
UNSIZED_RATES = {"embedding": 0.3, "matrix": 0.02, "head": 0.004, "scalar": 0.01, "adapter": 0.001}
ROLES = ("embedding", "matrix", "head", "scalar", "adapter")


@dataclass(frozen=True)
class UpdateRule:
    """The rule that updates a role, and its learning rate at a schedule multiplier of 1."""

    name: str  # "adamw", "muon", or "normuon": Muon with a second moment for each row
    lr: float


def assign_role(name: str, shape: tuple[int, ...]) -> str:
    """Returns the role of a parameter of `fledgling.model.transformer`, or of the critic.

    Learned positions and gates are scalars like the weights of norms and the biases: many small values, not a matrix
    that maps anything. The thin matrices of an adapter have a role of their own: Muon would give all of their few
    directions equal updates. A matrix that is both embedding and head has the name of the head, and so its role.
    """
    if ".adapter." in name:
        return "adapter"
    if name.startswith("positions.") or name.endswith("gate.weight"):
        return "scalar"
    if name.startswith("embedding.") or name.endswith(".value_embedding.weight"):
        return "embedding"
    if name.startswith(("head.", "critic.weight")):
        return "head"
    return "matrix" if len(shape) == 2 else "scalar"


def assign_rules(config: OptimizerConfig) -> dict[str, UpdateRule]:
    """Returns the rule of every role, with the learning rates of a recipe's [optimizer] table."""
    given = {role: getattr(config, f"{role}_lr") for role in UNSIZED_RATES}
    rates = {role: UNSIZED_RATES[role] if rate is None else rate for role, rate in given.items()}
    names = dict.fromkeys(ROLES, "adamw") | {"matrix": config.matrix_optimizer}
    return {role: UpdateRule(names[role], rate) for role, rate in rates.items()}
