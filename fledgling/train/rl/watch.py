"""What a round of rollouts is recorded as, and the signs that learning has collapsed.

The one idea: collapse has few faces, each a number with a line it should not cross: nothing varies within groups, one
answer for everything, entropy gone, no answer ends by itself, the policy is far from where it began. Crossing one is
said once; nothing is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fledgling.evals.passk import pass_at_k
from fledgling.infer.ticket import Completion

PATIENCE = 3  # rounds in a row
SIGNS: dict[str, tuple[str, Callable[[float], bool], str]] = {  # number, what is wrong with it, in words
    "silent": ("groups_with_signal", lambda share: share == 0, "no group has answers of different reward"),
    "alike": ("distinct", lambda share: share < 0.05, "fewer than 1 in 20 answers differ from the others"),
    "certain": ("entropy", lambda nats: nats < 0.01, "the entropy is below 0.01 nats a token"),
    "endless": ("cut_share", lambda share: share > 0.9, "more than 9 in 10 answers are cut at rl.max_tokens"),
    "far": ("kl", lambda nats: nats > 1.0, "more than 1 nat a token from the stage's first weights"),
}


def round_figures(rewards: np.ndarray, parts: dict[str, np.ndarray], answers: Sequence[Completion]) -> dict[str, float]:
    """The record of one round: rewards (P, G), their parts (P, G) by name, and the P G answers.

    reward and its parts: means; pass_at_1, pass_at_group: unbiased estimates, an answer being right where the task
    scores it 1; groups_with_signal: share whose rewards differ; entropy: mean of -log p over sampled tokens, an
    unbiased estimate in nats a token; distinct: different answers / answers; cut_share: share cut at the end.
    """
    group = rewards.shape[1]
    right = (parts["task"] >= 1).sum(1)
    sampled = [p for a in answers for p, forced in zip(a.logprobs, a.forced, strict=True) if not forced]
    told = {
        "reward": float(rewards.mean()),
        "pass_at_1": float(np.mean([pass_at_k(group, int(c), 1) for c in right])),
        "pass_at_group": float((right > 0).mean()),
        "groups_with_signal": float((np.ptp(rewards, axis=1) > 0).mean()),
        "length": float(np.mean([len(a.tokens) for a in answers])),
        "entropy": -float(np.mean(sampled)) if sampled else 0.0,
        "distinct": len({tuple(a.tokens) for a in answers}) / len(answers),
        "cut_share": float(np.mean([a.finish != "stop" for a in answers])),
    }
    if len(parts) > 1:
        told |= {f"reward_{name}": float(part.mean()) for name, part in parts.items()}
    return told


class Watch:
    """Counts rounds in a row that show a sign of collapse, and says it once it has lasted."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.lasted, self.told = say, dict.fromkeys(SIGNS, 0), set()

    def look(self, figures: dict[str, float]) -> None:
        """One round's figures."""
        for sign, (name, wrong, words) in SIGNS.items():
            here = name in figures and wrong(figures[name])
            self.lasted[sign] = self.lasted[sign] + 1 if here else 0
            if self.lasted[sign] == PATIENCE and sign not in self.told:
                self.told.add(sign)
                self.say(f"rl: for {PATIENCE} rounds {words} ({name} {figures[name]:.3g}): learning may have collapsed")
