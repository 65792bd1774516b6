"""Wordings: thousands of ways to ask the same thing, composed from small grammars.

The one idea: a wording is (lead) + core + (closing). Cores are written as patterns, `[what is|give me] the
sum`, and expanded; leads and closings are shared by all tasks and say nothing about the question, so that a
small model learns to look for the operands and the verb wherever they stand, and to step over the rest.

What it is not: no language model, no synonyms from outside. `composes` tells whether a template could have
come out of a grammar; the tests use it to prove that unseen wordings are unseen.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Set
from functools import lru_cache

from fledgling.tasks.skills.words import list_real_words

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SPACES = re.compile(r"\s+")
_ASKS = re.compile(
    r"(what|which|who|whose|where|when|why|how|is|are|can|could|would|will|do|does|did|may|have|has)\b|.*\?$"
)

_NOUNS_TEXT = """
garden river train teacher bread piano bicycle window market winter letter kitchen forest camera doctor
island coffee jacket mountain pencil rabbit school engine candle bottle village museum ticket guitar farm
bridge story clock puppy ladder movie castle sandwich planet hammer picnic library tomato ocean blanket
"""
NOUNS = tuple(_NOUNS_TEXT.split())
_THINGS_TEXT = """
apples books coins marbles eggs cards stamps pens cookies dollars points stones pages tickets chairs birds cows
trees flowers boxes cars seats votes kilos miles cents euros songs files photos bricks tiles plates cups bottles
keys rings stars fish cats dogs bees nuts plums beans loaves shirts socks hats toys balls kites boats wheels
ropes nails hours days weeks metres grams friends guests visitors members pupils horses ducks seeds sticks
shells
"""
_PLURALS = tuple(_THINGS_TEXT.split())  # what is counted, bought and lost in stories
PLURAL_NOUNS = frozenset(_PLURALS)
# Words that people put anywhere; they mean nothing here, and `plain_words` drops them.
_FILLERS_TEXT = "just really exactly actually maybe perhaps again today here now um quickly simply kindly"
FILLER_WORDS = tuple(_FILLERS_TEXT.split())

# Openings that fit before a question and before a request alike.
_LEADS = (
    "[hi|hello|hey|hey there|hi there|hello there|good morning|good evening|greetings|dear fledgling]",
    "[ok|okay|so|now|well|right|alright|next|and|again|once more|finally|first]",
    "[excuse me|sorry|one moment|listen|look|help|help me|help me please|i need help|be quick|no rush]",
    "[|a |one |one more |another |my |my next |here is a |here is my |quick |an easy |a new ][question|task]",
    "[for|this is for|i need this for] [school|my homework|work|a quiz|a game|a test|my son|my daughter|a friend]",
    "my [teacher|friend|sister|brother|boss|son|daughter|neighbour|uncle] [asks|asked me|wants to know|needs this]",
    "[i was wondering|i am curious|i would like to know|i want to know|i have to know|i am stuck|i forgot]",
    "[tell me|tell me please|please tell me|can you tell me|could you tell me|answer this|answer me|please answer]",
    "[as a warm-up|while you are here|before i go|when you have time|if you can|if possible|just checking]",
)
_STORIES = (
    "[i|we|she|he|they|my friend|the boy|our teacher] [saw|like|found|sold|lost|drew|made|wanted|"
    "talked about] "
    "[the|a|my|some|that] {noun}",
    "[there is|here is|look at|think of] [the|a|my] {noun}",
    "[i am|we are|they are] [in|at|near|behind] [the|a] {noun}",
)
_CLOSINGS = (
    "[|very ]please",
    "thanks[| a lot| in advance| so much]",
    "thank you[| very much| in advance]",
    "[i forgot|i am curious|i am not sure|i need to know|i cannot remember|i want to be sure|no idea]",
    "[just the answer|only the answer|short answer|be careful|take your time|be quick|no hurry|tell me|answer me]",
    "[it is|this is] for [school|work|my homework|a quiz|a game|a friend]",
    "[cheers|hurry up|my friend|fledgling|good luck|have fun|that is all]",
    "[can you help|will you help|do you know|do you know it|can you do it|any idea]",
)


def expand_patterns(*patterns: str) -> tuple[str, ...]:
    """Return every reading of `patterns`, in order, without repeats; `[a|b|]` is a choice, and may nest."""
    readings: dict[str, None] = {}
    waiting = list(reversed(patterns))
    while waiting:
        pattern = waiting.pop()
        choice = _CHOICE.search(pattern)
        if choice is None:
            readings[_SPACES.sub(" ", pattern).strip()] = None
            continue
        before, after = pattern[: choice.start()], pattern[choice.end() :]
        waiting.extend(before + option + after for option in reversed(choice[1].split("|")))
    return tuple(readings)


@lru_cache(maxsize=1)
def opening_templates() -> tuple[str, ...]:
    """Return the short openings."""
    return expand_patterns(*_LEADS)


@lru_cache(maxsize=1)
def story_templates() -> tuple[str, ...]:
    """Return the openings that are small sentences of their own; `{noun}` stands for any word."""
    return expand_patterns(*_STORIES)


@lru_cache(maxsize=1)
def closing_templates() -> tuple[str, ...]:
    """Return the closings."""
    return expand_patterns(*_CLOSINGS)


def capitalize_first(template: str) -> str:
    """Return `template` with a capital first letter; a slot in first place stays as it is."""
    return template[:1].upper() + template[1:]


def decorate_template(core: str, rng: random.Random) -> str:
    """Return `core` as somebody might type it: perhaps an opening, a closing, a filler word.

    Slots such as `{a}` stay, and so do the core's own words and their order.
    """
    chance = rng.random()
    opening = ""
    if chance < 0.30:
        opening = rng.choice(opening_templates())
    elif chance < 0.42:
        opening = _sample_story(rng)
    chance = rng.random()
    closing = rng.choice(closing_templates()) if chance < 0.22 else _sample_story(rng) if chance < 0.28 else ""
    tidy = rng.random() < 0.8  # the others type without capitals
    asks = bool(_ASKS.match(core))
    core = core.rstrip("?")
    if rng.random() < 0.15:
        core = _insert_filler(core, rng)
    end = rng.choice(("?", "?", "?", "?", "", ".") if asks else (".", ".", ".", "", "", "!"))
    if opening:
        gap = rng.choice((", ", ", ", ": ", ". ", ". ", "! ", " - ", " "))
        new_sentence = gap in (". ", "! ")
        opening = (capitalize_first(opening) if tidy else opening) + gap
        core = capitalize_first(core) if tidy and new_sentence else core
    elif tidy:
        core = capitalize_first(core)
    if not closing:
        return opening + core + end
    if rng.random() < 0.5:
        return f"{opening}{core}, {closing}{end}"
    return f"{opening}{core}{end or '.'} {capitalize_first(closing) if tidy else closing}{rng.choice(('.', '!', ''))}"


def sample_plural_noun(rng: random.Random) -> str:
    """Return something to be counted: a plural, or now and then any word, which makes no sense."""
    return rng.choice(_PLURALS) if rng.random() < 0.75 else rng.choice(list_real_words(False, 10))


def _sample_story(rng: random.Random) -> str:
    """Return a small sentence about something; the something is a noun, or any word, which makes no sense."""
    noun = rng.choice(NOUNS) if rng.random() < 0.5 else rng.choice(list_real_words(False, 10))
    return rng.choice(story_templates()).replace("{noun}", noun)


def _insert_filler(core: str, rng: random.Random) -> str:
    """Return `core` with a filler between two of its words, never beside a sign or a slot."""
    words = core.split(" ")
    gaps = [i for i in range(1, len(words)) if words[i - 1].isalpha() and words[i].isalpha()]
    if gaps:
        words.insert(rng.choice(gaps), rng.choice(FILLER_WORDS))
    return " ".join(words)


def normalize_template(template: str) -> str:
    """Return the words, slots and signs of `template` in lower case; fillers left out, things a slot."""
    words = re.findall(r"\{\w+\}|[a-z0-9]+|[+*=]", template.lower().replace("'", ""))
    return " ".join("{thing}" if word in PLURAL_NOUNS else word for word in words if word not in FILLER_WORDS)


@lru_cache(maxsize=1)
def _normalized_surroundings() -> tuple[frozenset[str], re.Pattern[str], frozenset[str]]:
    """Return the plain words of the openings, a pattern of the stories, and those of the closings."""
    story = "|".join(normalize_template(story).replace("{noun}", r"(?:\w+|\{thing\})") for story in story_templates())
    openings = frozenset({""} | {normalize_template(lead) for lead in opening_templates()})
    return (
        openings,
        re.compile(story),
        frozenset({""} | {normalize_template(closing) for closing in closing_templates()}),
    )


def is_composition(template: str, cores: Set[str]) -> bool:
    """Return whether an opening, one of `cores` and a closing could give `template`.

    `cores` are plain words (`plain_words`); case, punctuation and fillers make no difference.
    """
    openings, story, endings = _normalized_surroundings()
    words = normalize_template(template).split()
    for start, stop in itertools.combinations(range(len(words) + 1), 2):
        if " ".join(words[start:stop]) not in cores:
            continue
        opening, ending = " ".join(words[:start]), " ".join(words[stop:])
        opens = opening in openings or story.fullmatch(opening)
        if opens and (ending in endings or story.fullmatch(ending)):
            return True
    return False
