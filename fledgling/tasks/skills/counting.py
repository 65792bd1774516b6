"""Counting letters: `How many r are in strawberry?` gives ` s t r1 a w b e r2 r3 y:3`.

A small model cannot count at a glance, but it can spell and keep a running count. Every step is local: after a letter
comes the next letter or, when it is the one in question, the count so far; after the colon, the last count. Counts are
balanced (the count is drawn before the word), so that the constant answer "1" is right in two questions of five only.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

from fledgling.tasks.skills.spelling import quote_word
from fledgling.tasks.skills.templates import decorate_template, expand_each, expand_weights, load_templates
from fledgling.tasks.skills.words import MAX_LETTERS, list_real_words, sample_pseudoword
from fledgling.tasks.task import TRAIN, GeneratedTask, Question, is_held_out

_COUNT_SHARES = ((0, 0.15), (1, 0.40), (2, 0.30), (3, 0.15))  # the last means "three or more"
_LETTERS_BY_FREQUENCY = "aaabcddeeefghiiiklmnnnoooprrrsssttttuvwy"


@lru_cache(maxsize=1)
def _train_templates() -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Returns the training cores by family and pattern: composed wordings, and twice as often the varied ones."""
    families = {name: expand_each(patterns) for name, patterns in load_templates("counting")["train"].items()}
    varied = families.pop("varied")
    return (*families.values(), *[varied] * (2 * len(families)))


def list_templates(which: str) -> tuple[str, ...]:
    """Returns all templates of a set: TRAIN (before openings and closings), PRACTICE, DEV or TEST."""
    if which == TRAIN:
        return tuple(dict.fromkeys(core for family in _train_templates() for cores in family for core in cores))
    return load_templates("counting")[which]


@lru_cache(maxsize=2)
def _letter_forms(kind: str) -> tuple[str, ...]:
    return expand_weights(load_templates("counting")[kind])


@lru_cache(maxsize=2)
def _words_by_count(held_out: bool) -> tuple[tuple[tuple[str, str], ...], ...]:
    """Returns the (word, letter) pairs with the letter once, twice, and three times or more."""
    pairs: tuple[list[tuple[str, str]], ...] = ([], [], [])
    for word in list_real_words(held_out, MAX_LETTERS):
        for letter in sorted(set(word)):
            pairs[min(word.count(letter), 3) - 1].append((word, letter))
    return tuple(map(tuple, pairs))


def _sample_word_and_letter(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """Returns a word and a letter whose count follows `_COUNT_SHARES`."""
    target = rng.choices([count for count, _ in _COUNT_SHARES], [share for _, share in _COUNT_SHARES])[0]
    if target == 0:
        word = rng.choice(list_real_words(held_out, MAX_LETTERS))
        return word, rng.choice([letter for letter in _LETTERS_BY_FREQUENCY if letter not in word])
    if held_out or rng.random() < 0.6:
        return rng.choice(_words_by_count(held_out)[target - 1])
    while True:  # a pseudoword, with the letter inserted as often as it is missing
        letters, letter = list(sample_pseudoword(rng, MAX_LETTERS - 2)), rng.choice(_LETTERS_BY_FREQUENCY)
        while letters.count(letter) < target:
            letters.insert(rng.randint(0, len(letters)), letter)
        word = "".join(letters)
        if len(word) <= MAX_LETTERS and not is_held_out("word", word) and word.count(letter) <= max(target, 3):
            return word, letter


def write_step_metrics(word: str, letter: str) -> str:
    """Returns the reference reply: the letters, the running count after each match, a colon, the count."""
    count, steps = 0, []
    for each in word:
        count += each == letter
        steps.append(f" {each}{count}" if each == letter else f" {each}")
    return f"{''.join(steps)}:{count}"


def _sample_question(rng: random.Random, which: str, held_out: bool, wording: str | None) -> Question:
    word, letter = _sample_word_and_letter(rng, held_out)
    if which == TRAIN:
        core = rng.choice(rng.choice(rng.choice(_train_templates())))
        singular = rng.choice(_letter_forms("letter_forms")).format(letter)
        plural = rng.choice(_letter_forms("plural_forms")).format(letter)
        prompt = decorate_template(core, rng).format(c=singular, cs=plural, w=quote_word(word, rng))
    else:
        core = wording or rng.choice(list_templates(which))
        prompt = core.format(c=letter, w=word)
    return Question("counting", prompt, str(word.count(letter)), {"wording": core, "word": word, "letter": letter})


def score_count(question: Question, answer: str) -> float:
    """Returns 1.0 when the last whole number in `answer` is the count, else 0.0."""
    numbers = re.findall(r"\d+", answer)
    return float(bool(numbers) and int(numbers[-1]) == int(question.answer))


def _write_reply(question: Question) -> str:
    return write_step_metrics(question.facts["word"], question.facts["letter"])


def make_task() -> GeneratedTask:
    """Returns the task."""
    return GeneratedTask("counting", _sample_question, list_templates, _write_reply, score_count)
