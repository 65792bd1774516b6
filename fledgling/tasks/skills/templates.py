"""Prompt templates: thousands of phrasings of one question, composed from small grammars in TOML files.

A training prompt is (opening) + core + (closing). The cores are written as patterns, `[what is|give me] the sum`, in
the TOML file of a skill and expanded here. Openings and closings are shared by all skills (templates.toml) and carry
no information, so that a small model learns to find the operands and the verb anywhere in a prompt.

Syntax of a pattern: `{x}` is a slot that the skill fills, `[a|b|]` is a choice and may nest, `<x>` is replaced by the
entry of the file's [macros] table called x.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fledgling.tasks.skills.words import list_real_words

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_MACRO = re.compile(r"<(\w+)>")
_SPACES = re.compile(r"\s+")
_QUESTION = re.compile(
    r"(what|which|who|whose|where|when|why|how|is|are|can|could|would|will|do|does|did|may|have|has)\b|.*\?$"
)


@lru_cache(maxsize=8)
def load_templates(name: str) -> dict[str, Any]:
    """Returns the TOML file `name` of this package, with every `<macro>` replaced. Callers must not change it."""
    data = tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8"))
    macros = data.pop("macros", {})

    def replace(value: Any) -> Any:
        if isinstance(value, str):
            return _MACRO.sub(lambda match: macros[match[1]], value) if macros else value
        if isinstance(value, list):
            return tuple(map(replace, value))
        return {key: replace(inner) for key, inner in value.items()} if isinstance(value, dict) else value

    return replace(data)


def expand_weights(weights: Mapping[str, int]) -> tuple[str, ...]:
    """Returns every key as often as its weight says, in order, for `random.choice`."""
    return tuple(text for text, weight in weights.items() for _ in range(weight))


def expand_patterns(*patterns: str) -> tuple[str, ...]:
    """Returns every expansion of `patterns`, in order, without repeats; `[a|b|]` is a choice, and may nest."""
    expansions: dict[str, None] = {}
    pending = list(reversed(patterns))
    while pending:
        pattern = pending.pop()
        choice = _CHOICE.search(pattern)
        if choice is None:
            expansions[_SPACES.sub(" ", pattern).strip()] = None
            continue
        before, after = pattern[: choice.start()], pattern[choice.end() :]
        pending.extend(before + option + after for option in reversed(choice[1].split("|")))
    return tuple(expansions)


def expand_each(patterns: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Returns the expansions of each pattern, so that a pattern can be drawn first, and then one of its expansions."""
    return tuple(expand_patterns(pattern) for pattern in patterns)


@lru_cache(maxsize=3)
def expand_surroundings(kind: str) -> tuple[str, ...]:
    """Returns the `openings`, the `closings` or the `stories` (openings that are sentences, with a slot {noun})."""
    return expand_patterns(*load_templates("templates")[kind])


@lru_cache(maxsize=8)
def list_words(kind: str) -> tuple[str, ...]:
    """Returns `nouns`, `plural_nouns` (what stories count), `fillers` (words without meaning here) or a story's list.

    A story's lists are `persons`, `places`, `boxes` (each with its plural: "basket baskets") and `weekdays`.
    """
    words = load_templates("templates")[kind]
    return tuple(words.split()) if isinstance(words, str) else tuple(words)


def capitalize_first(template: str) -> str:
    """Returns `template` with a capital first letter; a slot in first place does not change."""
    return template[:1].upper() + template[1:]


def decorate_template(core: str, rng: random.Random) -> str:
    """Returns `core` as a user may type it: possibly with an opening, a closing, a filler word.

    Slots such as `{a}` remain, and so do the core's words and their order.
    """
    chance = rng.random()
    opening = ""
    if chance < 0.30:
        opening = rng.choice(expand_surroundings("openings"))
    elif chance < 0.42:
        opening = _sample_story(rng)
    chance = rng.random()
    closing = ""
    if chance < 0.22:
        closing = rng.choice(expand_surroundings("closings"))
    elif chance < 0.28:
        closing = _sample_story(rng)
    with_capitals = rng.random() < 0.8
    is_question = bool(_QUESTION.match(core))
    core = core.rstrip("?")
    if rng.random() < 0.15:
        core = _insert_filler(core, rng)
    end = rng.choice(("?", "?", "?", "?", "", ".") if is_question else (".", ".", ".", "", "", "!"))
    if opening:
        gap = rng.choice((", ", ", ", ": ", ". ", ". ", "! ", " - ", " "))
        starts_sentence = gap in (". ", "! ")
        opening = (capitalize_first(opening) if with_capitals else opening) + gap
        core = capitalize_first(core) if with_capitals and starts_sentence else core
    elif with_capitals:
        core = capitalize_first(core)
    if not closing:
        return opening + core + end
    if rng.random() < 0.5:
        return f"{opening}{core}, {closing}{end}"
    closing = capitalize_first(closing) if with_capitals else closing
    return f"{opening}{core}{end or '.'} {closing}{rng.choice(('.', '!', ''))}"


def sample_plural_noun(rng: random.Random) -> str:
    """Returns what a story counts: a plural noun, or in one case of four any harvested word."""
    return rng.choice(list_words("plural_nouns")) if rng.random() < 0.75 else rng.choice(list_real_words(False, 10))


def sample_story_words(rng: random.Random) -> dict[str, str]:
    """Returns a word for each slot of a story besides its numbers; `other` is another person than `person`."""
    person, other = rng.sample(list_words("persons"), 2)
    box, boxes = rng.choice(list_words("boxes")).split()
    place, day = rng.choice(list_words("places")), rng.choice(list_words("weekdays"))
    words = {"person": person, "other": other, "place": place, "box": box, "boxes": boxes, "day": day}
    return {**words, "thing": sample_plural_noun(rng)}


def _sample_story(rng: random.Random) -> str:
    """Returns a short sentence about a noun, or (half of the time) about any harvested word."""
    noun = rng.choice(list_words("nouns")) if rng.random() < 0.5 else rng.choice(list_real_words(False, 10))
    return rng.choice(expand_surroundings("stories")).replace("{noun}", noun)


def _insert_filler(core: str, rng: random.Random) -> str:
    """Returns `core` with a filler between two of its words, never next to a sign or a slot."""
    words = core.split(" ")
    gaps = [i for i in range(1, len(words)) if words[i - 1].isalpha() and words[i].isalpha()]
    if gaps:
        words.insert(rng.choice(gaps), rng.choice(list_words("fillers")))
    return " ".join(words)
