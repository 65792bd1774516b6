"""Arithmetic: a sum, a difference or a product in words, answered through the calculator.

The model need not add. It finds two numbers and an operation in the sentence, writes the expression between
python_start and python_end, and repeats the result, so that the skill is reading. The expression keeps the order of the
numbers in the sentence, except for subtractions like "take 4 from 9". There is no division and no hidden step.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from fledgling.tasks.skills.templates import (
    capitalize_first,
    decorate_template,
    expand_each,
    expand_patterns,
    load_templates,
    sample_plural_noun,
    sample_story_words,
)
from fledgling.tasks.task import PRACTICE, TRAIN, GeneratedTask, Question, is_held_out

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_COMPOSED = 2  # the first families of an operation, composed of phrases and frames: "subtract 3 from 5"
_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@lru_cache(maxsize=1)
def _train_templates() -> dict[str, tuple[tuple[tuple[str, ...], ...], ...]]:
    """Returns the training cores of each operation by family and pattern: 2 composed, 3 of stories, 10 varied ones.

    The composed families come first (`_COMPOSED`).
    """
    table = load_templates("arithmetic")["train"]

    def fill_frames(kind: str, phrases: Iterable[str]) -> tuple[str, ...]:
        return tuple(frame.replace("#", phrase) for frame in expand_patterns(*table[kind]) for phrase in phrases)

    families: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {}
    for sign in _OPERATORS:
        nouns = expand_patterns(*table["noun_phrases"][sign])
        verbs = expand_patterns(*table["verb_phrases"][sign])
        about_nouns, about_verbs = fill_frames("noun_phrase_frames", nouns), fill_frames("verb_phrase_frames", verbs)
        gerunds = expand_patterns(*(frame.replace("#", table["gerunds"][sign]) for frame in table["gerund_frames"]))
        request, names = table["operation_requests"][sign], table["operation_names"][sign]
        two_parts = expand_patterns(
            *(frame.replace("#", request) for frame in table["numbers_first_frames"]),
            *(frame.replace("#", name) for frame, name in zip(table["operation_first_frames"], names, strict=True)),
        )
        plain = (about_nouns, about_nouns, about_verbs, gerunds, two_parts, two_parts, (*nouns, *verbs))
        stories, varied = expand_each(table["stories"][sign]), expand_each(table["varied"][sign])
        families[sign] = (*[plain] * 2, *[stories] * 3, *[varied] * 10)
    return families


@lru_cache(maxsize=1)
def _practice_templates() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Returns the practice templates of each operation by pattern: a pattern is drawn first, then an expansion."""
    table = load_templates("arithmetic")[PRACTICE]
    return {sign: expand_each(patterns) for sign, patterns in table.items()}


def list_templates(which: str) -> tuple[str, ...]:
    """Returns all templates of a set: TRAIN (before openings and closings), PRACTICE, DEV or TEST."""
    if which not in (TRAIN, PRACTICE):
        return tuple(_signs_by_template(which))
    if which == PRACTICE:
        return tuple(core for patterns in _practice_templates().values() for cores in patterns for core in cores)
    families = (family for families in _train_templates().values() for family in families)
    return tuple(dict.fromkeys(core for family in families for cores in family for core in cores))


@lru_cache(maxsize=2)
def _signs_by_template(which: str) -> dict[str, str]:
    """Returns the operation of each dev or test template."""
    return {core: sign for sign, templates in load_templates("arithmetic")[which].items() for core in templates}


def _sample_number(rng: random.Random, sign: str) -> int:
    """Returns a number whose count of digits is drawn first, so that short and long ones mix."""
    digits = rng.choice((1, 2, 2, 2) if sign == "*" else (1, 2, 2, 2, 3, 3))
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _sample_question(rng: random.Random, which: str, held_out: bool, wording: str | None) -> Question:
    sign = _signs_by_template(which)[wording] if wording else rng.choice("+-*")
    while True:
        a, b = _sample_number(rng, sign), _sample_number(rng, sign)
        if is_held_out("pair", sign, min(a, b), max(a, b)) == held_out:
            break
    family = rng.randrange(len(_train_templates()[sign])) if which == TRAIN else 0
    # Mostly results above zero, as in users' questions: below it in composed wordings alone, as stories make no sense.
    if sign == "-" and a < b and (which != TRAIN or family >= _COMPOSED or rng.random() < 0.5):
        a, b = b, a
    if which == TRAIN:
        core = rng.choice(rng.choice(_train_templates()[sign][family]))
        template = decorate_template(core, rng)
    elif which == PRACTICE:
        core = template = rng.choice(rng.choice(_practice_templates()[sign]))
    else:
        core = template = wording or rng.choice(load_templates("arithmetic")[which][sign])
    words = sample_story_words(rng) if which == TRAIN else {"thing": sample_plural_noun(rng)}
    prompt = template.format(a=a, b=b, **words)
    if template.startswith("{") and which == TRAIN and rng.random() < 0.8:
        prompt = capitalize_first(prompt)
    if sign != "-" and core.index("{b}") < core.index("{a}"):  # the reply takes them in the order of the sentence
        a, b = b, a
    return Question("arithmetic", prompt, str(_OPERATORS[sign](a, b)), {"wording": core, "sign": sign, "a": a, "b": b})


def _write_reply(question: Question) -> list[dict]:
    facts = question.facts
    return [
        {"type": "python", "text": f"{facts['a']}{facts['sign']}{facts['b']}"},
        {"type": "output", "text": question.answer},
        {"type": "text", "text": question.answer},
    ]


def score_last_number(question: Question, answer: str) -> float:
    """Returns 1.0 when the last number in `answer` equals the expected one; `1,234.` equals `1234`."""
    numbers = _NUMBER.findall(re.sub(r"(?<=\d),(?=\d{3})", "", answer))
    return float(bool(numbers) and float(numbers[-1]) == float(question.answer))


def make_task() -> GeneratedTask:
    """Returns the task."""
    return GeneratedTask("arithmetic", _sample_question, list_templates, _write_reply, score_last_number)
