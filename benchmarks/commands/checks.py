"""Experiments on text, exams, the sandbox and `fledgling verify`. Each imports its module when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from benchmarks.harness import experiment, table_of
from fledgling.cli.options import ComputeDtype, Device


@experiment(table_of("benchmarks.tokenizer", "format_tokenizer_table"))
def tokenizer(*, data_dir: str | None = None, vocab_size: int = 32768) -> dict:
    """Train on 100 MB of text and encode it, on one thread and on all, next to other libraries.

    Parameters
    ----------
    data_dir
        Directory of the data sets; default: FLEDGLING_DATA.
    vocab_size
        Entries to train.
    """
    from benchmarks.tokenizer import measure_tokenizers

    return measure_tokenizers(data_dir=data_dir, vocab_size=vocab_size)


@experiment(table_of("benchmarks.core", "format_core_speed"))
def core(
    checkpoint: str,
    /,
    *,
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    items: int = 32,
    context: int | None = None,
    data_dir: Path | None = None,
    device: Device = "auto",
    dtype: ComputeDtype = "auto",
) -> dict:
    """Time CORE as it is scored, each choice from its beginning, the published way, and a bare forward.

    Parameters
    ----------
    checkpoint
        A checkpoint, a stage or a run directory, or a Hugging Face directory. The values of its weights do not matter.
    tasks
        Some of the 22 tasks; default: all.
    items
        Items of each task; the last line estimates the time of the whole files.
    context
        Longest row in tokens, where it is more than the model was trained with.
    data_dir
        Directory of the CORE bundle; default: FLEDGLING_DATA.
    """
    from benchmarks.core import extend_context, measure_core_speed
    from fledgling.evals.session import load_any_model
    from fledgling.files import resolve_data_root
    from fledgling.infer.engine import Engine
    from fledgling.runtime.device import DTYPES, choose_dtype
    from fledgling.runtime.device_memory import keep_freed_memory
    from fledgling.runtime.world import World
    from fledgling.tasks.core import read_core_tasks

    chosen = read_core_tasks(resolve_data_root(data_dir), tasks)
    compute_device = World.start(device).device
    keep_freed_memory()
    _, model, tokenizer, _ = load_any_model(checkpoint, compute_device)
    compute_dtype = choose_dtype(compute_device) if dtype == "auto" else DTYPES[dtype]
    return measure_core_speed(Engine(extend_context(model, context), tokenizer, dtype=compute_dtype), chosen, items)


@experiment(table_of("benchmarks.sandbox", "format_sandbox"))
def sandbox(*, data_dir: str | None = None, calls: int = 200) -> dict:
    """Time a call of the interpreter and of the process, and HumanEval's reference solutions and broken variants.

    Parameters
    ----------
    data_dir
        Directory of the data sets; default: FLEDGLING_DATA. Without HumanEval there, only calls are timed.
    calls
        Timed calls, one after another, after one warm-up call.
    """
    from benchmarks.sandbox import measure_sandbox

    return measure_sandbox(data_dir=data_dir, calls=calls)


@experiment(table_of("benchmarks.verify", "format_verify"))
def verify(*, copies: int = 100, honest: int = 50, draws: int = 60, seed: int = 1) -> dict:
    """Tamper with copies of a small run and verify each, and verify honest runs.

    Parameters
    ----------
    copies
        Tampered copies: seven kinds, three ways to cover them.
    honest
        Untouched runs, each with a seed of its own.
    draws
        Steps that are drawn at random in each.
    seed
        Of the runs and of the places.
    """
    from benchmarks.verify import measure_verify

    return measure_verify(copies, honest, seed, draws)
