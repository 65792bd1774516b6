"""What the settings of a preference objective and of an RL algorithm imply, before any of them is built.

The losses are in `fledgling.train.objectives` and `fledgling.train.rl.algorithm`, by the same names.
"""

from __future__ import annotations

from dataclasses import dataclass

CRITIC_SETTINGS = frozenset({"gamma", "gae_lambda", "value_weight", "value_clip"})  # of [rl]


@dataclass(frozen=True)
class ObjectiveTraits:
    """What follows from `dpo.objective`.

    Attributes:
        uses_reference: it compares the weights with those that the stage begins with.
        labels_answers: each answer has a label of its own; otherwise answers come in pairs.
        trains_head: a value head scores answers, instead of the model's log p, and no answer is written.
        settings: of [dpo], which not every objective reads.
    """

    uses_reference: bool = False
    labels_answers: bool = False
    trains_head: bool = False
    settings: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AlgorithmTraits:
    """What follows from `rl.algorithm`: whether the stage trains a critic, and whether it learns from a teacher."""

    uses_critic: bool = False
    uses_teacher: bool = False


OBJECTIVE_TRAITS = {
    "dpo": ObjectiveTraits(uses_reference=True, settings=frozenset({"beta"})),
    "ipo": ObjectiveTraits(uses_reference=True, settings=frozenset({"beta"})),
    "simpo": ObjectiveTraits(settings=frozenset({"beta", "target_margin"})),
    "orpo": ObjectiveTraits(settings=frozenset({"beta"})),
    "kto": ObjectiveTraits(
        uses_reference=True,
        labels_answers=True,
        settings=frozenset({"beta", "desirable_weight", "undesirable_weight"}),
    ),
    "reward": ObjectiveTraits(trains_head=True),
}
OBJECTIVE_SETTINGS = frozenset().union(*(traits.settings for traits in OBJECTIVE_TRAITS.values()))

ALGORITHM_TRAITS = {
    "grpo": AlgorithmTraits(),
    "dr_grpo": AlgorithmTraits(),
    "cispo": AlgorithmTraits(),
    "gspo": AlgorithmTraits(),
    "ppo": AlgorithmTraits(uses_critic=True),
    "distill": AlgorithmTraits(uses_teacher=True),
}
