"""What a page says of itself in its footer: the lines and the time it was made from, the code that made it, a digest.

By the lines and the time `fledgling.verify` makes the record that the page is of. The code says whether the same record
gives the same words. The digest shows an edit; it has no key, as a seal has none.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import fledgling
from fledgling.record.durable import replace_file
from fledgling.record.jsonl import encode_text

NO_DIGEST = 'data-digest=""'
CODE = ("config", "files", "record", "report")  # packages that a page is made by
SET_ASIDE = "report.older.html"
_DIGEST = re.compile(r'data-digest="([0-9a-f]*)"')
_CODE = re.compile(r'<footer data-lines="[^"]*" data-made="[^"]*" data-code="([0-9a-f]*)"')
_LINES_READ = re.compile(r'<footer data-lines="([^"]*)"')
_MADE = re.compile(r'<footer data-lines="[^"]*" data-made="([\d.]*)"')
_FACTS = re.compile(
    r'(<footer data-lines="[^"]*") data-made="[\d.]*"(?: data-code="[0-9a-f]*")? data-digest="[0-9a-f]*"'
)
_WHEN_MADE = re.compile(r"\bMade \d{4}-\d\d-\d\d \d\d:\d\d UTC\b")


def add_digest(page: str) -> str:
    """Returns a page that has `NO_DIGEST` in its footer with its digest instead."""
    return page.replace(NO_DIGEST, f'data-digest="{_hash(page)}"', 1)


def is_as_written(page: str) -> bool | None:
    """Returns whether a page is what its digest says; None of one without a digest, as earlier versions wrote it."""
    found = _DIGEST.search(page)
    return found[1] == _hash(page) if found else None


def _hash(page: str) -> str:
    """Returns the SHA-256 of a page without the digest in it, as a file has it."""
    return hashlib.sha256(encode_text(_DIGEST.sub(NO_DIGEST, page, count=1))).hexdigest()


@cache  # an installation does not change while it runs
def hash_code() -> str:
    """Returns a digest of the sources, templates and style that pages are made by."""
    package, digest = Path(fledgling.__file__).parent, hashlib.sha256()
    files = [file for name in CODE for file in (package / name).rglob("*") if file.suffix in (".py", ".html", ".css")]
    for file in sorted(files):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def is_of_this_code(page: str) -> bool:
    """Returns whether a page says that this code made it."""
    found = _CODE.search(page)
    return found is not None and found[1] == hash_code()


def drop_facts(page: str) -> str:
    """Returns a page without what differs between two of the same record: time, code and digest."""
    return _FACTS.sub(r"\1", _WHEN_MADE.sub("Made", page))


def read_unix_time(page: str) -> float:
    """Returns when a page was made, in seconds; infinity where it does not say it."""
    try:
        return float(_MADE.search(page)[1])  # type: ignore[index]
    except (TypeError, ValueError):
        return math.inf


def read_lines_read(page: str) -> dict[str, int] | None:
    """Returns `RunData.lines_read` of the run that a page was made from; None where the page does not say it."""
    found = _LINES_READ.search(page)
    try:
        values = json.loads(html.unescape(found[1])) if found else None
    except (ValueError, RecursionError):
        return None
    right = isinstance(values, dict) and all(type(count) is int and count >= 0 for count in values.values())
    return values if right else None


def set_aside_page(run_dir: Path, stage: str, log: Callable[[str], None]) -> None:
    """Renames RUN/report.html where it has steps of a stage that starts, is resumed or is rolled back.

    Lines of that stage are replaced now, so the page would be of a record that is gone.
    """
    page = run_dir / "report.html"
    try:
        lines = read_lines_read(page.read_text("utf-8", "replace"))
        if not lines or not lines.get(f"{stage}/metrics"):
            return
        replace_file(page, page.with_name(SET_ASIDE))
    except OSError:  # there is none, or it cannot be moved
        return
    log(f"{page.name} has steps of {stage} from before: it is {SET_ASIDE} now, `fledgling report` rebuilds it")
