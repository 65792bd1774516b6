"""Constraints on an answer: JSON, a JSON schema, a regular expression or a grammar, as masks over the vocabulary.

`GrammarCompiler` makes a `Grammar` of a text in the library's notation; each request starts a `GrammarState` of it,
which gives the tokens that may come next (`mask`) and takes the token that came (`accept`). Tokens are sampled one
after the other, also those of an accepted draft, so a constraint holds with prompt lookup and in batches as it does
alone.

The library is llguidance: masks are computed when they are needed, so a schema costs nothing before its first token,
and its limits bound memory and time of a hostile one. docs/dependencies.md compares it with xgrammar.

V vocabulary.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fledgling.config import UserError
from fledgling.infer.grammar_size import MAX_SIZE, measure_grammar, measure_pattern
from fledgling.infer.json_keys import JsonPlace, KeyGuard, KeyVocabulary, advance
from fledgling.infer.json_schema import EXAMPLES, MAP_KEYWORDS, adapt_schema

if TYPE_CHECKING:
    from fledgling.text.tokenizer import Tokenizer

JsonIn = Literal["answer", "calls"] | None
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as json.dumps writes
LIMITS = {  # of one answer; a lexer state takes 1 to 2 kB, 14 thousand units of fuel take 1 ms
    "max_lexer_states": 8_000,
    "max_grammar_size": 50_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 20_000,
    "verbose_errors": False,
}
ALLOWED_SECONDS, SECONDS_PER_MASK = 0.2, 0.001  # processor time of a grammar: at once, and for each mask
MAX_TERMINALS = 50_000  # the size of all terminals when they are written out: .1 s and 30 MB to compile
MAX_DIVISOR = 10_000  # of multipleOf, without its decimal point: .03 s to compile
JOINING = {"allOf", "anyOf", "oneOf", "$ref", "not", "if", "patternProperties"}  # keywords that may join schemas
MAX_SCHEMA_NUMBER = 2**53  # the library computes bounds of numbers in 64 bits
MAX_SHOWN_CHARS = 200
SEARCHED_STATES, SEARCHED_TOKENS = 50, 24  # of a search for a key that an object does not have
REASONS = (  # the library's: in the words of a schema's writer
    (re.compile(r'Unimplemented keys: \["([^"]+)"'), r"\1: not supported in a schema that every answer must satisfy"),
    (
        re.compile("oneOf constraints are not supported"),
        "oneOf: two of its schemas may accept one value; give each a type or const that no other has, or use anyOf",
    ),
    (
        re.compile("look-?arounds?,? "),
        "a pattern with lookahead, lookbehind or a boundary within it, which are not supported",
    ),
    (re.compile("backreferences are not supported"), "a pattern with backreferences, which are not supported"),
)
EMPTY = ("NoExtensionBias", "allows no further token")  # errors of a grammar that no text satisfies
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")


class GrammarError(UserError):
    """A constraint that cannot be compiled, that no text satisfies, or that exceeds the limits of a step."""


class WorkMeter:
    """The processor time that a grammar has taken in all answers that follow it, with a limit on its mean.

    The library's limits are of one step of one answer. An ambiguous grammar of a few characters stays below them and
    still takes many milliseconds for each token, of each of a request's answers, during which no other answer
    advances. JSON schemas take less than .1 ms.
    """

    def __init__(self) -> None:
        self.seconds, self.masks = 0.0, 0

    def add(self, seconds: float, masks: int) -> None:
        """Counts what was done. Raises GrammarError above ALLOWED_SECONDS and SECONDS_PER_MASK for each mask."""
        self.seconds, self.masks = self.seconds + seconds, self.masks + masks
        if self.seconds > ALLOWED_SECONDS + SECONDS_PER_MASK * self.masks:
            taken, limit = (f"{1e3 * seconds:.2g} ms" for seconds in (self.seconds / self.masks, SECONDS_PER_MASK))
            raise GrammarError(
                f"the constraint of the answer takes {taken} a token, expected at most {limit}: make it simpler, "
                "without rules that match one text in several ways"
            )


def read_bitmask(matcher: Any) -> np.ndarray:
    """Returns which tokens a matcher allows next, bool."""
    packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little").astype(bool)


def has_free_key(vocabulary: KeyVocabulary, matcher: Any, place: JsonPlace) -> bool:
    """Returns whether a key can be completed that its object does not have; True too where that takes a long search.

    A name that many tokens can begin is taken for one that is free.
    """
    open_states, number = [(matcher, place)], len(place.objects[-1] or ())
    for _ in range(SEARCHED_STATES):
        if not open_states:
            return False
        state, here = open_states.pop()
        tokens = [token for token in np.flatnonzero(read_bitmask(state)).tolist() if token not in vocabulary.special]
        if len(tokens) > SEARCHED_TOKENS:
            return True
        for token in tokens:
            after = advance(here, vocabulary.bytes[token])
            if after is None or not after.objects:
                continue
            if len(after.objects) > len(place.objects) or len(after.objects[len(place.objects) - 1] or ()) > number:
                return True
            further = state.deep_copy()
            further.consume_token(token)
            open_states.append((further, after))
    return True


class GrammarState:
    """The state of one answer under a grammar."""

    def __init__(self, matcher: Any, eos_token: int, meter: WorkMeter, guard: KeyGuard | None = None) -> None:
        self.matcher = matcher
        self.eos_token = eos_token
        self.meter = meter
        self.guard = guard

    def mask(self, vocab_size: int) -> np.ndarray:
        """Returns which tokens may come next, (V,) bool; at least one. Raises GrammarError beyond a limit of work."""
        start = time.thread_time()
        try:
            return self._compute_mask(vocab_size)
        finally:
            self.meter.add(time.thread_time() - start, 1)

    def _compute_mask(self, vocab_size: int) -> np.ndarray:
        allowed = np.zeros(vocab_size, dtype=bool)
        if self.matcher.is_stopped() and not self.matcher.is_error():
            allowed[self.eos_token] = True
            return allowed
        bits = read_bitmask(self.matcher)[:vocab_size]
        if self.matcher.is_error():
            raise GrammarError(f"the constraint of the answer: {self.describe_error()}")
        allowed[: len(bits)] = bits
        if self.guard:
            self._restrict_keys(self.guard, allowed)
        if not allowed.any():
            raise GrammarError("the constraint of the answer allows no further token")
        return allowed

    def _restrict_keys(self, guard: KeyGuard, allowed: np.ndarray) -> None:
        """Removes, in place, the tokens that repeat a key, and those after which only taken names are left."""
        guard.restrict_(allowed)
        for token, place in guard.list_doubtful(allowed):
            ahead = self.matcher.deep_copy()
            ahead.consume_token(token)
            allowed[token] = has_free_key(guard.vocabulary, ahead, place)

    def mask_logits_(self, logits: Tensor) -> None:
        """Sets the logits (V,) of tokens that may not come next to minus infinity, in place."""
        allowed = torch.from_numpy(self.mask(len(logits))).to(logits.device, non_blocking=True)
        logits.masked_fill_(~allowed, -torch.inf)

    def accept(self, token: int) -> None:
        """Advances by the token that came; it is one that `mask` allowed."""
        start = time.thread_time()
        if not self.matcher.is_stopped():
            self.matcher.consume_token(token)
            if self.guard:
                self.guard.accept(token)
        self.meter.seconds += time.thread_time() - start

    def describe_error(self) -> str:
        """Returns the library's reason in one line."""
        return _shorten_reason(self.matcher.get_error())


class Grammar:
    """A compiled constraint; `start` gives the state of a new answer. Answers of one request share a grammar."""

    def __init__(self, matcher: Any, eos_token: int, make_guard: Callable[[], KeyGuard | None]) -> None:
        self._matcher = matcher
        self._eos_token = eos_token
        self._make_guard = make_guard
        self._meter = WorkMeter()

    def start(self) -> GrammarState:
        """Returns the state before the first token."""
        return GrammarState(self._matcher.deep_copy(), self._eos_token, self._meter, self._make_guard())


class GrammarCompiler:
    """Compiles constraints for a tokenizer. Thread-safe.

    Args:
        tokenizer: the vocabulary; control tokens take part in a grammar by their names only.
        eos_token: the token that ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token: int) -> None:
        self.tokenizer = tokenizer
        self.eos_token = eos_token

    def compile_schema(self, schema: Mapping[str, Any] | bool, lenient: bool = False) -> Grammar:
        """Returns the constraint "JSON that the schema accepts", as `write_json_rule` writes it.

        Raises:
            GrammarError: the schema has keywords that the library does not know, or numbers that it cannot compute.
        """
        return self.compile_lark(write_json_rule("start", schema, lenient), "answer")

    def compile_regex(self, pattern: str) -> Grammar:
        """Returns the constraint that the whole answer matches `pattern`, in the syntax of Rust's regex crate."""
        _check_size(measure_pattern(pattern))
        return self._compile(self._library.LLMatcher.grammar_from_regex(pattern))

    def compile_lark(self, grammar: str, json_in: JsonIn = None) -> Grammar:
        """Returns the constraint of a grammar in Lark's notation; `start` is its first rule.

        Args:
            grammar: its text.
            json_in: where the grammar has JSON whose keys are guarded (json_keys.py): the whole answer or a call of a
                tool, or only calls.
        """
        _check_size(measure_grammar(grammar))
        return self._compile(self._library.LLMatcher.grammar_from_lark(grammar), json_in)

    def compile_gbnf(self, grammar: str) -> Grammar:
        """Returns the constraint of a grammar in llama.cpp's notation."""
        assert self._library
        try:
            converted = import_module("llguidance.gbnf_to_lark").gbnf_to_lark(grammar)
        except Exception as error:  # the converter, in Python, raises several kinds
            raise GrammarError(f"the constraint of the answer: {_shorten_reason(str(error))}") from None
        return self.compile_lark(converted)

    def _compile(self, text: str, json_in: JsonIn = None) -> Grammar:
        matcher = self._library.LLMatcher(
            self._vocabulary, text, log_level=0, limits=self._library.LLParserLimits(**LIMITS)
        )
        state = GrammarState(matcher, self.eos_token, WorkMeter())
        if matcher.is_error():
            raise GrammarError(f"the constraint of the answer: {state.describe_error()}")
        make_guard = lambda: KeyGuard(self._keys, json_in == "answer") if json_in else None  # noqa: E731
        grammar = Grammar(matcher, self.eos_token, make_guard)
        try:
            grammar.start().mask(self.tokenizer.vocab_size)
        except GrammarError as error:
            if not any(reason in str(error) for reason in EMPTY):
                raise  # a limit of work
            raise GrammarError("the constraint of the answer: no text satisfies it") from None
        return grammar

    @cached_property
    def _library(self) -> Any:
        if find_spec("llguidance") is None:
            raise GrammarError("constrained answers need llguidance: pip install 'fledgling[structured]'")
        import llguidance

        return llguidance

    @cached_property
    def _keys(self) -> KeyVocabulary:
        return KeyVocabulary(self.tokenizer)

    @cached_property
    def _vocabulary(self) -> Any:
        wrapper = self._library.TokenizerWrapper(_Vocabulary(self.tokenizer, self.eos_token))
        return self._library.LLTokenizer(wrapper)


class _Vocabulary:
    """The tokenizer as the library reads it: bytes of each token, control tokens by name after a byte 0xFF."""

    def __init__(self, tokenizer: Tokenizer, eos_token: int) -> None:
        names = {index: name for name, index in tokenizer.special_tokens.items()}
        self.eos_token_id, self.bos_token_id = eos_token, tokenizer.bos_or_none
        self.tokens = [
            b"\xff" + names[index].encode() if index in names else piece
            for index, piece in enumerate(tokenizer.token_bytes)
        ]
        self.special_token_ids = sorted(names)
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def write_json_rule(name: str, schema: Mapping[str, Any] | bool, lenient: bool = False) -> str:
    """Returns a rule of a Lark grammar: JSON that the schema accepts, with spaces as json.dumps writes them.

    Keywords that demand nothing are dropped, and some are written as others (`adapt_schema`).
    `lenient` drops all keywords that the library does not know and reads `oneOf` as `anyOf`, instead of an error.
    Raises GrammarError for numbers that it cannot represent, and for a schema that is nested too deeply.
    """
    style = {**JSON_STYLE, "lenient": lenient, "coerce_one_of": lenient}
    try:
        _check_numbers(schema)
        _check_multiples(schema)
        document = adapt_schema(schema) if isinstance(schema, Mapping) else {"allOf": [schema]}
        return f"{name}: %json {json.dumps(document | {'x-guidance': style})}"
    except RecursionError:
        raise GrammarError("the schema is nested too deeply") from None


def _check_size(size: int) -> None:
    """Raises GrammarError for a constraint whose terminals and patterns are too large when they are written out."""
    if size > MAX_TERMINALS:
        shown = f"more than {MAX_SIZE:,}" if size >= MAX_SIZE else f"{size:,}"
        raise GrammarError(
            f"the constraint of the answer has {shown} characters when its terminals, patterns and repetitions are "
            f"written out; expected at most {MAX_TERMINALS:,}: use fewer or smaller repetitions"
        )


def _check_numbers(value: Any, kind: str = "schema") -> None:
    """Raises GrammarError for a number that is too large, but not in examples, which demand nothing.

    kind: of the value: "schema", "schemas" (by names of any text), or "value" (of `const` and `enum`).
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= MAX_SCHEMA_NUMBER:
        raise GrammarError("the schema has a number beyond 2**53, which the constraint cannot represent")
    if isinstance(value, list):
        for child in value:
            _check_numbers(child, kind)
    for key, child in value.items() if isinstance(value, Mapping) else ():
        if kind == "schemas":
            _check_numbers(child)
        elif kind == "value" or key not in EXAMPLES:
            inner = "schemas" if key in MAP_KEYWORDS else "value" if key in ("const", "enum") else "schema"
            _check_numbers(child, "value" if kind == "value" else inner)


def _check_multiples(schema: Any) -> None:
    """Raises GrammarError for values of `multipleOf` that the library would take long to compile: 27 s for a million.

    It makes a state for each remainder of each of them, and joined schemas demand the least common multiple. So the sum
    has a limit, and where a schema has a keyword that may join others, the least common multiple of all has it too.
    """
    divisors, joined = list[int](), False
    places: list[tuple[Any, bool]] = [(schema, False)]  # a value, and whether its keys are names of any text
    while places:
        value, has_names = places.pop()
        if isinstance(value, list):
            places += [(child, False) for child in value]
        if not isinstance(value, Mapping):
            continue
        if not has_names:
            joined |= not JOINING.isdisjoint(value)
            divisor = value.get("multipleOf")
            if isinstance(divisor, int | float) and not isinstance(divisor, bool) and divisor > 0:
                divisors.append(int(f"{Decimal(str(divisor)).normalize():f}".replace(".", "")))
        for key, child in value.items():
            if has_names or key not in (*EXAMPLES, "enum", "const"):
                places.append((child, not has_names and key in MAP_KEYWORDS))
    if max(sum(divisors), math.lcm(*divisors) if joined else 0) > MAX_DIVISOR:
        shown = ", ".join(map(str, sorted(set(divisors))))[:MAX_SHOWN_CHARS]
        raise GrammarError(
            f"multipleOf {shown} (without the point): expected a sum of at most {MAX_DIVISOR:,}, and where schemas are "
            "joined such a least common multiple"
        )


def _shorten_reason(text: str) -> str:
    """Returns the library's reason without the place in, and the text of, the grammar that it was given.

    The reason of a regular expression's error is below a copy of the expression.
    """
    first, *others = text.replace("<non-verbose/>", "").strip().split("\n")
    reason = next((line.partition("error: ")[2] for line in others if line.strip().startswith("error: ")), "")
    line = _PLACE.sub("", f"{first} {reason}" if first.endswith(":") else first)
    line = next((match.expand(text) for pattern, text in REASONS if (match := pattern.search(line))), line)
    return line if len(line) <= MAX_SHOWN_CHARS else f"{line[:MAX_SHOWN_CHARS]}..."
