"""Options that several verbs share, so that their names and help are the same everywhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fledgling.config import UserError
from fledgling.runtime.launch import DEFAULT_RESTARTS, launch_ranks
from fledgling.runtime.world import is_launched_rank

Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative=(),
        show_default=False,
        help="table.key=value, as often as needed; the value none restores the default.",
    ),
]
Gpus = Annotated[
    int | None,
    Parameter(
        name="--gpus",
        negative=(),
        show_default=False,
        help="Ranks: one process per GPU, or that many processes that share a CPU's cores; default: this process.",
    ),
]
Restarts = Annotated[
    int,
    Parameter(
        name="--restarts",
        negative=(),
        help="With --gpus: how often all ranks restart from the last checkpoint when one dies, hangs or raises.",
    ),
]
Nodes = Annotated[
    int,
    Parameter(
        name="--nodes",
        negative=(),
        help="With --gpus: number of machines, each with that many ranks, each started with this same command.",
    ),
]
Rendezvous = Annotated[
    str,
    Parameter(
        name="--rendezvous",
        negative=(),
        help="With --nodes: HOST:PORT of one of the machines, to which all of them connect.",
    ),
]
Minutes = Annotated[
    float | None,
    Parameter(name="--minutes", negative=(), show_default=False, help="Wall-clock time of the whole run, in minutes."),
]
Hours = Annotated[float | None, Parameter(name="--hours", negative=(), show_default=False, help="The same in hours.")]
Usd = Annotated[
    float | None,
    Parameter(name="--usd", negative=(), show_default=False, help="The same in US dollars: needs --gpu, and --price."),
]
Json = Annotated[
    bool, Parameter(name="--json", negative=(), show_default=False, help="Print JSON for programs instead.")
]
DataDir = Annotated[
    Path | None, Parameter(name="--data-dir", help="The data root; else FLEDGLING_DATA, else ~/.cache/fledgling.")
]
Repeated = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]
Checkpoint = Annotated[Path, Parameter(help="A checkpoint, a stage or a run directory.")]
ChatCheckpoint = Annotated[
    Path,
    Parameter(
        help="A checkpoint, stage or run directory; of a run, the checkpoint of its last finished stage.",
    ),
]
Host = Annotated[str, Parameter(help="The address to listen on. Any address but loopback needs an API key.")]
Port = Annotated[int, Parameter(help="0 takes a free one and prints it.")]
RunPython = Annotated[
    bool, Parameter(help="Run tool calls that are no calculation as Python, in the sandbox's interpreter.")
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, xpu or mps.")]
ComputeDtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Parameter(help="Dtype of matrix products; auto is bfloat16 where the hardware multiplies it."),
]
Depth = Annotated[int, Parameter(help="Layers; width and heads follow.")]
VocabSize = Annotated[int, Parameter(help="Entries of the tokenizer.")]


DEFAULT_RENDEZVOUS = "127.0.0.1:0"


def require_gpus(restarts: int, nodes: int, rendezvous: str) -> None:
    """Raises UserError for an option that has no effect without --gpus, in a process that no launcher started."""
    given = {
        "--restarts": (restarts, DEFAULT_RESTARTS),
        "--nodes": (nodes, 1),
        "--rendezvous": (rendezvous, DEFAULT_RENDEZVOUS),
    }
    for option, (value, default) in given.items():
        if value != default and not is_launched_rank():
            raise UserError(f"{option} {value} has no effect without --gpus: add --gpus N, or leave {option} out")


def run_on_ranks(gpus: int | None, device: str, *arguments: object, **options: object) -> int | None:
    """Runs `fledgling ARGUMENTS OPTIONS` on `gpus` ranks; returns its exit code, or None if this process is to do it.

    Options are named as on the command line, `as_json` is --json; those that are None, False or empty are left out.
    """
    if gpus is None or is_launched_rank():
        return None
    command = ["-m", "fledgling", *map(str, arguments), "--device", device]
    for name, value in options.items():
        option = f"--{'json' if name == 'as_json' else name.replace('_', '-')}"
        for item in value if isinstance(value, tuple) else [] if value is None or value is False else [value]:
            command += [option] if item is True else [option, str(item)]
    return launch_ranks(gpus, device, command)


def print_to_stderr(text: str) -> None:
    """Prints one line about the work, so that what a command returns stays alone on stdout."""
    print(text, file=sys.stderr, flush=True)


def set_arguments(overrides: tuple[str, ...]) -> list[str]:
    """Returns overrides as arguments of a command line: --set A --set B."""
    return [argument for override in overrides for argument in ("--set", override)]
