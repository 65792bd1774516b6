"""Tasks: what the model is taught to do in conversation, and how we know that it can.

Start with `task.py` (what a task is) and `spelling.py` (the shortest whole one). `wording.py` composes the
wordings, `words.py` finds the words. One file a task: `arithmetic` through the calculator, `spelling`,
`counting` letters, `identity`, `stdlib` from docstrings; `user_jsonl` reads conversations of your own.

Everything is a pure function of (seed, index), in three sets of wordings that share none: one to train on,
one to practise on (reinforcement learning), one that only evaluations use. Words and number pairs are kept
apart by a stable hash. No torch, no network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache

from fledgling.config import UserError, did_you_mean
from fledgling.tasks.task import Question, Task, constant_baseline, stream
from fledgling.tasks.user_jsonl import load

__all__ = ["NAMES", "Question", "Task", "constant_baseline", "get", "mixture_example"]

NAMES = ("arithmetic", "spelling", "counting", "identity", "stdlib")
JOINED = 0.07  # the share of mixture examples that are two, one after the other in one conversation


@lru_cache(maxsize=32)
def get(name: str) -> Task:
    """Return the task called `name`; `user_jsonl:PATH` is a training source of the user's own conversations.

    Raises UserError for a name that is not known.
    """
    kind, _, path = name.partition(":")
    if kind == "user_jsonl" and path:
        return load(path)
    if name not in NAMES:
        raise UserError(f'no task "{name}"{did_you_mean(name, NAMES)}; known: {", ".join(NAMES)}, user_jsonl:PATH')
    return importlib.import_module(f"fledgling.tasks.{name}").task()


def mixture_example(weights: Mapping[str, float], index: int, seed: int) -> dict:
    """Return conversation `index` of `seed` from a mixture of tasks, in proportion to `weights`, by name.

    A pure function of its arguments; the order of `weights` does not matter. Now and then two examples are
    joined into one conversation of several turns.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    if not names:
        raise UserError("the mixture of tasks is empty; give at least one task a weight above 0")
    shares = [weights[name] for name in names]
    rng = stream("mixture", seed, index)
    first = get(rng.choices(names, shares)[0]).train(index, seed)
    if rng.random() >= JOINED:
        return first
    second = get(rng.choices(names, shares)[0]).train(index, seed + 1_000_003)
    if second["messages"][0]["role"] == "system":  # a system message can only come first
        return first
    return {"messages": [*first["messages"], *second["messages"]]}
