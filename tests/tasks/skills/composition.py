"""Whether a training grammar can produce a template: proves that unseen wordings are unseen."""

import itertools
import re
from collections.abc import Set
from functools import lru_cache

from fledgling.tasks.skills.templates import expand_surroundings, list_words


@lru_cache(maxsize=3)
def _word_set(kind: str) -> frozenset[str]:
    return frozenset(list_words(kind))


def normalize_template(template: str) -> str:
    """Returns the words, slots and signs of `template` in lower case, without fillers; plural nouns become a slot."""
    plural_nouns, fillers = _word_set("plural_nouns"), _word_set("fillers")
    words = re.findall(r"\{\w+\}|[a-z0-9]+|[+*=]", template.lower().replace("'", ""))
    return " ".join("{thing}" if word in plural_nouns else word for word in words if word not in fillers)


@lru_cache(maxsize=1)
def _normalized_surroundings() -> tuple[frozenset[str], re.Pattern[str], frozenset[str]]:
    """Returns the normalized openings, a pattern that matches the stories, and the normalized closings."""
    stories = map(normalize_template, expand_surroundings("stories"))
    story = re.compile("|".join(text.replace("{noun}", r"(?:\w+|\{thing\})") for text in stories))
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
