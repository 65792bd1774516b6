"""Experiments on ranks, memory, products and files. Each imports its module when it runs."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from benchmarks.harness import experiment, table_of
from fledgling.cli.options import Depth, Overrides, VocabSize
from fledgling.config import load_recipe


@experiment(table_of("benchmarks.scaling", "format_rank_scaling"))
def scaling(
    *,
    ranks: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 2),
    depth: Depth = 4,
    vocab_size: VocabSize = 4096,
    context: int = 512,
    batch: int = 8,
    threads: int | None = None,
    steps: int = 12,
    repeats: int = 3,
    overrides: Overrides = (),
) -> Any:
    """Time the same training step on 1, 2, ... ranks: tokens per second, speed-up, share of communication.

    On a CPU the ranks share the rows and the threads (strong scaling); on GPUs each rank has all rows (weak scaling).

    Parameters
    ----------
    ranks
        Numbers of ranks; all are compared with the first.
    context
        Tokens in a row.
    batch
        Rows in a step; on GPUs, of each rank.
    threads
        Threads of all ranks together, on a CPU; default: its cores.
    steps
        Timed steps, after three warm-up steps.
    repeats
        Repetitions; the figures are medians.
    """
    from benchmarks.scaling import measure_rank_scaling

    shape = {"depth": depth, "vocab-size": vocab_size, "context": context, "steps": steps}
    options = [part for name, value in shape.items() for part in (f"--{name}", str(value))]
    options += [part for one in overrides for part in ("--set", one)]
    return measure_rank_scaling(
        ranks, batch, threads, options, repeats, load_recipe("quickstart", overrides).run.device
    )


@experiment(table_of("benchmarks.comm", "format_communication"))
def comm(*, ranks: int = 2, megabytes: float = 16, servers: int | None = None, repeats: int = 7) -> Any:
    """Run ring, tree and parameter server in processes on this machine: bytes and seconds next to the planner's.

    Parameters
    ----------
    ranks
        Processes, 2 to 8.
    megabytes
        Gradients of one rank, in 10^6 bytes.
    servers
        Servers of the sharded parameter server; default: half of the ranks. One and all are always measured too.
    repeats
        Timed runs of each topology; the median counts.
    """
    from benchmarks.comm import measure_communication

    return measure_communication(ranks, megabytes, servers, repeats)


@experiment(table_of("benchmarks.memory", "format_memory"))
def memory(*, compiled: bool = False, ranks: bool = True) -> Any:
    """Measure peak tensor bytes of training steps next to the planner's, over a grid of shapes on the CPU.

    Parameters
    ----------
    compiled
        Shapes with compiled blocks too: estimates, and each takes half a minute to compile.
    ranks
        Shapes on two ranks too, under ZeRO-0 to 3.
    """
    from benchmarks import memory as grid

    cases = grid.EAGER + (grid.RANKS if ranks else ()) + (grid.COMPILED if compiled else ())
    return grid.measure_memory(cases, log=lambda text: print(text, file=sys.stderr))


@experiment(table_of("benchmarks.save", "format_saving"))
def save(
    recipe: str = "quickstart",
    /,
    *,
    stage: Literal["pretrain", "midtrain", "sft"] = "pretrain",
    saves: int = 5,
    overrides: Overrides = (),
) -> Any:
    """Time saving during training: the stall, the writer's bytes per second next to the disk's, shares of wall time.

    Parameters
    ----------
    recipe
        The recipe, with its model, batch and save interval; checkpoints are written to its run directory, then deleted.
    stage
        The stage, with its batch and save interval.
    saves
        Checkpoints written; medians count.
    """
    from benchmarks.save import measure_saving

    return measure_saving(load_recipe(recipe, overrides), stage, saves)


@experiment(table_of("benchmarks.published", "format_published"))
def published() -> list[dict]:
    """Show the planner's memory, speeds and hours next to published ones, with the error of each."""
    from benchmarks.published import compare_with_published

    return compare_with_published()


@experiment(table_of("benchmarks.products", "format_products"))
def products(
    *,
    megabytes: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (24, 256),
    rows: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (8, 32, 64),
    repeats: int = 7,
) -> dict:
    """Time the native products alone: one row against a read of memory, several against a matrix product.

    Parameters
    ----------
    megabytes
        Of the matrices that one row multiplies in turn: few come from a cache.
    rows
        Rows of the products that are compared with a matrix product.
    repeats
        Of each product; the best counts.
    """
    from benchmarks.products import measure_products

    return measure_products(megabytes, rows, repeats)


@experiment(table_of("benchmarks.flash_norm", "format_flash_norm"))
def norms(*, dtype: str = "bfloat16", compiled: bool = False, repeats: int = 7) -> Any:
    """Time FlashNorm next to plain RMSNorm, in training steps and in decoding.

    Parameters
    ----------
    dtype
        bfloat16 or float32.
    compiled
        Compile the blocks that are trained.
    repeats
        Number of rounds; the figures are medians.
    """
    from benchmarks.flash_norm import measure_flash_norm

    return measure_flash_norm(dtype, compiled, repeats)
