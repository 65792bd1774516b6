"""The size of a grammar's terminals when they are written out, before the library compiles them.

The library writes a terminal out in full: `A: B B` and `B: C C` double at every level, and `(a{100}){100}` has 10,000
letters. Time and memory grow with that size, a second and 100 MB for some 300,000, while the text has a few characters.
Rules, whose names are in lower case, are shared and cost what their text does.

Start at `measure_grammar`. The size is an estimate: literals and classes count one a character, a repetition counts its
largest number of times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_SIZE = 10**9  # larger sizes are equal
_RULE = re.compile(r"^[ \t]*[?!]?([A-Za-z_][A-Za-z0-9_]*)(?:\[[^\]\n]*\])?(?:\.-?\d+)?[ \t]*:", re.MULTILINE)
# What is not closed ends with its line or the text, so that no text is searched again from every beginning.
_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)|(?P<text>"(?:[^"\\\n]|\\.)*(?:"|(?=\n)|\\?\Z))|"""
    r"""(?P<regex>/(?:[^/\\\n]|\\.)+(?:/|(?=\n)|\\?\Z))|"""
    r"""(?P<json>%json\s*(?=\{))|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<open>\()|(?P<close>\))|"""
    r"""(?P<times>\{\d*,?\d*\}|~\d+(?:\.\.\d+)?)|(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_PATTERN_TOKEN = re.compile(
    r"(?P<class>\[\^?\]?(?:[^\]\\]|\\.)*(?:\]|\\?\Z))|"
    r"(?P<open>\((?:\?(?:[a-zA-Z-]*:|P?<\w+>|<?[=!]))?)|(?P<close>\))|(?P<times>\{\d+,?\d*\})|"
    r"(?P<char>\\.|[^\\])",
    re.DOTALL,
)


class _Sum:
    """The size of a sequence with groups: items are added, and a repetition multiplies the last one."""

    def __init__(self) -> None:
        self.totals, self.last = [0], 0

    def add(self, size: int) -> None:
        """Appends an item."""
        self.last = min(size, MAX_SIZE)
        self.totals[-1] = min(self.totals[-1] + self.last, MAX_SIZE)

    def open_group(self) -> None:
        """Begins a group, which is one item at its end."""
        self.totals.append(0)

    def close_group(self) -> None:
        """Ends a group; one that never began is left to the library."""
        if len(self.totals) > 1:
            self.add(self.totals.pop())

    def repeat(self, bounds: str) -> None:
        """Repeats the last item as often as `{2,5}` or `~2..5` says at most."""
        count = max((int(number[:10]) for number in re.findall(r"\d+", bounds)), default=1)
        once, whole = self.last, min(self.last * count, MAX_SIZE)
        self.add(max(0, whole - once))
        self.last = whole

    @property
    def size(self) -> int:
        """The size of everything, open groups included."""
        return min(sum(self.totals), MAX_SIZE)


def measure_pattern(pattern: str) -> int:
    """Returns the size of a regular expression."""
    found = _Sum()
    for match in _PATTERN_TOKEN.finditer(pattern):
        kind = match.lastgroup
        if kind == "open":
            found.open_group()
        elif kind == "close":
            found.close_group()
        elif kind == "times":
            found.repeat(match[0])
        else:
            found.add(1)
    return found.size


def measure_grammar(grammar: str) -> int:
    """Returns the size of the terminals of a Lark grammar, of its regular expressions and of its schemas' patterns."""
    starts = list(_RULE.finditer(grammar))
    ends = [match.start() for match in starts[1:]] + [len(grammar)] * bool(starts)
    bodies = {match[1]: grammar[match.end() : end] for match, end in zip(starts, ends, strict=True)}
    rules = [name for name in bodies if not name.isupper()]
    used = {name for rule in rules for name in _list_terminals(bodies[rule]) if name in bodies}
    sizes: dict[str, int] = {}
    for name in used:
        _measure_terminal(name, bodies, sizes)
    own = sum(_measure_body(bodies[rule], {}, is_rule=True) for rule in rules)
    return min(own + sum(sizes[name] for name in used), MAX_SIZE)


def _measure_terminal(name: str, bodies: Mapping[str, str], sizes: dict[str, int]) -> None:
    """Adds the size of a terminal, after those of the terminals in it. One within itself is an error of the library."""
    waiting = [name]
    entered: set[str] = set()
    while waiting:
        name = waiting[-1]
        others = [] if name in entered else [each for each in _list_terminals(bodies[name]) if each in bodies]
        entered.add(name)
        missing = [each for each in others if each not in sizes and each not in entered]
        if name in sizes or not missing:
            sizes.setdefault(name, _measure_body(bodies[name], sizes))
            waiting.pop()
        waiting += missing


def _list_terminals(body: str) -> Iterator[str]:
    return (match[0] for match in _TOKEN.finditer(body) if match.lastgroup == "name" and match[0].isupper())


def _measure_body(body: str, sizes: Mapping[str, int], is_rule: bool = False) -> int:
    """Returns the size of what a body has; the library repeats a rule without writing it out."""
    found, at = _Sum(), 0
    while match := _TOKEN.match(body, at):
        kind, text, at = match.lastgroup, match[0], match.end()
        if kind == "text":
            found.add(len(text) - 2)
        elif kind == "regex":
            found.add(measure_pattern(text[1:-1]))
        elif kind == "name":
            found.add(sizes.get(text, 1) if text.isupper() else 1)
        elif kind == "open":
            found.open_group()
        elif kind == "close":
            found.close_group()
        elif kind == "times" and not is_rule:
            found.repeat(text)
        elif kind == "json":
            try:
                schema, at = json.JSONDecoder().raw_decode(body, at)
            except (ValueError, RecursionError):
                return found.size  # the library says what is wrong
            found.add(_measure_schema(schema))
    return found.size


def _measure_schema(schema: Any) -> int:
    """Returns the size of the patterns of a schema, at any depth."""
    size, places = 0, [schema]
    while places:
        value = places.pop()
        if isinstance(value, Mapping):
            pattern = value.get("pattern")
            names = value.get("patternProperties")
            texts = [pattern, *(names if isinstance(names, Mapping) else ())]
            size += sum(measure_pattern(text) for text in texts if isinstance(text, str))
            places += value.values()
        elif isinstance(value, list):
            places += value
    return min(size, MAX_SIZE)
