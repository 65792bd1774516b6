"""JSON of an untrusted body: strict, and of a cost that is bounded by the body's size.

Python's own parser accepts what two readers of one body may understand differently (a key twice, NaN) and what makes a
later step costly (objects of any size). Both are refused here, before any field is validated.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

MAX_OBJECT_KEYS = 1024  # of one JSON object; logit_bias is the largest
MAX_SHOWN_CHARS = 80  # of a client's text in an error


class InvalidJSON(ValueError):
    """The body is no JSON that this server reads; the text says why."""


def parse_json(body: bytes) -> Any:
    """Returns the value of a body in UTF-8. Raises InvalidJSON."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_build_object, parse_constant=_reject_constant)
        if b"\\ud" in body or b"\\uD" in body:  # a pair of surrogates is one character, half of one is none
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except InvalidJSON:
        raise
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise InvalidJSON("a text has half of a surrogate pair") from None
    except RecursionError:
        raise InvalidJSON("nested too deeply") from None
    except ValueError as error:  # a JSONDecodeError, or an integer of more digits than Python converts
        raise InvalidJSON(f"not JSON: {error}") from None


def shorten_text(text: str) -> str:
    """Returns a client's text for an error: at most MAX_SHOWN_CHARS characters, without lone surrogates."""
    shown = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_OBJECT_KEYS:
        raise InvalidJSON(f"an object has {len(pairs):,} keys; expected at most {MAX_OBJECT_KEYS:,}")
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise InvalidJSON(f"the key {shorten_text(twice)!r} occurs twice in one object")
    return value


def _reject_constant(name: str) -> NoReturn:
    raise InvalidJSON(f"{name} is not a JSON number")
