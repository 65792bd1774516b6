"""Whether a training grammar can produce a template: proves that unseen wordings are unseen."""

import itertools
import re
from collections.abc import Set
from functools import lru_cache

from fledgling.tasks.skills.templates import expand_surroundings, list_words


@lru_cache(maxsize=1)
def _story_phrases() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Returns the slots of stories and a pattern of the phrases that they draw from, the longest first.

    Plural nouns and containers have one slot, as some words are in both lists.
    """
    things = [*list_words("plural_nouns"), *(word for pair in list_words("boxes") for word in pair.split())]
    lists = {"{place}": list_words("places"), "{day}": list_words("weekdays"), "{person}": list_words("persons")}
    return tuple(
        (slot, re.compile(rf"\b(?:{'|'.join(sorted(map(str.lower, phrases), key=len, reverse=True))})\b"))
        for slot, phrases in {**lists, "{thing}": things}.items()
    )


def normalize_template(template: str) -> str:
    """Returns the words, slots and signs of `template` in lower case, without fillers.

    What a story draws from a list becomes a slot: a person, a place, a weekday; what it counts and containers are one.
    """
    fillers = frozenset(list_words("fillers"))
    text = re.sub(r"\{box(?:es)?\}", "{thing}", template.lower().replace("'", "").replace("{other}", "{person}"))
    text = " ".join(word for word in re.findall(r"\{\w+\}|[a-z0-9]+|[+*=]", text) if word not in fillers)
    for slot, phrases in _story_phrases():
        text = phrases.sub(slot, text)
    return text


@lru_cache(maxsize=1)
def _normalized_surroundings() -> tuple[frozenset[str], re.Pattern[str], frozenset[str]]:
    """Returns the normalized openings, a pattern that matches the stories, and the normalized closings."""
    stories = map(normalize_template, expand_surroundings("stories"))
    noun = r"(?:\1 (?:\\w+|\\{\\w+\\})|\\{\\w+\\})"  # its article may be within a slot, as that of a place is
    story = re.compile("|".join(re.sub(r"(\w+) \{noun\}", noun, text) for text in stories))
    openings = frozenset({"", *map(normalize_template, expand_surroundings("openings"))})
    return openings, story, frozenset({"", *map(normalize_template, expand_surroundings("closings"))})


def is_composition(template: str, cores: Set[str]) -> bool:
    """Returns whether an opening, one of `cores` and a closing can give `template`.

    `cores` are normalized (`normalize_template`); case, punctuation and fillers make no difference.
    """
    openings, story, closings = _normalized_surroundings()
    words = normalize_template(template).split()
    for start, stop in itertools.combinations(range(len(words) + 1), 2):
        if " ".join(words[start:stop]) not in cores:
            continue
        opening, closing = " ".join(words[:start]), " ".join(words[stop:])
        opens = opening in openings or story.fullmatch(opening)
        if opens and (closing in closings or story.fullmatch(closing)):
            return True
    return False
