"""What a round of rollouts is recorded as, and the signs that learning has collapsed.

The one idea: collapse has few faces, each a number with a line it should not cross: nothing varies within groups, one
answer for everything, entropy gone, no answer ends by itself, the policy is far from where it began. Crossing one is
said once; nothing is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fledgling.evals.passk import pass_at_k
from fledgling.infer.request import Completion

MAX_COLLAPSED_ROUNDS = 3  # rounds in a row
COLLAPSE_SIGNS: dict[str, tuple[str, Callable[[float], bool], str]] = {  # number, what is wrong with it, in words
    "silent": ("groups_with_signal", lambda share: share == 0, "no group has answers of different reward"),
    "alike": ("distinct", lambda share: share < 0.05, "fewer than 1 in 20 answers differ from the others"),
    "certain": ("entropy", lambda nats: nats < 0.01, "the entropy is below 0.01 nats a token"),
    "endless": ("cut_share", lambda share: share > 0.9, "more than 9 in 10 answers are cut at rl.max_new_tokens"),
    "far": ("kl", lambda nats: nats > 1.0, "more than 1 nat a token from the stage's first weights"),
}


def measure_round(
    rewards: np.ndarray, reward_parts: dict[str, np.ndarray], completions: Sequence[Completion]
) -> dict[str, float]:
    """The record of one round: rewards (P, G), their parts (P, G) by name, and the P G answers.

    reward and its parts: means; pass_at_1, pass_at_group: unbiased estimates, an answer being right where the task
    scores it 1; groups_with_signal: share whose rewards differ; entropy: mean of -log p over sampled tokens, an
    unbiased estimate in nats a token; distinct: different answers / answers; cut_share: share cut at the end.
    """
    group = rewards.shape[1]
    right = (reward_parts["task"] >= 1).sum(1)
    sampled = [p for a in completions for p, forced in zip(a.logprobs, a.forced, strict=True) if not forced]
    told = {
        "reward": float(rewards.mean()),
        "pass_at_1": float(np.mean([pass_at_k(group, int(c), 1) for c in right])),
        "pass_at_group": float((right > 0).mean()),
        "groups_with_signal": float((np.ptp(rewards, axis=1) > 0).mean()),
        "length": float(np.mean([len(a.tokens) for a in completions])),
        "entropy": -float(np.mean(sampled)) if sampled else 0.0,
        "distinct": len({tuple(a.tokens) for a in completions}) / len(completions),
        "cut_share": float(np.mean([a.finish_reason != "stop" for a in completions])),
    }
    if len(reward_parts) > 1:
        told |= {f"reward_{name}": float(part.mean()) for name, part in reward_parts.items()}
    return told


class CollapseMonitor:
    """Counts rounds in a row that show a sign of collapse, and says it once it has lasted."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log, self.streaks, self.reported = log, dict.fromkeys(COLLAPSE_SIGNS, 0), set()

    def update(self, metrics: dict[str, float]) -> None:
        """One round's figures."""
        for sign, (name, wrong, words) in COLLAPSE_SIGNS.items():
            here = name in metrics and wrong(metrics[name])
            self.streaks[sign] = self.streaks[sign] + 1 if here else 0
            if self.streaks[sign] == MAX_COLLAPSED_ROUNDS and sign not in self.reported:
                self.reported.add(sign)
                self.log(
                    f"rl: for {MAX_COLLAPSED_ROUNDS} rounds {words} ({name} {metrics[name]:.3g}): learning may have collapsed"
                )
