"""Tasks: what the model learns in conversation, and how it is evaluated.

Start with `task.py` (the interface). `skills/` holds the generated tasks, endless and without any file, and
`environments/` tasks of many turns. The public sets: `dataset.py` (a task of finite splits), `multiple_choice.py`
(ARC, MMLU), `gsm8k.py`, `humaneval.py`. A user's own files: `questions.py` (with answers), `conversations.py`
(without; SmolTalk too), which `inspection.py` describes before training (`inspected_rows.py`: how the model reads
them). `epoch_reader.py` reads any of them without the few bad rows. `core.py` reads the 22 tasks of CORE,
`contamination.py` finds evaluation items in training text, `exam_names.py` says what a stage is examined on.

Every example is a pure function of (seed, index). Generated tasks have four disjoint sets of wordings (train, practice,
dev, test) and hold out words, number pairs and combinations by a stable hash; the others have the published splits. No
torch, no network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

from fledgling.config import UserError, did_you_mean
from fledgling.files import resolve_data_root, split_columns
from fledgling.tasks import conversations, environments, gsm8k, humaneval, multiple_choice, questions
from fledgling.tasks.dataset import SplitFiles
from fledgling.tasks.task import (
    TRAIN,
    ConversationSource,
    GeneratedTask,
    Question,
    Task,
    find_constant_baseline,
    make_rng,
    score_answers,
)

__all__ = [
    "CHAT_PREFIX",
    "CONVERSATION_SETS",
    "ENVIRONMENT_PREFIX",
    "GENERATED_TASKS",
    "PUBLIC_TASKS",
    "SKILLS",
    "ConversationSource",
    "Question",
    "Task",
    "find_constant_baseline",
    "is_file_source",
    "is_generated_source",
    "load_source",
    "load_task",
    "make_mixture_example",
    "score_answers",
]

SKILLS = ("arithmetic", "spelling", "counting", "identity", "stdlib")  # the generated tasks of the quickstart
GENERATED_TASKS = (*SKILLS, "language")  # and one that no exam has unless it is named
PUBLIC_TASKS = ("arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval")  # whose mean is ChatCORE
CONVERSATION_SETS = ("smoltalk", "smol-smoltalk")  # for training only
CHAT_PREFIX, QUESTIONS_PREFIX = "chat:", "questions:"  # followed by the path of a user's file
ENVIRONMENT_PREFIX = "env:"  # followed by an environment's name, module:Class or path.py:Class
JOIN_PROBABILITY = 0.07  # of two mixture examples in one conversation

_PUBLIC_FACTORIES = {
    "arc_easy": multiple_choice.make_arc_task,
    "arc_challenge": multiple_choice.make_arc_task,
    "mmlu": multiple_choice.make_mmlu_task,
    "gsm8k": gsm8k.make_task,
    "humaneval": humaneval.make_task,
}


def load_task(name: str, data_dir: str | Path | None = None) -> Task:
    """Returns the task called `name`; `questions:PATH` is a user's file, `env:NAME` an environment.

    data_dir is the data root, as `fledgling.files.resolve_data_root` takes it. The files of a public set are read when
    they are first needed. Raises UserError for an unknown name.
    """
    if name in GENERATED_TASKS:
        return _load_skill(name)
    root = resolve_data_root(data_dir)
    if name in PUBLIC_TASKS:
        return _PUBLIC_FACTORIES[name](name, root)
    if name.startswith(QUESTIONS_PREFIX) and name != QUESTIONS_PREFIX:
        return questions.load_questions(_resolve_path(name.removeprefix(QUESTIONS_PREFIX), root), name)
    if name.startswith(ENVIRONMENT_PREFIX) and name != ENVIRONMENT_PREFIX:
        return environments.load_environment_task(name, name.removeprefix(ENVIRONMENT_PREFIX))
    names = (*GENERATED_TASKS, *PUBLIC_TASKS, *(f"{ENVIRONMENT_PREFIX}{each}" for each in environments.ENVIRONMENTS))
    raise UserError(f'no task "{name}"{did_you_mean(name, names)}; known: {", ".join(names)}, {QUESTIONS_PREFIX}PATH')


def load_source(name: str, data_dir: str | Path | None = None) -> ConversationSource:
    """Returns what training reads under `name`: a task, a public set of conversations, or `chat:PATH`.

    A path may be followed by the names of its columns (`fledgling.files.split_columns`).

    Raises UserError as `load_task` does, and for malformed conversations in a user's file.
    """
    root = resolve_data_root(data_dir)
    if name in CONVERSATION_SETS:
        patterns = (f"{name}/data/**/train-*.parquet", f"sft/{name}*.jsonl", f"{name}/*.jsonl", f"{name}*.jsonl")
        split_files = SplitFiles(name, root, {TRAIN: patterns})
        return conversations.ConversationDataset(name, partial(split_files.find_files, TRAIN))
    if name.startswith(CHAT_PREFIX) and name != CHAT_PREFIX:
        path, columns = split_columns(name.removeprefix(CHAT_PREFIX))
        return conversations.load_conversations(_resolve_path(path, root), name, columns)
    return load_task(name, data_dir)


def is_file_source(name: str) -> bool:
    """Returns whether a mixture's name means conversations that are read from files."""
    return name in (*PUBLIC_TASKS, *CONVERSATION_SETS) or name.startswith((CHAT_PREFIX, QUESTIONS_PREFIX))


def is_generated_source(name: str) -> bool:
    """Returns whether a mixture's name means conversations that are generated without end: a skill, an environment."""
    return name in GENERATED_TASKS or name.startswith(ENVIRONMENT_PREFIX)


@lru_cache(maxsize=32)
def _load_skill(name: str) -> GeneratedTask:
    return importlib.import_module(f"fledgling.tasks.skills.{name}").make_task()


def _resolve_path(path: str, root: Path) -> Path:
    """Returns the path under the data root if only that exists, else the path unchanged."""
    return Path(path) if Path(path).exists() or not (root / path).exists() else root / path


def make_mixture_example(weights: Mapping[str, float], index: int, seed: int) -> dict:
    """Returns training example `index` of `seed` from a mixture of generated sources: {"messages": [...]}.

    A pure function of its arguments. With probability `JOIN_PROBABILITY`, two examples are joined into one conversation
    of several turns.

    Args: weights: task name -> share; their order has no influence. Raises UserError if no weight is above 0.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    if not names:
        raise UserError("the mixture of tasks is empty; give at least one task a weight above 0")
    shares = [weights[name] for name in names]
    rng = make_rng("mixture", seed, index)
    first = load_task(rng.choices(names, shares)[0]).get_train_conversation(index, seed)
    if rng.random() >= JOIN_PROBABILITY:
        return first
    second = load_task(rng.choices(names, shares)[0]).get_train_conversation(index, seed + 1_000_003)
    return {"messages": [*first["messages"], *second["messages"]]}
