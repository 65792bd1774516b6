"""Words to spell and to count in: harvested from the documentation of the Python that runs this.

The one idea: every interpreter carries thousands of English words in its docstrings and topic pages, so no
word list is shipped and nothing is downloaded. Source files are parsed, never imported. Made-up words,
joined from halves of real ones or from syllables, give training more letters and pieces than the docs have.

What it is not: no dictionary. A few of the words are names that only programmers use, and another version of
Python knows slightly others.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from functools import lru_cache
from pathlib import Path

from fledgling.config import UserError
from fledgling.tasks.task import is_held_out

MIN_LETTERS, MAX_LETTERS = 3, 12
_MODULES = """
argparse ast asyncio/base_events asyncio/events asyncio/locks asyncio/streams base64 bdb bisect calendar cmd
codecs collections/__init__ _collections_abc compileall concurrent/futures/_base configparser contextlib
copy csv dataclasses datetime _pydatetime decimal _pydecimal difflib dis doctest email/charset email/header
email/message email/policy enum filecmp fileinput fractions ftplib functools getopt getpass gettext glob
graphlib gzip heapq hmac html/parser http/client http/cookiejar http/cookies http/server imaplib
importlib/abc importlib/_bootstrap inspect _pyio io ipaddress json/__init__ json/encoder keyword linecache
locale logging/__init__ logging/config logging/handlers mailbox mimetypes multiprocessing/managers
multiprocessing/pool netrc numbers optparse os pathlib pathlib/__init__ pdb pickle pickletools pkgutil
platform plistlib poplib posixpath pprint profile pstats pydoc pydoc_data/topics queue quopri random reprlib
rlcompleter runpy sched secrets selectors shelve shlex shutil smtplib socket socketserver sqlite3/dump ssl
stat statistics string stringprep subprocess symtable tarfile tempfile textwrap threading timeit
tkinter/__init__ tkinter/ttk tkinter/font token tokenize trace traceback tracemalloc turtle
turtledemo/__main__ types typing unittest/case unittest/mock unittest/suite urllib/error urllib/parse
urllib/request urllib/robotparser uuid venv/__init__ warnings wave weakref webbrowser wsgiref/handlers
wsgiref/headers xml/dom/minidom xml/dom/pulldom xml/etree/ElementTree xml/sax/handler xmlrpc/client
xmlrpc/server zipapp zipfile zipfile/__init__ zipimport zoneinfo/_zoneinfo
"""
# A word of prose: nothing glued to it that code or markup would glue.
_WORD = re.compile(r"(?<![\w.'`/\\<%:*@=-])[a-z]{3,12}(?=[\s,;]|[.:)?!](?:\s|$))")
_TRIPLE = re.compile(r"(.)\1\1")


def _iterate_docstrings(path: Path):
    """Yield the docstrings of a source file; of the topic pages, every string."""
    tree = ast.parse(path.read_text("utf-8"))
    topics = path.stem == "topics"
    for node in ast.walk(tree):
        if topics and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node, clean=False) or ""


@lru_cache(maxsize=1)
def harvest_words() -> tuple[str, ...]:
    """Return every harvested word of 3 to 12 lower-case letters, sorted; over 5,000 on a usual Python.

    A module that this Python lacks is passed over. Raises UserError when the library's source is not there.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: set[str] = set()
    for name in _MODULES.split():
        path = root / f"{name}.py"
        if path.exists():
            for text in _iterate_docstrings(path):
                found.update(_WORD.findall(text))
    words = tuple(sorted(word for word in found if set(word) & set("aeiouy") and not _TRIPLE.search(word)))
    if len(words) < 1000:
        raise UserError(
            f"the standard library's source at {root} gave {len(words)} words, expected thousands: "
            "install Python with its library's .py files"
        )
    return words


@lru_cache(maxsize=4)
def list_real_words(held_out: bool, max_letters: int) -> tuple[str, ...]:
    """Return the harvested words of at most `longest` letters on one side of the held-out law."""
    return tuple(word for word in harvest_words() if len(word) <= max_letters and is_held_out("word", word) == held_out)


def sample_pseudoword(rng: random.Random, max_letters: int) -> str:
    """Return a word that no evaluation asks: two halves of real ones, or syllables."""
    pool = list_real_words(False, max_letters)
    while True:
        if rng.random() < 0.65:
            first, second = rng.choice(pool), rng.choice(pool)
            word = first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :]
        else:
            word = "".join(_sample_syllable(rng) for _ in range(rng.randint(1, 4)))
        if MIN_LETTERS <= len(word) <= max_letters and not is_held_out("word", word):
            return word


def _sample_syllable(rng: random.Random) -> str:
    """Return a consonant group, a vowel and perhaps a consonant; rare letters as likely as common ones."""
    onset = rng.choice("bcdfghjklmnpqrstvwxyz") + rng.choice(("", "", "", "r", "l", "h"))
    return onset + rng.choice("aeiouy") + rng.choice(("", "", *"bcdfgklmnprstxz"))
