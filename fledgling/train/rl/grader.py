"""A process that runs one reward function of the user's: JSON lines in, JSON lines out.

    python -m fledgling.train.rl.grader SPEC        SPEC: module:function, or path.py:function

The one idea: code of the user's may print, hang, hold the interpreter or leave it; in a process of its own it can be
timed and ended. What it prints goes to stderr; it cannot write into the answers.

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

MAX_MESSAGE_LENGTH = 160  # characters of a value or a reason that are told


def load_reward_function(spec: str) -> Callable[[Question, str], Any]:
    """The function that `module:function` or `path.py:function` names."""
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        found = importlib.util.spec_from_file_location(Path(place).stem, place)
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module
        found.loader.exec_module(module)
    else:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module(place)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is a {type(function).__name__}, not a function")
    return function


def describe_error(problem: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(problem).__name__}: {problem}".split())[:MAX_MESSAGE_LENGTH]


def grade_answer(function: Callable[[Question, str], Any], question: dict[str, Any], answer: str) -> dict[str, Any]:
    """One answer's reward, or why there is none."""
    question["choices"] = tuple(question["choices"])
    try:
        value = function(Question(**question), answer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:
        return {"error": f"raised {describe_error(problem)}"}
    if isinstance(value, Real) and math.isfinite(value):
        return {"reward": float(value)}
    return {"error": f"returned {repr(value)[:MAX_MESSAGE_LENGTH]}, not a finite number"}


def main(spec: str) -> None:
    """Answer until stdin ends."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(value: dict[str, Any]) -> None:
        told.write(json.dumps(value) + "\n")
        told.flush()

    try:
        function = load_reward_function(spec)
    except BaseException as problem:
        tell({"error": f"cannot be loaded: {describe_error(problem)}"})
        return
    tell({"ready": True})
    for line in sys.stdin:
        tell(grade_answer(function, **json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1])
