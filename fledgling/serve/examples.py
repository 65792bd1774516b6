"""Questions that a model was taught to answer, from its recipe: the page offers them to begin a conversation."""

from __future__ import annotations

import tomllib
from typing import Any

from fledgling.config import UserError
from fledgling.tasks import GENERATED_TASKS, load_task

MAX_EXAMPLES = 6
MAX_CHARS = 90
MAX_TRIES = 20  # questions of a task, until one is short
SEED = 3


def list_examples(recipe_toml: str) -> tuple[str, ...]:
    """Returns short practice questions, one of each generated task that the recipe's last stages teach.

    A recipe that cannot be read or has no such task gives none.
    """
    try:
        recipe: dict[str, Any] = tomllib.loads(recipe_toml)
    except tomllib.TOMLDecodeError:
        return ()
    weights: dict[str, Any] = {**recipe.get("sft", {}).get("mixture", {}), **recipe.get("rl", {}).get("tasks", {})}
    names = [name for name in weights if name in GENERATED_TASKS]
    questions = (_find_short_question(name) for name in names)
    return tuple(question for question in questions if question)[:MAX_EXAMPLES]


def _find_short_question(task: str) -> str | None:
    try:
        source = load_task(task)
        prompts = (source.get_practice_question(index, SEED).prompt for index in range(MAX_TRIES))
        return next((prompt for prompt in prompts if len(prompt) <= MAX_CHARS and "\n" not in prompt), None)
    except UserError:
        return None
