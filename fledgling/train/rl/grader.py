"""A process that runs one custom reward function: JSON lines in, JSON lines out.

    python -m fledgling.train.rl.grader SPEC        SPEC: module:function, or path.py:function

A user's function may print, hang, hold the interpreter or exit; in a process of its own it can be timed and ended. What
it prints goes to stderr, so it cannot write into the answers.

    {"ready": true} or {"error": why}                                  first, once the function is loaded
    {"question": {...}, "answer": text} -> {"reward": value} or {"error": why}
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from fledgling.tasks.task import Question

MAX_MESSAGE_LENGTH = 160  # characters of a value or a reason in a message


def load_reward_function(spec: str) -> Callable[[Question, str], Any]:
    """Returns the function that `module:function` or `path.py:function` names."""
    location, _, name = spec.rpartition(":")
    if location.endswith(".py"):
        module_spec = importlib.util.spec_from_file_location(Path(location).stem, location)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        module_spec.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(location)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return function


def describe_error(error: BaseException) -> str:
    """Returns an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:MAX_MESSAGE_LENGTH]


def grade_answer(function: Callable[[Question, str], Any], question: dict[str, Any], answer: str) -> dict[str, Any]:
    """Returns one answer's reward, or the error that prevents it."""
    question["choices"] = tuple(question["choices"])
    try:
        value = function(Question(**question), answer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return {"error": f"raised {describe_error(error)}"}
    if isinstance(value, Real) and math.isfinite(value):
        return {"reward": float(value)}
    return {"error": f"returned {repr(value)[:MAX_MESSAGE_LENGTH]}, not a finite number"}


def main(spec: str) -> None:
    """Grades answers until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    try:
        function = load_reward_function(spec)
    except BaseException as error:
        reply({"error": f"cannot be loaded: {describe_error(error)}"})
        return
    reply({"ready": True})
    for line in sys.stdin:
        reply(grade_answer(function, **json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1])
