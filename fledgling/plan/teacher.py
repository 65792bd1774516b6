"""Counts what a teacher adds to a step: its weights, its hidden states, its FLOPs, and the divergence from its logits.

A teacher has one of three roles:

    live      its logits are compared with the model's in every step
    stored    its most probable tokens are stored before the first step, when no gradient and no moment exists yet
    scorer    it scores the tokens of a text, or those that the model wrote
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fledgling.config import ModelConfig, Recipe
from fledgling.model.head_chunk import head_chunk_tokens
from fledgling.plan.flops import forward_flops
from fledgling.plan.parameters import parameter_shapes

LIVE, STORED, SCORER = "live", "stored", "scorer"
# Of a chunk at its peak, eager or compiled: fp32 values for each logit, and products in the compute dtype, as measured
# (benchmarks/memory.py).
CHUNK_VALUES = {(LIVE, False): (8, 2), (STORED, False): (8, 1), (LIVE, True): (4, 1), (STORED, True): (4, 0)}


@dataclass(frozen=True)
class PlannedTeacher:
    """A teacher's configuration and its role in a stage."""

    config: ModelConfig
    role: str = LIVE
    top_k: int = 0  # tokens of a position that are stored
    share: float = 1.0  # of the stage's steps, that it reads

    def weight_bytes(self, value_bytes: int) -> int:
        """Returns the bytes of its weights: matrices in the compute dtype, vectors and tables of positions in fp32."""
        return sum(
            prod(shape) * (value_bytes if len(shape) == 2 and not name.startswith("positions.") else 4)
            for name, shape in parameter_shapes(self.config).items()
        )

    def predictions_bytes(self, tokens: int) -> int:
        """Returns the bytes of stored predictions in the batches of a step: ids and log-probabilities."""
        return tokens * (8 * self.top_k + 4 * (self.top_k + 1))

    def divergence_bytes(self, model: ModelConfig, tokens: int, value_bytes: int, device: str, compiled: bool) -> int:
        """Returns the bytes of the divergence of a micro-batch at its peak, which replaces the cross-entropy.

        Hidden states that are selected, of the model and of a live teacher; a chunk of logits with what is computed
        of them, of both; the head in the compute dtype.

        Args:
            model: the one that learns.
            tokens: of the micro-batch, all of them targets.
            device: "cpu" or "cuda".
            compiled: whether the divergence is.
        """
        V, E, w = model.vocab_size, model.width, value_bytes
        n = min(tokens, head_chunk_tokens(V, device))
        hidden = tokens * w * (E + (self.config.width if self.role == LIVE else 0))
        values, products = CHUNK_VALUES[self.role, compiled]
        gradient = 4 * tokens * E  # of the hidden states, in fp32
        return hidden + gradient + n * V * (4 * values + w * products) + (0 if w == 4 else w * V * E)

    def added_flops(self, model: ModelConfig) -> int:
        """Returns the FLOPs that it adds to a token of training: it reads tokens, and its head scores them.

        A stored teacher reads a row once, at most once for each time that the row is learned.
        """
        return round(forward_flops(self.config, model.context)["total"] * self.share)


def plan_teacher(recipe: Recipe, stage: str, config: ModelConfig | None) -> PlannedTeacher | None:
    """Returns the teacher of a stage, given its configuration; None where the stage has none or it is not known."""
    if config is None or not recipe.has_teacher(stage):
        return None
    top_k, share = recipe.distill.top_k, recipe.distill.until / recipe.distill.every
    if stage == "rl" or recipe.distill.match == "text":
        return PlannedTeacher(config, SCORER, share=1.0 if stage == "rl" else share)
    return PlannedTeacher(config, LIVE if top_k is None else STORED, top_k or 0, share)
