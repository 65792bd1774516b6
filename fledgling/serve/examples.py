"""Questions that a model was taught to answer, from its recipe: the page offers them to begin a conversation."""

from __future__ import annotations

import tomllib
from typing import Any

from fledgling.config import STAGES, UserError
from fledgling.tasks import GENERATED_TASKS, load_task

MAX_EXAMPLES = 6
MAX_CHARS = 90
MAX_TRIES = 20  # questions of a task, until one is short
SEED = 3


def list_examples(recipe_toml: str, stage: str) -> tuple[str, ...]:
    """Returns short practice questions, one of each generated task that fine-tuning and RL have taught a checkpoint.

    A recipe that cannot be read or has no such task gives none, and so does a checkpoint before these stages.

    Args:
        recipe_toml: of the checkpoint.
        stage: of the checkpoint; "" counts as the last.
    """
    try:
        recipe: dict[str, Any] = tomllib.loads(recipe_toml)
    except tomllib.TOMLDecodeError:
        return ()
    ended = STAGES[: STAGES.index(stage) + 1] if stage in STAGES else STAGES
    names = [
        name
        for table, key in (("sft", "mixture"), ("rl", "tasks"))
        if table in ended and table in recipe.get("stages", STAGES)
        for name, weight in recipe.get(table, {}).get(key, {}).items()
        if name in GENERATED_TASKS and weight
    ]
    questions = (_find_short_question(name) for name in dict.fromkeys(names))
    return tuple(question for question in questions if question)[:MAX_EXAMPLES]


def _find_short_question(task: str) -> str | None:
    try:
        source = load_task(task)
        prompts = (source.get_practice_question(index, SEED).prompt for index in range(MAX_TRIES))
        return next((prompt for prompt in prompts if len(prompt) <= MAX_CHARS and "\n" not in prompt), None)
    except UserError:
        return None
