"""Experiments on answers: engine, server, page and exports. Each imports its module when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from benchmarks.harness import experiment, table_of
from fledgling.cli.options import Checkpoint


@experiment(table_of("benchmarks.clients", "format_clients"))
def clients(*, python: str = sys.executable, node_modules: Path | None = None) -> dict:
    """Try real clients of OpenAI's, Anthropic's and Ollama's API against a server whose model is random.

    Parameters
    ----------
    python
        Interpreter that has the Python clients; default this one.
    node_modules
        Folder whose node_modules has the JavaScript clients; default: none are tried.
    """
    from benchmarks.clients import measure_clients

    return measure_clients(python, node_modules)


@experiment(table_of("benchmarks.constrained", "format_constrained"))
def constrained(
    *,
    answers: int = 1000,
    batch: int = 16,
    tokens: int = 64,
    rounds: int = 5,
    threads: int = 1,
    suite: Path | None = None,
) -> dict:
    """Count the valid ones among constrained answers of a random model, and time them next to free text.

    Parameters
    ----------
    answers
        Answers in all, over ten schemas.
    batch
        Answers decoded at once.
    tokens
        Tokens of each answer that is timed.
    rounds
        Rounds of free and constrained answers.
    threads
        Threads of the model's matrix products.
    suite
        Tests of one draft of JSON-Schema-Test-Suite (tests/draft2020-12); default: none are tried.
    """
    from benchmarks.constrained import measure_constrained

    return measure_constrained(answers, batch, tokens, rounds, threads, suite)


@experiment(table_of("benchmarks.hostile_clients", "format_hostile_clients"), name="hostile-clients")
def hostile_clients(*, connections: int = 1000, answers: int = 20, rounds: int = 3, threads: int = 1) -> dict:
    """Time another user's answer and /health while hostile clients keep the server busy, and without them.

    Parameters
    ----------
    connections
        Slow or idle connections that are held at once.
    answers
        Answers timed in each turn.
    rounds
        Turns without and with the hostile clients, for each kind of them.
    threads
        Threads of the server's matrix products.
    """
    from benchmarks.hostile_clients import measure_hostile_clients

    return measure_hostile_clients(connections, answers, rounds, threads)


@experiment(table_of("benchmarks.page", "format_page"))
def page(page: Path, /, *, answers: int = 8) -> dict:
    """Time a page of `fledgling export html` in headless Chromium, offline.

    Parameters
    ----------
    page
        The file.
    answers
        Answers of at most 200 tokens, each in a conversation of its own.
    """
    from benchmarks.page import measure_page

    return measure_page(page, answers)


@experiment(table_of("benchmarks.gguf", "format_gguf"))
def gguf(run: Path, /, *, rows: int = 32) -> dict:
    """Compare GGUF files of a run in llama.cpp with the run: perplexity by type, with importance, and greedy tokens.

    Parameters
    ----------
    run
        A run whose model llama.cpp has, such as one of quickstart-gguf.
    rows
        Rows of held-out text.
    """
    from benchmarks.gguf import measure_gguf

    return measure_gguf(run, rows)


@experiment(table_of("benchmarks.sparsity", "format_sparsity"))
def sparsity(checkpoint: Path | None = None, /, *, repeats: int = 20) -> dict:
    """Time ReLU^2's second matrix with its zeros left out, next to the whole product, at one row.

    Parameters
    ----------
    checkpoint
        A run directory: its own rows and matrices, and tokens a second, next to the constructed ones.
    repeats
        Number of rounds; the figures are medians.
    """
    from benchmarks.sparsity import measure_constructed_rows, measure_decoding, measure_real_rows

    found = {"constructed": measure_constructed_rows(repeats), "decoded": measure_decoding()}
    return {**found, "real": measure_real_rows(checkpoint, repeats) if checkpoint else None}


@experiment(table_of("benchmarks.prompt_lookup", "format_prompt_lookup"), name="prompt-lookup")
def prompt_lookup(
    checkpoint: Checkpoint,
    /,
    *,
    drafts: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (3, 7),
    tokens: int = 60,
    repeats: int = 3,
) -> Any:
    """Time one row with drafted tokens and without, on texts that repeat themselves and on questions.

    Parameters
    ----------
    drafts
        Tokens drafted in a step.
    tokens
        Generated for each prompt, at most.
    repeats
        Repetitions of each measurement; the shortest time counts.
    """
    from benchmarks.prompt_lookup import measure_prompt_lookup
    from fledgling.evals.session import load_any_model
    from fledgling.runtime.world import World

    _, model, tokenizer, _ = load_any_model(checkpoint, World.start("auto").device)
    return measure_prompt_lookup(model, tokenizer, drafts, tokens=tokens, repeats=repeats)


@experiment(table_of("benchmarks.watch_cost", "format_watch_cost"), name="watch-cost")
def watch_cost(
    *,
    viewer: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("client", "chromium"),
    repeats: int = 10,
    seconds: float = 15.0,
) -> dict:
    """Time a run's steps while its page is open and while it is not, in turns.

    Parameters
    ----------
    viewer
        client: requests as the page makes them, nothing drawn; chromium: the page in a browser on this machine.
    repeats
        Rounds of a turn without and a turn with the page.
    seconds
        Of a turn.
    """
    from benchmarks.watch_cost import measure_watch_cost

    return measure_watch_cost(viewer, repeats, seconds)
