"""The harness of all experiments: a function that returns plain values becomes a command that writes a result file.

`@experiment(format)` registers a function under its name. `python -m benchmarks NAME [options]` runs it, writes
RESULTS/NAME.json (the command, the date, the environment and the values) and prints the table that `format` makes.
"""

from __future__ import annotations

import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from fledgling.config import UserError, load_recipe
from fledgling.record import write_json
from fledgling.runtime.launch import launch_ranks
from fledgling.runtime.system_environment import collect_environment
from fledgling.runtime.world import is_launched_rank, is_main_process, leave_process_group

RESULTS = Path("benchmarks/results")
HARNESS_OPTIONS = (
    inspect.Parameter(
        "results",
        inspect.Parameter.KEYWORD_ONLY,
        default=RESULTS,
        annotation=Annotated[Path, Parameter(help="Directory of the result file.")],
    ),
    inspect.Parameter(
        "as_json",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, Parameter(name="--json", help="Print the values instead of a table.")],
    ),
)
app = App(name="benchmarks", help="Experiments on single parts of fledgling. Each writes a result file.")


def experiment(format_result: Callable[[Any], str], name: str | None = None) -> Callable[[Callable], Callable]:
    """Returns a decorator that registers a function as a command with the options --results and --json.

    Args:
        format_result: Makes the printed table from what the function returns.
        name: The command's name; None: the function's.
    """

    def register(function: Callable) -> Callable:
        verb = name or function.__name__

        @wraps(function)
        def run(*arguments: Any, results: Path = RESULTS, as_json: bool = False, **options: Any) -> int:
            values = function(*arguments, **options)
            if isinstance(values, LaunchedRanks):
                return values.exit_code
            leave_process_group()
            if not is_main_process():
                return 0
            results.mkdir(parents=True, exist_ok=True)
            facts = {"experiment": verb, "command": command(), "date": time.strftime("%Y-%m-%d")}
            write_json(results / f"{verb}.json", {**facts, "environment": collect_environment(), "result": values})
            print(json.dumps(values, indent=2) if as_json else format_result(values))
            return 0

        signature = inspect.signature(function, eval_str=True)
        options = [*signature.parameters.values(), *HARNESS_OPTIONS]
        run.__signature__ = signature.replace(parameters=options, return_annotation=int)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in options} | {"return": int}
        del run.__wrapped__  # type: ignore[attr-defined]  # the command has more options than the function
        app.command(run, name=verb)
        return function

    return register


class LaunchedRanks:
    """What an experiment on several ranks returns in the process that only launched them."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


def launch_experiment(ranks: int | None, overrides: Sequence[str]) -> LaunchedRanks | None:
    """Runs the same command again as `ranks` ranks; returns None in a process that is a rank, or needs no others."""
    if ranks is None or is_launched_rank():
        return None
    device = load_recipe("quickstart", overrides).run.device
    return LaunchedRanks(launch_ranks(ranks, device, ["-m", "benchmarks", *sys.argv[1:]]))


def command() -> str:
    """Returns the command line of this experiment, for its result file."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one experiment; returns its exit code. A user's mistake is one line on stderr."""
    try:
        return int(app(argv, result_action="return_value") or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def table_of(module: str, name: str) -> Any:
    """Returns the function `name` of benchmarks.`module`, imported when it is called."""

    def format_result(values: Any) -> str:
        from importlib import import_module

        return getattr(import_module(module), name)(values)

    return format_result
