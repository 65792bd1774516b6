"""Identity: who the model is, in a dozen kinds of question with one fixed, true answer each (identity.toml).

The answers hold for any model that this package trains, whatever its size, so that no recipe teaches its model a false
statement. Every kind has many phrasings and one answer: the model learns to classify questions.
"""

from __future__ import annotations

import random
from functools import lru_cache

from fledgling.tasks.skills.templates import capitalize_first, decorate_template, expand_each, load_templates
from fledgling.tasks.task import TRAIN, GeneratedTask, Question, score_exact_match


@lru_cache(maxsize=4)
def _templates_by_kind(which: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Returns the templates of a set for each kind of question, by pattern; only those of training have choices."""
    return {kind: expand_each(table[which]) for kind, table in load_templates("identity").items()}


def list_templates(which: str) -> tuple[str, ...]:
    """Returns all templates of a set: TRAIN (before openings and closings), PRACTICE, DEV or TEST."""
    return tuple(_kinds_by_template(which))


@lru_cache(maxsize=4)
def _kinds_by_template(which: str) -> dict[str, str]:
    """Returns the kind of question of each template."""
    by_kind = _templates_by_kind(which).items()
    return {core: kind for kind, patterns in by_kind for cores in patterns for core in cores}


def _sample_question(rng: random.Random, which: str, held_out: bool, wording: str | None) -> Question:
    # Only wordings can be held out: the twelve answers are the same in training and evaluation.
    kinds = load_templates("identity")
    kind = _kinds_by_template(which)[wording] if wording else rng.choice(tuple(kinds))
    core = wording or rng.choice(rng.choice(_templates_by_kind(which)[kind]))
    plain = which != TRAIN or kind == "greeting"  # a greeting needs no other greeting before it
    prompt = capitalize_first(core) if plain else decorate_template(core, rng)
    return Question("identity", prompt, kinds[kind]["answer"], {"wording": core, "kind": kind})


def make_task() -> GeneratedTask:
    """Returns the task."""
    return GeneratedTask(
        "identity",
        _sample_question,
        list_templates,
        lambda question: question.answer,
        score_exact_match,
        has_holdout=False,
        has_practice_holdout=False,  # its 77 practice prompts have no word or number to hold out: RL practises them all
    )
