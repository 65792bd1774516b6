"""Spelling: the letters of a word, one token each: `apple` gives ` a p p l e`.

A model that reads pieces of words never sees letters; this skill teaches what the pieces are made of. With a space
before each letter, every letter of the answer is one known token. Pseudowords are used in training only.
"""

from __future__ import annotations

import random
from functools import lru_cache

from fledgling.tasks.skills.templates import decorate_template, expand_each, expand_weights, load_templates
from fledgling.tasks.skills.words import list_real_words, sample_pseudoword
from fledgling.tasks.task import TRAIN, GeneratedTask, Question

MAX_LETTERS = 10


@lru_cache(maxsize=1)
def _train_templates() -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Returns the training cores by family and pattern: composed wordings, and twice as often the varied ones."""
    families = {name: expand_each(patterns) for name, patterns in load_templates("spelling")["train"].items()}
    varied = families.pop("varied")
    return (*families.values(), *[varied] * (2 * len(families)))


def list_templates(which: str) -> tuple[str, ...]:
    """Returns all templates of a set: TRAIN (before openings and closings), PRACTICE, DEV or TEST."""
    if which == TRAIN:
        return tuple(dict.fromkeys(core for family in _train_templates() for cores in family for core in cores))
    return load_templates("spelling")[which]


def quote_word(word: str, rng: random.Random) -> str:
    """Returns `word` bare (half of the time) or in one of the usual quotation marks."""
    return rng.choice(_load_quotes()).format(word)


@lru_cache(maxsize=1)
def _load_quotes() -> tuple[str, ...]:
    return expand_weights(load_templates("spelling")["quotes"])


def spell_word(word: str) -> str:
    """Returns the letters of `word`, a space before each."""
    return "".join(f" {letter}" for letter in word)


def _sample_question(rng: random.Random, which: str, held_out: bool, wording: str | None) -> Question:
    if not held_out and rng.random() < 0.4:
        word = sample_pseudoword(rng, MAX_LETTERS)
    else:
        word = rng.choice(list_real_words(held_out, MAX_LETTERS))
    if which == TRAIN:
        core = rng.choice(rng.choice(rng.choice(_train_templates())))
        prompt = decorate_template(core, rng).format(w=quote_word(word, rng))
    else:
        core = wording or rng.choice(list_templates(which))
        prompt = core.format(w=word)
    return Question("spelling", prompt, spell_word(word), {"wording": core, "word": word})


def score_spelling(question: Question, answer: str) -> float:
    """Returns 1.0 when the letters of `answer` are those of the word, whatever separates them; else 0.0."""
    return float("".join(filter(str.isalnum, answer)).casefold() == question.facts["word"])


def make_task() -> GeneratedTask:
    """Returns the task."""
    return GeneratedTask("spelling", _sample_question, list_templates, lambda question: question.answer, score_spelling)
