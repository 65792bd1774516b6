"""JSON of an untrusted body: strict, and of a cost that is bounded by the body's size; and JSON of long answers.

Python's own parser accepts what two readers of one body may understand differently (a key twice, NaN) and what makes a
later step costly (objects of any size). Both are rejected here, before any field is validated.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_OBJECT_KEYS = 1024  # of one JSON object; logit_bias is the largest
MAX_OBJECTS = 8192  # of one body: each costs some microseconds of validation, in which no answer advances
ITEMS_AT_ONCE = 32  # of a list, encoded without a break
MAX_SHOWN_CHARS = 80  # of a client's text in an error


class InvalidJSON(ValueError):
    """The body is no JSON that this server reads; the text says why."""


def parse_json(body: bytes) -> Any:
    """Returns the value of a body in UTF-8. Raises InvalidJSON."""
    count = 0

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count > MAX_OBJECTS:
            raise InvalidJSON(f"more than {MAX_OBJECTS:,} objects in all messages, parts, calls and tools together")
        return _build_object(pairs)

    try:
        value = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=build_object,
            parse_constant=_reject_constant,
            parse_float=_parse_float,
        )
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
    except json.JSONDecodeError as error:
        raise InvalidJSON(f"not JSON: {error}") from None
    except ValueError:  # Python converts no more digits
        raise InvalidJSON(f"an integer has more than {sys.get_int_max_str_digits():,} digits") from None


def encode_json(value: Any) -> bytes:
    """Returns JSON in UTF-8, as Starlette's JSONResponse writes it.

    Python's encoder keeps the interpreter's lock to its end: a second for 16 answers with all log-probabilities, in
    which neither the engine nor the event loop runs. Here a list is encoded ITEMS_AT_ONCE items at a time.
    """
    return "".join(_encode_parts(value)).encode("utf-8")


def _encode_parts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        separator = "{"
        for key, item in value.items():
            yield f"{separator}{_dump(key)}:"
            yield from _encode_parts(item)
            separator = ","
        yield "}" if value else "{}"
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value[:1]):
        yield "["
        if len(value) <= ITEMS_AT_ONCE:  # few items, each may be large: the choices
            for number, item in enumerate(value):
                yield "," if number else ""
                yield from _encode_parts(item)
        else:
            for start in range(0, len(value), ITEMS_AT_ONCE):
                yield "," if start else ""
                yield _dump(value[start : start + ITEMS_AT_ONCE])[1:-1]
        yield "]"
    else:
        yield _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


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


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # JSON has no infinity, so that no answer could repeat the number
        raise InvalidJSON(f"{shorten_text(text)} is beyond the largest number, 1.8e308")
    return value
