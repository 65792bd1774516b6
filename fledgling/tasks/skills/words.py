"""Words to spell and to count letters in, collected from the documentation of the running Python.

Every interpreter carries thousands of English words in its docstrings and topic pages, so that no word list is shipped
and nothing is downloaded. The modules are listed in words.toml; their source is parsed, never imported. A few of the
words are programmers' names, and another version of Python gives slightly other words. Pseudowords, joined from halves
of real words or from syllables, give training more letters and pieces than the docs have.
"""

from __future__ import annotations

import ast
import gc
import random
import re
import sysconfig
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from fledgling.config import UserError
from fledgling.tasks.task import is_held_out

MIN_LETTERS, MAX_LETTERS = 3, 12
# A word of prose: without a character next to it that code or markup would have there.
_WORD = re.compile(r"(?<![\w.'`/\\<%:*@=-])[a-z]{3,12}(?=[\s,;]|[.:)?!](?:\s|$))")
_TRIPLE_LETTER = re.compile(r"(.)\1\1")


def _iterate_docstrings(path: Path) -> Iterator[str]:
    """Yields the docstrings of a source file; of the topic pages, every string."""
    tree = ast.parse(path.read_text("utf-8"))
    if path.stem == "topics":
        yield from (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
        return
    nodes: list[ast.AST] = [tree]
    while nodes:  # statements alone: expressions, most of the tree, hold no docstring
        node = nodes.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node, clean=False) or ""
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            nested = getattr(node, field, ())
            nodes += nested if isinstance(nested, list) else ()  # the body of a lambda or of `a if b else c` is none


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Pauses the garbage collector, which would visit all of torch's objects for every few syntax trees (0.8 s)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@lru_cache(maxsize=1)
def harvest_words() -> tuple[str, ...]:
    """Returns all words of 3 to 12 lower-case letters, sorted; over 5,000 on a usual Python.

    A listed module that this Python lacks is skipped. Raises UserError when the library's source is not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    modules = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))["modules"].split()
    candidates: set[str] = set()
    with _paused_collection():
        for path in (root / f"{module}.py" for module in modules):
            if path.exists():
                for text in _iterate_docstrings(path):
                    candidates.update(_WORD.findall(text))
    words = tuple(sorted(word for word in candidates if set(word) & set("aeiouy") and not _TRIPLE_LETTER.search(word)))
    if len(words) < 1000:
        raise UserError(
            f"the standard library's source at {root} gave {len(words)} words, expected thousands: "
            "install Python with its library's .py files"
        )
    return words


@lru_cache(maxsize=4)
def list_real_words(held_out: bool, max_letters: int) -> tuple[str, ...]:
    """Returns the harvested words of at most `max_letters` letters that are (or are not) held out from training."""
    return tuple(w for w in harvest_words() if len(w) <= max_letters and is_held_out("word", w) == held_out)


def sample_pseudoword(rng: random.Random, max_letters: int) -> str:
    """Returns a word that no evaluation contains: two halves of real words, or syllables."""
    real_words = list_real_words(False, max_letters)
    while True:
        if rng.random() < 0.65:
            first, second = rng.choice(real_words), rng.choice(real_words)
            word = first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :]
        else:
            word = "".join(_sample_syllable(rng) for _ in range(rng.randint(1, 4)))
        if MIN_LETTERS <= len(word) <= max_letters and not is_held_out("word", word):
            return word


def _sample_syllable(rng: random.Random) -> str:
    """Returns consonants, a vowel and possibly a consonant; rare letters are as likely as common ones."""
    onset = rng.choice("bcdfghjklmnpqrstvwxyz") + rng.choice(("", "", "", "r", "l", "h"))
    return onset + rng.choice("aeiouy") + rng.choice(("", "", *"bcdfgklmnprstxz"))
