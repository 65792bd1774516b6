"""Options that several verbs share, so that they are spelt and explained the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fledgling.runtime.launch import launch_ranks
from fledgling.runtime.world import is_launched_rank

Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative=(),
        show_default=False,
        help="table.key=value, as often as needed; the value none goes back to derived.",
    ),
]
Gpus = Annotated[
    int | None,
    Parameter(
        name="--gpus",
        negative=(),
        show_default=False,
        help="Ranks: one process a GPU, or so many processes that share a CPU's cores; default: this one process.",
    ),
]
Restarts = Annotated[
    int,
    Parameter(
        name="--restarts",
        negative=(),
        help="With --gpus: how often all ranks start again from the last checkpoint when one dies, hangs or raises.",
    ),
]
Nodes = Annotated[
    int,
    Parameter(
        name="--nodes",
        negative=(),
        help="With --gpus: machines that take part, each with so many ranks, each started with this same command.",
    ),
]
Rendezvous = Annotated[
    str,
    Parameter(
        name="--rendezvous",
        negative=(),
        help="With --nodes: HOST:PORT of one of the machines, where all of them meet.",
    ),
]
Json = Annotated[
    bool, Parameter(name="--json", negative=(), show_default=False, help="Print JSON for programs instead.")
]
Checkpoint = Annotated[Path, Parameter(help="A checkpoint, a stage or a run directory.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or mps.")]
ComputeDtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Parameter(help="Dtype of the products; auto is bfloat16 where the hardware multiplies it."),
]
Depth = Annotated[int, Parameter(help="Layers; width and heads follow.")]
VocabSize = Annotated[int, Parameter(help="Entries of the tokenizer.")]


def run_on_ranks(gpus: int | None, device: str, *arguments: object, **options: object) -> int | None:
    """Run `fledgling WORDS OPTIONS` as `gpus` ranks and return its exit code; None where this process is to do it.

    Options are spelt as on the command line, `as_json` as --json; those that are None, False or empty are left out.
    """
    if gpus is None or is_launched_rank():
        return None
    again = ["-m", "fledgling", *map(str, arguments), "--device", device]
    for name, value in options.items():
        option = f"--{'json' if name == 'as_json' else name.replace('_', '-')}"
        for one in value if isinstance(value, tuple) else [] if value is None or value is False else [value]:
            again += [option] if one is True else [option, str(one)]
    return launch_ranks(gpus, device, again)
