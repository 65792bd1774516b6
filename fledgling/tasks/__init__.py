"""Tasks: what the model is taught to do in conversation, and how we know that it can.

Start with `task.py` (what a task is). `skills/` holds the tasks that are generated, endless and without any
file. The public sets: `filed.py` (a task of finite splits), `multiple_choice.py` (ARC, MMLU), `gsm8k.py`,
`humaneval.py`. The user's own: `questions.py` (with answers), `conversations.py` (without; SmolTalk too).

Everything is a pure function of (seed, index). Generated tasks have three sets of wordings that share none (to
train on, to practise on, to be examined in) and keep words and number pairs apart by a stable hash; the others
have the published splits. No torch, no network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

from fledgling.config import UserError, did_you_mean
from fledgling.files import data_root
from fledgling.tasks import conversations, gsm8k, humaneval, multiple_choice, questions
from fledgling.tasks.filed import Places
from fledgling.tasks.task import TRAIN, Question, Source, Task, constant_baseline, stream

__all__ = [
    "CONVERSATIONS",
    "NAMES",
    "PUBLIC",
    "Question",
    "Source",
    "Task",
    "constant_baseline",
    "get",
    "is_read",
    "mixture_example",
    "source",
]

NAMES = ("arithmetic", "spelling", "counting", "identity", "stdlib")  # the generated ones
PUBLIC = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")  # what ChatCORE is the mean of
CONVERSATIONS = ("smoltalk", "smol-smoltalk")  # to learn from only
CHAT, QUESTIONS = "chat:", "questions:"  # prefixes of a path to the user's own
JOINED = 0.07  # the share of mixture examples that are two, one after the other in one conversation

_PUBLIC = {
    "arc_easy": multiple_choice.arc,
    "arc_challenge": multiple_choice.arc,
    "mmlu": multiple_choice.mmlu,
    "gsm8k": gsm8k.task,
    "humaneval": humaneval.task,
}


def get(name: str, data_dir: str | Path | None = None) -> Task:
    """Return the task called `name`; `questions:PATH` is a file of the user's.

    data_dir: the data root, as `fledgling.files.data_root` takes it. A public set's files are read when first
    needed. Raises UserError for a name that is not known.
    """
    if name in NAMES:
        return _generated(name)
    root = data_root(data_dir)
    if name in PUBLIC:
        return _PUBLIC[name](name, root)
    if name.startswith(QUESTIONS) and name != QUESTIONS:
        return questions.load(_here_or_there(name.removeprefix(QUESTIONS), root), name)
    known = (*NAMES, *PUBLIC)
    raise UserError(f'no task "{name}"{did_you_mean(name, known)}; known: {", ".join(known)}, {QUESTIONS}PATH')


def source(name: str, data_dir: str | Path | None = None) -> Source:
    """Return what can be learned from under `name`: a task, a public set of conversations, or `chat:PATH`.

    Raises UserError as `get` does, and for conversations of the user's that are not well formed.
    """
    root = data_root(data_dir)
    if name in CONVERSATIONS:
        patterns = (f"{name}/data/**/train-*.parquet", f"sft/{name}*.jsonl", f"{name}/*.jsonl", f"{name}*.jsonl")
        return conversations.Conversations(name, partial(Places(name, root, {TRAIN: patterns}).find, TRAIN))
    if name.startswith(CHAT) and name != CHAT:
        return conversations.load(_here_or_there(name.removeprefix(CHAT), root), name)
    return get(name, data_dir)


def is_read(name: str) -> bool:
    """Return whether a mixture's name means rows of conversations that are read from files."""
    return name in (*PUBLIC, *CONVERSATIONS) or name.startswith((CHAT, QUESTIONS))


@lru_cache(maxsize=32)
def _generated(name: str) -> Task:
    return importlib.import_module(f"fledgling.tasks.skills.{name}").task()


def _here_or_there(path: str, root: Path) -> Path:
    """Return a path as given where it exists, else under the data root."""
    return Path(path) if Path(path).exists() or not (root / path).exists() else root / path


def mixture_example(weights: Mapping[str, float], index: int, seed: int) -> dict:
    """Return conversation `index` of `seed` from a mixture of generated tasks, in proportion to `weights`, by name.

    A pure function of its arguments; the order of `weights` does not matter. Now and then two examples are
    joined into one conversation of several turns.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    if not names:
        raise UserError("the mixture of tasks is empty; give at least one task a weight above 0")
    shares = [weights[name] for name in names]
    rng = stream("mixture", seed, index)
    first = _generated(rng.choices(names, shares)[0]).train(index, seed)
    if rng.random() >= JOINED:
        return first
    second = _generated(rng.choices(names, shares)[0]).train(index, seed + 1_000_003)
    return {"messages": [*first["messages"], *second["messages"]]}
