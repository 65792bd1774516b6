"""The words of the project are the field's: no retired word is left in identifiers, and none that misleads in prose.

`docs/glossary.md` has the words that replaced them.
"""

import ast
import functools
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Words that no identifier has as a part: `told_rows` and `EvalDesk` are rejected.
RETIRED = frozenset(
    """
    told said tell beside stands whoever nobody everybody somebody everyone lent desk papers worth around bowl
    bowls tally asked speaker speakers ticket tickets adopted apart weigh returner inward outward likeliest
    guess guesses guessed generalized preferred refuse velocity holders mine theirs ours newcomer newcomers
    seat seats untold unread speak speaks spoken spoke noted meet hear went came twin twins neighbour
    neighbours neighbor neighbors house room rooms beat beats pulse lookahead judge exponentials anew
    damage damaged damages undamaged refused refuses refusing colour colours coloured
    """.split()  # noqa: SIM905 - a list of words, one a line, is four times as long
)
# Names of several parts; each part alone is in use with a good meaning. A name in capitals is of a class.
RETIRED_NAMES = (
    *("in_pieces", "take_in", "lay_out", "even_rows", "going_on", "goes_on", "Held"),
    *("further_targets", "FurtherTargets", "round_in_training", "read_again", "Shortcuts", "Standing", "RacedRun"),
    *("share_that_fits", "only_at_the_end", "Timekeeper", "lengthen", "culprit", "travelling"),
    *("made_again", "make_again", "makes_again"),
)
# Retired words that plain sentences need: "a matrix around an activation", "room for one row".
NEEDED_IN_PROSE = frozenset(
    """
    apart around asked beat beats came generalized guess guessed guesses hear house judge lookahead meet mine
    noted ours papers preferred pulse room rooms speak tell theirs unread velocity weigh worth
    """.split()  # noqa: SIM905
)
# Phrases of prose that have one word: resume, restart, a parameter's name, wall-clock time, the optional features.
PHRASES = re.compile(
    r"\b(go(es|ing|ne)? on (with|from|where|after)|went on (with|to|from)|stop and go on|same command continues"
    r"|trained anew|so many (rows|tokens|steps|characters)"
    r"|but for|ma(de|ke|kes|king) (it |them |each step )?again"
    r"|all that is waited for|later ideas?|practised wordings|development wordings|training wordings)\b"
)
FILES = sorted(
    path
    for folder in ("fledgling", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "attacks" not in path.parts
)
EXAMPLES = ("sample_texts.py", "test_words.py")  # texts and words that a check needs
ALLOWED_KEYS = frozenset({"guess"})  # the argument of a game's tool
SCRIPT_STRING = re.compile(r"`[^`]*`|\"[^\"\n]*\"|'[^'\n]*'")
PAGES = sorted(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "fledgling/*/page/*.js", "fledgling/**/*.html")
    for path in ROOT.glob(pattern)
    if path.name != "names.md" and "vendor" not in path.parts  # names.md shows old names next to new ones
)

COMMENTED = sorted(  # of which the comments are read: their other lines are data or another language
    path
    for pattern in ("fledgling/**/*.toml", "tests/invariants/*.toml", "pyproject.toml", "launch/*", ".*.yaml")
    for path in ROOT.glob(pattern)
) + sorted(path for pattern in ("*.cpp", "*.h") for path in (ROOT / "fledgling").rglob(pattern))


def comments_of(path: Path) -> dict[int, str]:
    """Returns the comments of a file by line: after `//` in C++, after `#` in others."""
    mark = "//" if path.suffix in (".cpp", ".h") else "#"
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return {number: found[1] for number, line in lines if (found := re.search(rf"(?:^|\s){mark} ?(.*)", line))}


def words_of(identifier: str) -> set[str]:
    """Returns the words of an identifier in lower case: `PromptLookup` -> prompt, lookup."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


@functools.lru_cache(maxsize=1)  # of one file at a time: its identifiers, then its prose
def nodes_of(source: str) -> list[ast.AST]:
    """Returns all nodes of a source's tree."""
    return list(ast.walk(ast.parse(source)))


def identifiers(source: str) -> dict[str, int]:
    """Returns every name that a source defines or assigns, with the line of its first appearance."""
    found: dict[str, int] = {}
    for node in nodes_of(source):
        names: list[str] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [] if node.name.startswith("test_") else [node.name]  # a sentence: see `texts_of`
        elif isinstance(node, ast.arg):
            names = [node.arg]
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names = [node.id if isinstance(node, ast.Name) else node.attr]
        for name in names:
            found.setdefault(name, getattr(node, "lineno", 0))
    return found


def retired(source: str) -> list[str]:
    """Returns `line: name` for every identifier with a retired word in it, or that is a retired name."""
    return retired_among(identifiers(source))


def keys(source: str) -> dict[str, int]:
    """Returns the keys of the dictionaries that a source writes down, with a line of each; old options are no keys."""
    found = [key for node in nodes_of(source) if isinstance(node, ast.Dict) for key in node.keys]
    return {
        key.value: key.lineno
        for key in found
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and re.fullmatch(r"\w[\w-]*", key.value)
    }


def script_names(source: str) -> dict[str, int]:
    """Returns identifiers, and strings of one word (keys, ids), of a page's script, with a line of each."""
    found: dict[str, int] = {}
    for number, line in enumerate(source.splitlines(), 1):
        code = re.sub(r"(^|\s)//\s.*", "", line)
        code = SCRIPT_STRING.sub(
            lambda text: text[0] if re.fullmatch(r"[\w#.-]*", text[0][1:-1]) else _code_in(text[0]), code
        )
        for name in re.findall(r"[A-Za-z_$][\w$-]*", code):
            found.setdefault(name, number)
    return found


def _code_in(text: str) -> str:
    """Returns the expressions within a template of a script; "" for another string."""
    return " ".join(re.findall(r"\$\{([^}]*)\}", text))


def page_names(source: str) -> dict[str, int]:
    """Returns the ids, classes and names of a page's elements, with a line of each."""
    lines = enumerate(source.splitlines(), 1)
    return {name: number for number, line in lines for name in re.findall(r'\b(?:id|class|for|name)="([^"]*)"', line)}


def retired_among(found: dict[str, int]) -> list[str]:
    """Returns `line: name` for every name with a retired word in it, or that is a retired name."""
    return [f"{found[name]}: {name}" for name in found if words_of(name) & RETIRED or has_retired_name(name)]


def retired_keys(source: str) -> list[str]:
    """Returns `line: key` for every key of a dictionary with a retired word in it; names are for tables of old keys."""
    found = keys(source)
    return [f"{found[key]}: {key}" for key in found if words_of(key) & (RETIRED - ALLOWED_KEYS)]


RETIRED_NAME = re.compile(
    "|".join(
        rf"(?:^|_){part}(?:_|$)" if part.islower() else rf"(?<![a-z]){part}(?![a-z]|Out)" for part in RETIRED_NAMES
    )
)


def has_retired_name(name: str) -> bool:
    """Returns whether a name of several parts, or of a class, is in an identifier."""
    return bool(RETIRED_NAME.search(name))


def texts_of(source: str, is_test: bool = False) -> dict[int, str]:
    """Returns the prose of a Python source by line: strings with spaces, the names of tests, and comments.

    Comments are left out where none has a retired word.
    is_test: of its strings the docstrings alone; others are data.
    """
    texts: dict[int, str] = {}
    for node in nodes_of(source):
        text = node if not is_test else node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and " " in text.value:
            texts[text.lineno] = texts.get(text.lineno, "") + " " + text.value
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            texts[node.lineno] = node.name.replace("_", " ")
    if any("#" in line and retired_prose(line) for line in source.splitlines()):  # else no comment can have one
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                texts[token.start[0]] = texts.get(token.start[0], "") + " " + token.string
    return texts


def retired_prose(text: str) -> list[str]:
    """Returns the retired words and phrases of a text."""
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word in RETIRED - NEEDED_IN_PROSE]
    return words + [found[0] for found in PHRASES.finditer(text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_identifier_is_a_retired_word(path):
    source = path.read_text(encoding="utf-8")
    assert retired(source) == []
    if path.parent.name == "skills" or path.name in EXAMPLES:
        return
    is_test = "tests" in path.relative_to(ROOT).parts
    assert is_test or retired_keys(source) == []
    assert {line: found for line, text in texts_of(source, is_test).items() if (found := retired_prose(text))} == {}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_has_a_retired_word(path):
    source = path.read_text(encoding="utf-8")
    names = {".js": script_names, ".html": page_names}.get(path.suffix)
    assert names is None or retired_among(names(source)) == []
    lines = enumerate(source.splitlines(), 1)
    assert {number: found for number, line in lines if (found := retired_prose(line))} == {}


@pytest.mark.parametrize("path", COMMENTED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_comment_of_another_language_has_a_retired_word(path):
    found = {number: words for number, text in comments_of(path).items() if (words := retired_prose(text))}
    assert found == {}


def test_comments_of_other_languages_are_read(tmp_path):
    files = {"a.toml": 'x = "told"  # told\n# is said\n', "a.cpp": "int told;  // told\n\n// is said\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert list(comments_of(tmp_path / name).values()) == ["told", "is said"]
    assert {path.suffix for path in COMMENTED} >= {".toml", ".cpp", ".h", ".yaml"}


def test_the_check_sees_a_retired_word():
    assert retired("def told(): ...") and retired("class EvalDesk: ...") and retired("for asked_rows in x: pass")
    assert retired("def f(self, likeliest): ...") and retired("self.inward = 3")
    assert retired("class Held: ...") and retired("logits_in_pieces = 1") and retired("def goes_on(): ...")
    assert not retired("def report_fault(): return told") and not retired("import sandbox as s")
    assert not retired("held_out = HeldOut = 1") and not retired(
        "def in_pieces_of(): ...".replace("pieces_of", "places")
    )


def test_the_check_reads_keys_and_names_of_scripts_and_pages():
    assert retired_keys('x = {"asked": 1, "told_rows": 2, "--lookahead": 3, "guess": 4}') == [
        "1: asked",
        "1: told_rows",
    ]
    script = 'let asked = 1; // he asked\nconst REFUSED = "he asked"; $("ask-refuse").x = `told ${saidTwice} ${asked}`;'
    assert retired_among(script_names(script)) == ["1: asked", "2: REFUSED", "2: ask-refuse", "2: saidTwice"]
    assert retired_among(page_names('<p id="a">told</p>\n<button id="ask-refuse">')) == ["2: ask-refuse"]


def test_the_check_reads_docstrings_messages_comments_and_names_of_tests():
    source = 'def f():\n    """What is told."""\n    x = f"{y} stands here"  # beside it\ndef test_it_is_said(): ...\n'
    found = [word for text in texts_of(source).values() for word in retired_prose(text)]
    assert sorted(found) == ["beside", "said", "stands", "told"]
    assert "stands" not in str(texts_of(source, is_test=True)) and "told" in str(texts_of(source, is_test=True))
    assert retired_prose("the run goes on with it") and not retired_prose("two matrices around an activation")
