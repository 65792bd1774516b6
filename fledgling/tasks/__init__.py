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
from fledgling.files import resolve_data_root
from fledgling.tasks import conversations, gsm8k, humaneval, multiple_choice, questions
from fledgling.tasks.dataset import SplitFiles
from fledgling.tasks.task import TRAIN, ConversationSource, Question, Task, find_constant_baseline, make_rng

__all__ = [
    "CONVERSATION_SETS",
    "PUBLIC_TASKS",
    "SKILLS",
    "ConversationSource",
    "Question",
    "Task",
    "find_constant_baseline",
    "is_file_source",
    "load_source",
    "load_task",
    "make_mixture_example",
]

SKILLS = ("arithmetic", "spelling", "counting", "identity", "stdlib")  # the generated ones
PUBLIC_TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")  # what ChatCORE is the mean of
CONVERSATION_SETS = ("smoltalk", "smol-smoltalk")  # to learn from only
CHAT_PREFIX, QUESTIONS_PREFIX = "chat:", "questions:"  # prefixes of a path to the user's own
JOIN_PROBABILITY = 0.07  # the share of mixture examples that are two, one after the other in one conversation

_PUBLIC_FACTORIES = {
    "arc_easy": multiple_choice.make_arc_task,
    "arc_challenge": multiple_choice.make_arc_task,
    "mmlu": multiple_choice.make_mmlu_task,
    "gsm8k": gsm8k.make_task,
    "humaneval": humaneval.make_task,
}


def load_task(name: str, data_dir: str | Path | None = None) -> Task:
    """Return the task called `name`; `questions:PATH` is a file of the user's.

    data_dir: the data root, as `fledgling.files.data_root` takes it. A public set's files are read when first
    needed. Raises UserError for a name that is not known.
    """
    if name in SKILLS:
        return _load_skill(name)
    root = resolve_data_root(data_dir)
    if name in PUBLIC_TASKS:
        return _PUBLIC_FACTORIES[name](name, root)
    if name.startswith(QUESTIONS_PREFIX) and name != QUESTIONS_PREFIX:
        return questions.load_questions(_resolve_path(name.removeprefix(QUESTIONS_PREFIX), root), name)
    known = (*SKILLS, *PUBLIC_TASKS)
    raise UserError(f'no task "{name}"{did_you_mean(name, known)}; known: {", ".join(known)}, {QUESTIONS_PREFIX}PATH')


def load_source(name: str, data_dir: str | Path | None = None) -> ConversationSource:
    """Return what can be learned from under `name`: a task, a public set of conversations, or `chat:PATH`.

    Raises UserError as `get` does, and for conversations of the user's that are not well formed.
    """
    root = resolve_data_root(data_dir)
    if name in CONVERSATION_SETS:
        patterns = (f"{name}/data/**/train-*.parquet", f"sft/{name}*.jsonl", f"{name}/*.jsonl", f"{name}*.jsonl")
        return conversations.ConversationDataset(
            name, partial(SplitFiles(name, root, {TRAIN: patterns}).find_files, TRAIN)
        )
    if name.startswith(CHAT_PREFIX) and name != CHAT_PREFIX:
        return conversations.load_conversations(_resolve_path(name.removeprefix(CHAT_PREFIX), root), name)
    return load_task(name, data_dir)


def is_file_source(name: str) -> bool:
    """Return whether a mixture's name means rows of conversations that are read from files."""
    return name in (*PUBLIC_TASKS, *CONVERSATION_SETS) or name.startswith((CHAT_PREFIX, QUESTIONS_PREFIX))


@lru_cache(maxsize=32)
def _load_skill(name: str) -> Task:
    return importlib.import_module(f"fledgling.tasks.skills.{name}").make_task()


def _resolve_path(path: str, root: Path) -> Path:
    """Return a path as given where it exists, else under the data root."""
    return Path(path) if Path(path).exists() or not (root / path).exists() else root / path


def make_mixture_example(weights: Mapping[str, float], index: int, seed: int) -> dict:
    """Return conversation `index` of `seed` from a mixture of generated tasks, in proportion to `weights`, by name.

    A pure function of its arguments; the order of `weights` does not matter. Now and then two examples are
    joined into one conversation of several turns.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    if not names:
        raise UserError("the mixture of tasks is empty; give at least one task a weight above 0")
    shares = [weights[name] for name in names]
    rng = make_rng("mixture", seed, index)
    first = _load_skill(rng.choices(names, shares)[0]).get_train_example(index, seed)
    if rng.random() >= JOIN_PROBABILITY:
        return first
    second = _load_skill(rng.choices(names, shares)[0]).get_train_example(index, seed + 1_000_003)
    return {"messages": [*first["messages"], *second["messages"]]}
