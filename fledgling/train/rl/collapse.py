"""The metrics of a round of rollouts, and the signs that learning has collapsed.

Each sign is a metric with a limit: no reward differs within a group, all answers are the same, the entropy is gone, no
answer ends, the policy is far from its initial weights. A sign that lasts is logged once; nothing is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fledgling.evals.passk import pass_at_k
from fledgling.infer.request import Completion
from fledgling.tasks.task import RIGHT_SCORE

MAX_COLLAPSED_ROUNDS = 3  # rounds in a row with a sign, after which it is logged
COLLAPSE_SIGNS: dict[str, tuple[str, Callable[[float], bool], str]] = {  # sign -> metric, its limit, message
    "no_signal": ("groups_with_signal", lambda share: share == 0, "no group has answers of different reward"),
    "identical": ("distinct", lambda share: share < 0.05, "fewer than 1 in 20 answers differ from the others"),
    "entropy": ("entropy", lambda nats: nats < 0.01, "the entropy is below 0.01 nats a token"),
    "endless": (
        "truncated_fraction",
        lambda share: share > 0.9,
        "more than 9 in 10 answers are cut at rl.max_new_tokens",
    ),
    "kl": ("kl", lambda nats: nats > 1.0, "more than 1 nat a token from the stage's first weights"),
}


def measure_round(
    rewards: np.ndarray, reward_parts: dict[str, np.ndarray], completions: Sequence[Completion]
) -> dict[str, float]:
    """Returns the metrics of one round of P prompts with G answers each.

    reward and its parts: means. pass_at_1, pass_at_group: unbiased estimates; an answer is right where its task scores
    1. groups_with_signal: the fraction of groups whose rewards differ. entropy: the mean of -log p over sampled tokens,
    an unbiased estimate in nats per token. tool_calls: answered calls per answer. distinct: different answers /
    answers. truncated_fraction: answers that did not end by themselves / answers.

    Args:
        rewards: (P, G).
        reward_parts: by name, (P, G) each; `task` is among them.
        completions: P G answers.
    """
    group_size = rewards.shape[1]
    right = (reward_parts["task"] >= RIGHT_SCORE).sum(1)  # (P,)
    sampled = [p for c in completions for p, forced in zip(c.logprobs, c.forced, strict=True) if not forced]
    metrics = {
        "reward": float(rewards.mean()),
        "pass_at_1": float(np.mean([pass_at_k(group_size, int(count), 1) for count in right])),
        "pass_at_group": float((right > 0).mean()),
        "groups_with_signal": float((np.ptp(rewards, axis=1) > 0).mean()),
        "tool_calls": float(np.mean([_count_outputs(c.forced) for c in completions])),
        "length": float(np.mean([len(c.tokens) for c in completions])),
        "entropy": -float(np.mean(sampled)) if sampled else 0.0,
        "distinct": len({tuple(c.tokens) for c in completions}) / len(completions),
        "truncated_fraction": float(np.mean([c.finish_reason != "stop" for c in completions])),
    }
    if len(reward_parts) > 1:
        metrics |= {f"reward_{name}": float(part.mean()) for name, part in reward_parts.items()}
    return metrics


def _count_outputs(forced: Sequence[bool]) -> int:
    """Returns the number of runs of forced tokens: each is the output of a tool."""
    return sum(token and not before for before, token in pairwise([False, *forced]))


class CollapseMonitor:
    """Counts the rounds in a row that show a sign of collapse, and logs the sign once when it lasts."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log, self.streaks = log, dict.fromkeys(COLLAPSE_SIGNS, 0)
        self.reported: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts as JSON values."""
        return {"streaks": dict(self.streaks), "reported": sorted(self.reported)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken; {} from an older checkpoint begins to count."""
        self.streaks = dict.fromkeys(COLLAPSE_SIGNS, 0) | state.get("streaks", {})
        self.reported = set(state.get("reported", ()))

    def update(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of one round."""
        for sign, (name, is_beyond, message) in COLLAPSE_SIGNS.items():
            present = name in metrics and is_beyond(metrics[name])
            self.streaks[sign] = self.streaks[sign] + 1 if present else 0
            if self.streaks[sign] == MAX_COLLAPSED_ROUNDS and sign not in self.reported:
                self.reported.add(sign)
                self.log(
                    f"rl: for {MAX_COLLAPSED_ROUNDS} rounds {message} ({name} {metrics[name]:.3g}): "
                    "learning may have collapsed"
                )
