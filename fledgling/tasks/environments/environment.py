"""An environment, and an episode in it.

A model acts by calls, `name(arguments)` between `python_start` and `python_end`; what a call returns follows between
`output_start` and `output_end`, as with the calculator. Rollouts, fine-tuning and the engine therefore treat an episode
as one answer, whose tool output is never learned from.

    class Guess(Environment):
        def reset(self, seed):
            self.number = random.Random(seed).randint(1, 31)
            return "I think of a number from 1 to 31. Which? Use guess(n)."
        def tools(self):
            return {"guess": self.guess}
        def guess(self, number: int) -> str:
            return "higher" if self.number > number else "lower" if self.number < number else "yes"
        @property
        def solution(self):
            return str(self.number)

Everything is a function of the instance's seed and the calls, so an episode can be played again from its calls. That is
how it is scored: by playing it again, in whatever process has its text.
"""

from __future__ import annotations

import ast
import inspect
import json
import random
import time
import typing
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fledgling.tasks.task import normalize_text

MAX_CALL_CHARACTERS = 200
MAX_OBSERVATION_CHARACTERS = 400
PARAMETER_TYPES = (int, float, str, bool)  # that a tool's parameters may have
DECISION_ACCURACY = 0.8  # the share of a demonstration's decisions on the way that are right
LAST_DECISION_ACCURACY = 0.2  # and of its last one, which uses what was found: mostly it is the same simple mistake
CHECKED_SEEDS, CHECK_SECONDS = 8, 1.0  # that are reset twice when a class is loaded
SEEDED = "expected the same: everything random comes from random.Random(seed)"
TOO_LONG_ERROR = "error: too long"  # the output of a call that was not run, as `fledgling.infer.tools` writes it


class ToolError(Exception):
    """A call that cannot be answered; its text is what the model sees."""


class Environment(ABC):
    """One instance of a small world. A class may be reset any number of times."""

    max_turns: ClassVar[int] = 8  # calls that are run
    max_new_tokens: ClassVar[int] = 192  # of an episode, tool output included
    sandboxed: ClassVar[bool] = True  # of a user's class: its process is restricted once the class is loaded

    @abstractmethod
    def reset(self, seed: int) -> str:
        """Starts instance `seed` and returns the user's prompt, which names the tools. A pure function of `seed`."""

    @abstractmethod
    def tools(self) -> Mapping[str, Callable[..., str]]:
        """Returns the functions that the model may call, by name.

        Their parameters are annotated with int, float, str or bool. They raise ToolError with a text for the model.
        """

    def run(self, text: str) -> str:
        """Runs the call `text` and returns the tool's answer. Raises ToolError with a text for the model."""
        return run_call(self.tools(), text)

    @property
    @abstractmethod
    def solution(self) -> str:
        """The answer of a perfect player."""

    @property
    def identity(self) -> str:
        """What the instance is. Instances are held out from training by its hash; equal ones stay on one side."""
        return self.solution

    def reward(self, answer: str) -> float:
        """Returns the score in [0, 1] of an episode that ended with the text `answer`."""
        return float(normalize_text(answer) == normalize_text(to_text(self.solution, "solution")))

    def turn_reward(self) -> float:
        """Returns the reward of the call that was just run; called once for each. `rl.rewards.turns` weights it."""
        return 0.0

    def demonstrate(self, call: Callable[[str], str], rng: random.Random) -> str:
        """Plays the instance for supervised training and returns the final answer.

        `call` runs a call and returns what the model would see. An environment that is only practised has none.
        """
        raise NotImplementedError


@dataclass
class Episode:
    """One instance in play: runs calls, counts turns, and computes the rewards."""

    environment: Environment
    seed: int
    prompt: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # (call, what it returned)
    turn_rewards: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Resets the environment."""
        self.prompt = self.environment.reset(self.seed)

    def call(self, text: str) -> str:
        """Runs the call `text` and returns what the model sees; never raises for what a model wrote."""
        if len(self.turn_rewards) >= self.environment.max_turns:
            observation = f"error: no turn left of {self.environment.max_turns}"
        else:
            try:
                observation = self.environment.run(text)
            except ToolError as error:
                observation = f"error: {error}"
            self.turn_rewards.append(self.environment.turn_reward())
        observation = observation[:MAX_OBSERVATION_CHARACTERS]
        self.calls.append((text, observation))
        return observation


def write_transcript(calls: list[str], answer: str) -> str:
    """Returns calls and final text as one line of JSON, which no text of a model can imitate."""
    return json.dumps({"calls": calls, "answer": answer}, ensure_ascii=False)


def play_transcript(environment: Environment, seed: int, transcript: str) -> tuple[Episode, str]:
    """Plays the calls of a transcript in instance `seed`; returns the episode and the final text."""
    try:
        values = json.loads(transcript)
        calls, answer = [str(call) for call in values["calls"]], str(values["answer"])
    except (ValueError, TypeError, KeyError):
        calls, answer = [], transcript  # the text of an answer without its calls
    episode = Episode(environment, seed)
    for call in calls:
        episode.call(call)
    return episode, answer


def run_call(tools: Mapping[str, Callable[..., str]], text: str) -> str:
    """Runs `name(arguments)` of literals and returns the tool's answer. Raises ToolError, which says what is wrong."""
    name, positional, keywords = parse_call(text)
    if name not in tools:
        raise ToolError(f"no tool {name}; there are {', '.join(sorted(tools))}")
    function = tools[name]
    try:
        bound = inspect.signature(function).bind(*positional, **keywords)
    except TypeError as error:
        raise ToolError(f"{name}: {error}") from None
    types = typing.get_type_hints(function)
    for parameter, value in bound.arguments.items():
        expected = types.get(parameter)
        if expected in PARAMETER_TYPES and not _is_value_of(value, expected):
            raise ToolError(f"{name}: {parameter} is no {expected.__name__}")
    return to_text(function(*bound.args, **bound.kwargs), f"tool {name}")


def to_text(value: Any, source: str) -> str:
    """Returns what a method of an environment returned as text.

    Raises TypeError for None, a forgotten `return`; for a method, whose `@property` was forgotten; and for an object
    whose text is its address in memory, such as a coroutine.
    """
    if value is None:
        raise TypeError(f"{source} returned None, expected str")
    if inspect.isroutine(value):
        raise TypeError(f"{source} is a method, expected str: write @property before it")
    kind = type(value)
    has_no_text = kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__
    if has_no_text or inspect.isawaitable(value) or inspect.isgenerator(value):
        raise TypeError(f"{source} returned an object of the class {kind.__name__}, expected str")
    return str(value)


def start_instance(environment: Environment, seed: int) -> dict[str, str]:
    """Resets an environment to instance `seed`; returns its prompt, solution and identity.

    Raises TypeError where one is None.
    """
    prompt = to_text(environment.reset(seed), "reset")
    if not prompt.strip():
        raise TypeError("reset returned an empty text, expected the user's prompt")
    return {"prompt": prompt} | {key: to_text(getattr(environment, key), key) for key in ("solution", "identity")}


def find_instance_problem(make_environment: Callable[[], Environment]) -> str:
    """Returns why the instances of an environment are no function of their seeds, in one line; "" where they may be.

    An episode is scored by playing it again, which would be in another instance. Compares the first few seeds, of
    resets that take longer fewer.
    """
    started = time.monotonic()
    for seed in range(CHECKED_SEEDS):
        first, again = (start_instance(make_environment(), seed) for _ in range(2))
        for key, value in first.items():
            if value != again[key]:
                then = f"and is {again[key][:40]!r} after a second reset"
                return f"{key} of seed {seed} was {value[:40]!r}, {then}; {SEEDED}"
        if time.monotonic() - started > CHECK_SECONDS:
            break
    return ""


def find_tool_problem(tools: Any) -> str:
    """Returns why an environment's tools cannot be called, in one line; "" where they can.

    A parameter of another class would reach the tool as whatever literal the model wrote, unchecked.
    """
    if not isinstance(tools, Mapping):
        return f"tools() returns {type(tools).__name__}, expected a mapping of names to functions"
    for name, function in tools.items():
        if not (isinstance(name, str) and name.isidentifier() and callable(function)):
            return f"tools() has the entry {name!r}: {function!r}, expected a name and a function"
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            return f"tool {name}: it is async or a generator, expected a function that returns its text"
        try:
            types = typing.get_type_hints(function)
            parameters = inspect.signature(function).parameters
        except (NameError, TypeError, ValueError) as error:
            return f"tool {name}: its annotations cannot be read ({error})"
        if types.get("return") is type(None):
            return f"tool {name}: its annotation is -> None, expected to return the text that the model sees"
        for parameter in parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                return f"tool {name}: {parameter} takes any number of values, expected parameters by name"
            if (expected := types.get(parameter.name)) not in PARAMETER_TYPES:
                given = inspect.formatannotation(expected) if expected is not None else "no annotation"
                return f"tool {name}: {parameter.name} has {given}, expected int, float, str or bool"
    return ""


def find_limit_problem(environment: type[Environment]) -> str:
    """Returns which limit of a class is no whole number from 1 on, in one line; "" where both are."""
    for name in ("max_turns", "max_new_tokens"):
        value = getattr(environment, name)
        if type(value) is not int or value < 1:
            return f"{name} is {value!r}, expected a whole number from 1 on"
    return ""


def _is_value_of(value: Any, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is expected


def parse_call(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Returns (name, positional arguments, keyword arguments) of a call in Python's notation, of literals only."""
    if len(text) > MAX_CALL_CHARACTERS:
        raise ToolError(f"a call has at most {MAX_CALL_CHARACTERS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a model wrote, such as look(1a), on the terminal of a run
            node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        positional = [ast.literal_eval(argument) for argument in node.args]
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ToolError("expected a call such as name(1)") from None
    return node.func.id, positional, keywords
