"""A process that runs one custom reward function: JSON lines in, JSON lines out.

    python -m fledgling.train.rl.grader SPEC        SPEC: module:function, or path.py:function

A user's function may print, hang, hold the interpreter or exit; in a process of its own it can be timed and ended. What
it prints goes to stderr, so it cannot write into the answers.

    {"ready": true} or {"error": why}                                  first, once the function is loaded
    {"question": {...}, "answer": text} -> {"reward": value} or {"error": why}
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any

from fledgling.runtime.json_process import serve_json_lines
from fledgling.runtime.user_code import MAX_MESSAGE_LENGTH, describe_exception, load_object
from fledgling.tasks.task import Question


def load_reward_function(spec: str) -> Callable[[Question, str], Any]:
    """Returns the function that `module:function` or `path.py:function` names."""
    function = load_object(spec)
    if not callable(function):
        raise TypeError(f"{spec.rpartition(':')[2]} is a {type(function).__name__}, not a function")
    return function


def grade_answer(function: Callable[[Question, str], Any], question: dict[str, Any], answer: str) -> dict[str, Any]:
    """Returns one answer's reward, or the error that prevents it."""
    question["choices"] = tuple(question["choices"])
    try:
        value = function(Question(**question), answer)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return {"error": f"raised {describe_exception(error)}"}
    if isinstance(value, Real) and math.isfinite(value):
        return {"reward": float(value)}
    return {"error": f"returned {repr(value)[:MAX_MESSAGE_LENGTH]}, not a finite number"}


def main(spec: str) -> None:
    """Grades answers until stdin ends."""
    serve_json_lines(lambda: load_reward_function(spec), lambda function, request: grade_answer(function, **request))


if __name__ == "__main__":
    main(sys.argv[1])
