"""A made-up language of 200 words: `the old dog sees the river` gives a sentence that no model has read before.

Velari exists in no text, so what a model knows of it was taught by this task alone: it measures how well a skill is
added to a model, by an adapter or by full fine-tuning (`python -m benchmarks adapter-skill`). Every English word of
language.toml has one word in it, of two syllables; subject, object, verb is the order, an adjective follows its noun,
an adverb comes last, and there is no article. All words are trained; one sentence in ten is held out.
"""

from __future__ import annotations

import random
from functools import lru_cache

from fledgling.tasks.skills.templates import load_templates
from fledgling.tasks.task import GeneratedTask, Question, is_held_out, make_rng, score_exact_match

KINDS = ("nouns", "verbs", "adjectives", "adverbs")
ONSETS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", ("", "", "n", "r", "s", "l")


@lru_cache(maxsize=4)
def list_english(kind: str) -> tuple[str, ...]:
    """Returns the English words of one of KINDS."""
    return tuple(load_templates("language")[kind].split())


@lru_cache(maxsize=1)
def load_lexicon() -> dict[str, str]:
    """Returns English word -> Velari word, no Velari word twice; the same on every machine."""
    rng, lexicon = make_rng("language", "words"), {}
    used: set[str] = set()
    for english in (word for kind in KINDS for word in list_english(kind)):
        word = ""
        while not word or word in used:
            word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(2))
        used.add(word)
        lexicon[english] = word
    return lexicon


def list_wordings(which: str) -> tuple[str, ...]:
    """Returns the wordings of a set: TRAIN, PRACTICE, DEV or TEST."""
    return load_templates("language")[which]


def _sample_sentence(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """Returns an English sentence and its translation."""
    lexicon, forms = load_lexicon(), load_templates("language")["forms"]
    while True:
        form, order = rng.choice(tuple(forms.items()))
        nouns, adjectives = rng.sample(list_english("nouns"), 2), rng.sample(list_english("adjectives"), 2)
        words = dict(zip("nmab", (*nouns, *adjectives), strict=True))
        words |= {"v": rng.choice(list_english("verbs")), "d": rng.choice(list_english("adverbs"))}
        english = form.format(**words)
        if is_held_out("language", english) == held_out:
            return english, " ".join(lexicon[words[slot]] for slot in order.split())


def _sample_question(rng: random.Random, which: str, held_out: bool, wording: str | None) -> Question:
    english, answer = _sample_sentence(rng, held_out)
    core = wording or rng.choice(list_wordings(which))
    return Question("language", core.format(s=english), answer, {"wording": core, "sentence": english})


def make_task() -> GeneratedTask:
    """Returns the task."""
    return GeneratedTask(
        "language", _sample_question, list_wordings, lambda question: question.answer, score_exact_match
    )
