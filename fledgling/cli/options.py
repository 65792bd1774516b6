"""Options that several verbs share, so that they are spelt and explained the same everywhere."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

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
