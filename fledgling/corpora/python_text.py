"""Scan: what a Python file says in English, and the code that is left when that is taken out.

The one idea: a lexer of five patterns finds every string, comment, `def` and `class` in one pass at tens of
megabytes a second, which is all that is needed to lift docstrings (with their owner's name), comment blocks
and bare code. `ast` finds the same docstrings but takes about four times as long, and sees neither comments
nor the strings handed to `add_docstr(...)`, which hold most of the reference texts of torch and numpy.

What it is not: a parser. A string counts as a docstring when it opens a line right behind a colon, opens
the module, or follows an `add_docstr(`/`add_newdoc(`; the few other strings that look so are caught as
noise later.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass, field

LEXEME_PATTERN = re.compile(
    r"#[^\n]*"
    r'|"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""'
    r"|'''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    r"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'"
    r"|^[ \t]*(?:async +)?(?:def|class) +\w+",
    re.MULTILINE | re.DOTALL,
)
DOCSTRING_PREFIX = re.compile(r"[ \t]*[rRuU]?$")  # what may stand before a docstring on its line
TOOL_COMMENT = re.compile(r"#\s*(?:!|type:|noqa|pylint|pragma|mypy|pyre|flake8|fmt:|isort|ruff|-\*-|vim?:|lint)")


@dataclass
class PythonText:
    """Docstrings as (owner, text), comment blocks and the code without both, all in the order of the file."""

    docstrings: list[tuple[str, str]] = field(default_factory=list)  # owner "" is the module itself
    comments: list[str] = field(default_factory=list)
    code: str = ""


def _previous_character(source: str, start: int) -> str:
    """Return the last character before `start` that is not white space, or "" at the top of the file."""
    index = start - 1
    while index >= 0 and source[index] in " \t\r\n\\":
        index -= 1
    return source[index] if index >= 0 else ""


def _literal_value(quoted: str, raw: bool) -> str:
    """Return the value of a triple-quoted literal, cleaned of the indentation of its place in the source."""
    if not raw and "\\" in quoted:
        try:
            return inspect.cleandoc(ast.literal_eval(quoted))
        except (SyntaxError, ValueError):
            return ""
    return inspect.cleandoc(quoted[3:-3])


def _named_object(source: str, start: int) -> str | None:
    """Return the name that `add_docstr(NAME, ` or `add_newdoc("module", "name",` before `start` documents."""
    window = source[max(0, start - 240) : start].rstrip("rR")
    call = re.search(r"add_(?:docstr|newdoc)\w*\(((?:(?!add_(?:docstr|newdoc))[^)])*)$", window)
    words = re.findall(r"[\w.]+", call[1]) if call else []
    return words[-1] if words else None


class _Scanner:
    """One pass over a file: the scope by indentation, the comment block being gathered, the spans to cut."""

    def __init__(self, source: str):
        self.source = source
        self.scope: list[tuple[int, str]] = []  # (indentation, name) of the enclosing def and class
        self.block: list[str] = []
        self.block_end = -1  # where the next line of the same block would begin
        self.block_indent = -1
        self.removals: list[tuple[int, int, str]] = []  # (from, to, replacement)
        self.result = PythonText()
        self.code_seen = False

    def close_block(self) -> None:
        if self.block:
            self.result.comments.append(inspect.cleandoc("\n".join(self.block)))
            self.block = []

    def comment(self, start: int, end: int, line: int) -> None:
        prefix = self.source[line:start]
        if prefix.strip():
            return  # behind code: it stays there
        self.removals.append((line, min(end + 1, len(self.source)), ""))
        if line != self.block_end or len(prefix) != self.block_indent:
            self.close_block()
        self.block_end, self.block_indent = end + 1, len(prefix)
        if not TOOL_COMMENT.match(self.source, start, end):
            # A blank first line keeps cleandoc from treating the first comment line's indentation as special.
            self.block.extend([] if self.block else [""])
            self.block.append(self.source[start:end].lstrip("#:"))

    def definition(self, text: str) -> None:
        indent = len(text) - len(text.lstrip())
        self.scope = [(at, name) for at, name in self.scope if at < indent]
        self.scope.append((indent, text.split()[-1]))
        self.code_seen = True

    def string(self, start: int, end: int, line: int) -> None:
        source = self.source
        if source[start : start + 3] not in ('"""', "'''"):
            self.code_seen = True
            return
        opening = DOCSTRING_PREFIX.match(source[line:start])
        before = _previous_character(source, line) if opening else ""
        raw = source[start - 1 : start] in ("r", "R")
        if opening and (before == ":" or not self.code_seen):
            indent = len(opening[0].rstrip("rRuU"))
            inside = [name for at, name in self.scope if at < indent]
            self.result.docstrings.append((".".join(inside), _literal_value(source[start:end], raw)))
            self.remove_docstring(line, end, indent)
        elif source[start - 1 - raw : start - raw] in (" ", "(", "\n"):
            name = _named_object(source, start)
            if name:
                self.result.docstrings.append((name, _literal_value(source[start:end], raw)))
                self.removals.append((start, end, '""'))
        self.code_seen = True

    def remove_docstring(self, line: int, end: int, indent: int) -> None:
        """Take the docstring's lines out, leaving `pass` where nothing else was in the body."""
        following = re.compile(r"[^\n]*\n(?:[ \t]*(?:#[^\n]*)?\n)*([ \t]*)").match(self.source, end)
        alone = indent > 0 and (not following or len(following[1]) < indent)
        newline = self.source.find("\n", end)
        stop = len(self.source) if newline < 0 else newline + 1
        self.removals.append((line, stop, " " * indent + "pass\n" if alone else ""))


def scan_python(source: str) -> PythonText:
    """Return the docstrings, comment blocks and bare code of one Python file.

    Only triple-quoted strings are taken for documentation. Text that is no valid Python gives what it can.
    """
    reader = _Scanner(source)
    for match in LEXEME_PATTERN.finditer(source):
        start, end = match.span()
        first = source[start]
        if first == "#":
            reader.comment(start, end, source.rfind("\n", 0, start) + 1)
        elif first in "\"'":
            reader.string(start, end, source.rfind("\n", 0, start) + 1)
        else:
            reader.definition(match[0])
    reader.close_block()
    pieces, position = [], 0
    for start, end, replacement in reader.removals:
        if start >= position:
            pieces += [source[position:start], replacement]
            position = end
    pieces.append(source[position:])
    lines = [line.rstrip() for line in "".join(pieces).split("\n")]
    reader.result.code = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return reader.result
