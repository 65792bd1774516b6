"""Chat templates of other models: Jinja, in a sandbox, with bounded work and memory.

A template is a program from the model's directory. Jinja's sandbox keeps it from Python's objects; here it
can also neither run long nor grow: a step is counted at the start of every loop's body and every macro, and every
operation that makes a text or a list is counted by the size of its result before it is made. A template that exceeds
either bound is cut with one line.

The functions that a template may use are those of transformers, except that the date never changes: a text that is
trained on must be the text that is asked later. For a template that tests whether `strftime_now` is defined it is not,
and the template takes the date that it has for that case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fledgling.config import UserError

MAX_STEPS = 100_000  # bodies of loops and macros of one rendering
MAX_MADE = 64_000_000  # characters and items that one rendering makes
MAX_TEMPLATE = 1 << 20  # characters of the template itself
MAX_DATE_FORM = 64  # characters of the form of a date
STEP = "fledgling_step"
CLOCK = "strftime_now"
DATE = datetime(2024, 7, 26)  # that Llama 3's templates have where there is no clock
FAILURES = (TemplateError, RecursionError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)
METHODS = {  # of texts, lists and tables, that a template may call
    *("strip", "lstrip", "rstrip", "split", "rsplit", "startswith", "endswith", "replace", "lower", "upper", "title"),
    *("capitalize", "find", "rfind", "count", "index", "items", "keys", "values", "get", "isdigit", "join"),
    "splitlines",
}
FILTERS = {
    *("trim", "tojson", "length", "count", "join", "map", "select", "reject", "selectattr", "rejectattr", "list"),
    *("first", "last", "lower", "upper", "replace", "default", "d", "string", "int", "float", "items", "capitalize"),
    *("dictsort", "safe", "reverse", "title", "abs", "round", "unique", "sort", "min", "max", "attr", "batch"),
}


class TemplateLimitError(TemplateError):
    """A template that does too much work, or makes too much text."""


class _GenerationBlocks(Extension):
    """{% generation %} marks what an assistant says, for trainers that read the marks: its body is rendered alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[nodes.Node]:
        """Returns what is within the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.steps, self.made = MAX_STEPS, MAX_MADE

    def step(self) -> str:
        self.steps -= 1
        if self.steps < 0:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS:,} steps: does it loop?")
        return ""

    def take(self, size: int) -> None:
        self.made -= size
        if self.made < 0:
            raise TemplateLimitError(f"it makes more than {MAX_MADE:,} characters")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 1


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox whose operations are counted."""

    intercepted_binops = frozenset(("+", "*", "**", "%", "//", "/", "-"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlocks]
        )
        self.budget = _Budget()
        self.filters = {name: self._count_arguments(one) for name, one in self.filters.items() if name in FILTERS}
        self.filters["tojson"] = self._count_arguments(_to_json)
        self.globals = {"range": self._make_range, "namespace": self.globals["namespace"], "dict": dict}
        self.globals |= {"raise_exception": _raise, STEP: lambda: self.budget.step()}

    def _count_arguments(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a filter that counts its arguments, and what it may at most make of them, before it runs."""

        def counted(*arguments: Any, **named: Any) -> Any:
            values = [one for one in (*arguments, *named.values()) if isinstance(one, str | list | tuple | dict)]
            numbers = [one for one in (*arguments, *named.values()) if isinstance(one, int) and abs(one) > 1000]
            if numbers:
                raise TemplateLimitError(f"a filter is given the number {numbers[0]}")
            multiplies = function.__name__ in ("do_replace", "do_join", "sync_do_join")
            self.budget.take(_product(values) if multiplies else sum(map(_size, values)) + 1)
            return function(*arguments, **named)

        for name in ("jinja_pass_arg",):  # how Jinja knows which filters receive the environment
            if hasattr(function, name):
                setattr(counted, name, getattr(function, name))
        return counted

    def _make_range(self, *bounds: int) -> range:
        made = range(*bounds)
        if len(made) > MAX_STEPS:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS:,} steps: does it loop?")
        return made

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes a counted operation."""
        if operator == "+" and not isinstance(left, int | float):
            self.budget.take(_size(left) + _size(right))
        elif operator in ("*", "**", "%") and not all(isinstance(one, int | float) for one in (left, right)):
            raise SecurityError(f"{operator} of other things than numbers")
        elif operator in ("*", "**") and max(abs(left), abs(right)) > 1e6:
            raise TemplateLimitError("a number is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]
        """Calls a method of a text, a list or a table, or a function of the template's own."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | list | tuple | dict):
            if obj.__name__ not in METHODS:
                raise SecurityError(f"the method {obj.__name__}")
            values = [owner, *(one for one in arguments if isinstance(one, str | list | tuple))]
            self.budget.take(_product(values) if obj.__name__ in ("replace", "join") else sum(map(_size, values)) + 1)
        return super().call(context, obj, *arguments, **named)

    def wrap_str_format(self, value: Any) -> None:
        """Returns nothing: `format` is no method that a template may call, and `call` rejects it."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Reads an item or a slice, which is counted."""
        if isinstance(argument, slice):
            self.budget.take(_size(obj))
        return super().getitem(obj, argument)


def _product(values: Sequence[Any]) -> int:
    """Returns a bound of the size of a replacement, or of a list that is joined."""
    texts = sorted(sum(map(_size, one)) if isinstance(one, list | tuple) else len(one) for one in values)
    return sum(texts) + texts[-1] * max(64, texts[-2] if len(texts) > 1 else 0)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent if indent and 0 < indent < 9 else None)


def _raise(message: Any) -> None:
    raise TemplateError(str(message)[:300])


def _count_work(template: nodes.Template) -> None:
    """Inserts a counted step at the start of every loop's and macro's body, and counts what is written and joined.

    The sandbox sees neither a ~ b nor what a block of text is made of: their parts pass through a counted filter.
    """

    def count(node: nodes.Node) -> nodes.Node:
        return node if isinstance(node, nodes.TemplateData) else nodes.Filter(node, "string", [], [], None, None)

    for node in [*template.find_all((nodes.Output, nodes.Concat))]:
        node.nodes = [count(one) for one in node.nodes]  # type: ignore[attr-defined]
    for node in [*template.find_all((nodes.For, nodes.Macro, nodes.CallBlock))]:
        step = nodes.Call(nodes.Name(STEP, "load"), [], [], None, None)
        node.body.insert(0, nodes.Output([step]))  # type: ignore[attr-defined]


def _asks_for_clock(template: nodes.Template) -> bool:
    """Returns whether a template handles the case that there is no clock."""
    tests = (test for test in template.find_all(nodes.Test) if test.name in ("defined", "undefined"))
    return any(isinstance(test.node, nodes.Name) and test.node.name == CLOCK for test in tests)


@lru_cache(maxsize=16)
def _compile(source: str) -> tuple[_Environment, Any]:
    """Returns an environment and the compiled template. Raises UserError for one that cannot be read."""
    if len(source) > MAX_TEMPLATE:
        raise UserError(f"the chat template has {len(source):,} characters; expected at most {MAX_TEMPLATE:,}")
    environment = _Environment()
    try:
        parsed = environment.parse(source)
        if not _asks_for_clock(parsed):
            environment.globals[CLOCK] = lambda form: DATE.strftime(str(form)[:MAX_DATE_FORM])
        _count_work(parsed)
        parsed.set_environment(environment)
        parsed.set_lineno(1)
        code = environment.compile(parsed)
        template = environment.template_class.from_code(environment, code, environment.make_globals(None))
    except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise UserError(f"the chat template cannot be read: {_one_line(error)}") from None
    return environment, template


def render_template(source: str, messages: Sequence[Mapping[str, Any]], names: Mapping[str, str], asks: bool) -> str:
    """Renders messages by a chat template.

    Args:
        messages: of {"role", "content"}; content is text.
        names: texts that the template may use, such as bos_token.
        asks: whether the beginning of an answer is added (add_generation_prompt).

    Raises:
        UserError: the template fails, rejects the messages, or does too much.
    """
    environment, template = _compile(source)
    environment.budget = _Budget()
    pieces: list[str] = []
    try:
        given = {**names, "messages": messages, "add_generation_prompt": asks, "tools": None, "documents": None}
        stream: Iterator[str] = template.generate(**given)
        for piece in stream:
            environment.budget.take(len(piece))
            pieces.append(piece)
    except FAILURES as error:
        raise UserError(f"the chat template cannot render this conversation: {_one_line(error)}") from None
    return "".join(pieces)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
