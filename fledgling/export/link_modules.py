"""Joins JavaScript modules to one script, for a page that is one file.

Every module becomes a function that returns its exports, called once, after those that it imports. It takes the forms
of this project's pages: `import { a, b as c } from "./name.js";` on one line, `export` before a declaration, and a last
`export { ... }`. Anything else is an error. Exports are constants: a variable cannot be exported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([\w./-]+)";$', re.MULTILINE)
_DECLARATION = re.compile(r"^export (?=(?:async )?function\*? (\w+)|(?:const|class) (\w+))", re.MULTILINE)
_LIST = re.compile(r"\bexport ?\{([^}]*)\};?\s*\Z")
_LEFT = re.compile(r"^\s*(?:import|export)\b(?!\()|\bimport\(", re.MULTILINE)
# What ends a script element, or begins a comment in it, for a parser of HTML; in strings and regexes \x3c is the same.
_MARKUP = re.compile(r"<(?=/?script|!--)", re.IGNORECASE)


def link_modules(entry: str, sources: Mapping[str, str]) -> str:
    """Returns one script that does what the module `entry` does.

    Args:
        entry: a name of `sources`.
        sources: the text of each module by the name that others import.

    Raises:
        ValueError: a module has another form of import or export, is not among the sources, or imports itself.
    """
    linked: dict[str, str] = {}
    _link(entry, sources, linked, {}, ())
    return "\n".join(['"use strict";', *linked.values()]) + "\n"


def _link(
    name: str,
    sources: Mapping[str, str],
    linked: dict[str, str],
    exports: dict[str, list[str]],
    importers: tuple[str, ...],
) -> None:
    """Adds a module, after those that it imports, to `linked` and the names that it exports to `exports`."""
    if name in linked:
        return
    if name not in sources or name in importers:
        raise ValueError(f"{' -> '.join((*importers, name))}: {'in a circle' if name in importers else 'not found'}")
    text = sources[name]
    for listed, imported in _IMPORT.findall(text):
        _link(imported, sources, linked, exports, (*importers, name))
        if missing := [wanted for wanted, _ in _names(listed) if wanted not in exports[imported]]:
            raise ValueError(f"{name}: {imported} does not export {missing[0]}")
    exported = [(local, local) for match in _DECLARATION.findall(text) for local in filter(None, match)]
    if listed_last := _LIST.search(text):
        exported += _names(listed_last[1])
    body = _IMPORT.sub(lambda m: f"const {_destructure(_names(m[1]))} = {_make_variable(m[2])};", text)
    body = _MARKUP.sub(r"\\x3c", _LIST.sub("", _DECLARATION.sub("", body)))
    if left := _LEFT.search(body):
        line = body[left.start() :].strip().split("\n")[0]
        raise ValueError(f"{name}: {line[:80]!r} is no import or export of a form that is linked")
    exports[name] = [outer for _, outer in exported]
    returned = ", ".join(f"{outer}: {local}" for local, outer in exported)
    linked[name] = f"const {_make_variable(name)} = (() => {{\n{body}\nreturn {{ {returned} }};\n}})();"


def _make_variable(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name.removesuffix(".js"))


def _names(listed: str) -> list[tuple[str, str]]:
    """Returns (name, name elsewhere) of "a, b as c"."""
    pairs = [entry.split(" as ") for entry in map(str.strip, listed.split(",")) if entry]
    return [(pair[0].strip(), pair[-1].strip()) for pair in pairs]


def _destructure(names: list[tuple[str, str]]) -> str:
    return "{ " + ", ".join(f"{name}: {local}" for name, local in names) + " }"
