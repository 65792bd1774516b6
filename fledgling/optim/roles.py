"""Which parameter is moved by which rule: every parameter has exactly one role, every role exactly one rule."""

from __future__ import annotations

from dataclasses import dataclass

from fledgling.config import OptimizerConfig

ROLES = ("embedding", "matrix", "head", "scalar")


@dataclass(frozen=True)
class UpdateRule:
    """What moves a role: the function's name and its rate at full schedule."""

    name: str  # "adamw", "muon", or "normuon": muon with a variance a row
    lr: float


def assign_role(name: str, shape: tuple[int, ...]) -> str:
    """The role of the parameter called `name` in `fledgling.model.transformer`, or in the critic beside it.

    Learned positions are scalars like the weights of norms and the biases: many small values, no matrix that maps
    anything. A matrix that is embedding and head at once bears the head's name, and moves at its rate.
    """
    if name.startswith("positions."):
        return "scalar"
    if name.startswith("embedding.") or name.endswith(".value_embedding.weight"):
        return "embedding"
    if name.startswith(("head.", "critic.weight")):
        return "head"
    return "matrix" if len(shape) == 2 else "scalar"


def assign_rules(table: OptimizerConfig) -> dict[str, UpdateRule]:
    """The rule of every role, at the rates of a recipe's [optimizer] table."""
    return {
        "embedding": UpdateRule("adamw", table.embedding_lr),
        "matrix": UpdateRule(table.matrix_optimizer, table.matrix_lr),
        "head": UpdateRule("adamw", table.head_lr),
        "scalar": UpdateRule("adamw", table.scalar_lr),
    }
