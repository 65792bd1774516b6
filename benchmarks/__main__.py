"""`python -m benchmarks NAME`: the experiments by name. Modules are imported when their experiment runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from benchmarks.harness import LaunchedRanks, experiment, launch_experiment, main
from fledgling.cli.options import Checkpoint, ComputeDtype, Depth, Device, Gpus, Overrides, VocabSize
from fledgling.config import load_recipe


def table_of(module: str, name: str) -> Any:
    """Returns the function `name` of benchmarks.`module`, imported when it is called."""

    def format_result(values: Any) -> str:
        from importlib import import_module

        return getattr(import_module(module), name)(values)

    return format_result


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


@experiment(table_of("benchmarks.busy", "format_busy"))
def busy(
    *,
    kind: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("training", "decoding"),
    mode: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("fixed", "adapting"),
    repeats: int = 5,
    seconds: float = 4.0,
) -> dict:
    """Time training and decoding while another process takes one core, as a share of their idle speed.

    Parameters
    ----------
    kind
        Some of training, decoding.
    mode
        fixed: as many threads as cores; passive: the same, asleep while they wait; adapting: as many as other
        processes leave, as runs and servers do.
    repeats
        Rounds of an idle and a busy turn; the result is the median.
    seconds
        Of a turn.
    """
    from benchmarks.busy import measure_busy

    return measure_busy(kind, mode, repeats, seconds)


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


@experiment(table_of("benchmarks.seeds", "format_seeds"))
def seeds(*runs: Path) -> dict:
    """Show the middle and the range of every final evaluation over finished runs with different seeds.

    Parameters
    ----------
    runs
        Run directories of one recipe.
    """
    from benchmarks.seeds import collect_seeds

    return collect_seeds(list(runs))


@experiment(table_of("benchmarks.rates", "format_rates"))
def rates(
    *,
    out: Path = Path("runs/rates"),
    depths: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    multiples: Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())] = None,
    batch_tokens: Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())] = None,
    roles: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    decays: Annotated[list[float] | None, Parameter(consume_multiple=True, negative=())] = None,
    tokens: int = 200_000,
    width_per_layer: int = 32,
    seconds: float | None = None,
    plot: Path | None = None,
    overrides: Overrides = (),
) -> dict:
    """Compare the rules of learning rates with sweeps of rates at several depths; goes on where it was stopped.

    Parameters
    ----------
    out
        Directory of the runs.
    depths
        Layers; default: 2 4 6.
    multiples
        Learning rates, as multiples of what rules 4 to 7 give; default: 0.25 0.5 1 2 4.
    batch_tokens
        Tokens of a step; default: 1024.
    roles
        Which rates: all, matrix, embedding, head, scalar; default: all.
    decays
        Weight decays, as multiples of the rule's; default: 1.
    tokens
        Training tokens of a run.
    width_per_layer
        The width is that times the depth.
    seconds
        Begin no run after that many; default: make all.
    plot
        Write the chart of the sweeps to this SVG file.
    """
    from benchmarks.rates import make_runs, measure_rates

    grid = (depths or [2, 4, 6], multiples or [0.25, 0.5, 1.0, 2.0, 4.0], batch_tokens or [1024])
    runs = make_runs(*grid, tokens, roles or ["all"], decays or [1.0])
    return measure_rates(out, runs, overrides, width_per_layer, seconds, plot)


@experiment(table_of("benchmarks.budgets", "format_budgets"))
def budgets(
    out: Path = Path("runs/budgets"),
    *,
    minutes: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (3, 6, 12, 30),
    seeds: int = 5,
    overrides: Overrides = (),
) -> dict:
    """Run the quickstart within several budgets, and count how often the 90 % intervals of its forecasts held.

    Finished runs are skipped and an interrupted one goes on: the same command continues.

    Parameters
    ----------
    out
        Directory of the runs.
    minutes
        The budgets.
    seeds
        Runs of each.
    """
    from benchmarks.budgets import run_budgets

    return run_budgets(out, minutes, seeds, overrides)


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


@experiment(table_of("benchmarks.agents", "format_agents"))
def agents(
    *names: str,
    runs: Path = Path("runs/agents"),
    seeds: tuple[int, ...] = (1, 2, 3),
    plot: Path | None = None,
    overrides: Overrides = (),
) -> list[dict]:
    """Train the shipped environments from careless players to winners; goes on where it was interrupted.

    Parameters
    ----------
    names
        Environments; default all.
    runs
        Folder of the run directories.
    seeds
        Seeds, each of which trains every environment; 0: none, only the table of what is there.
    plot
        SVG file of the curves; default none.
    """
    from benchmarks.agents import collect_agents, draw_agents, run_agents
    from fledgling.tasks.environments import ENVIRONMENTS

    run_agents(runs, names or tuple(ENVIRONMENTS), [seed for seed in seeds if seed], overrides)
    values = collect_agents(runs)
    if plot:
        plot.write_text(draw_agents(values), encoding="utf-8")
    return values


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


@experiment(table_of("benchmarks.doors", "format_doors"))
def doors(*, connections: int = 1000, answers: int = 20, rounds: int = 3, threads: int = 1) -> dict:
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
    from benchmarks.doors import measure_doors

    return measure_doors(connections, answers, rounds, threads)


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
    from fledgling.runtime.memory import keep_freed_memory
    from fledgling.runtime.world import World
    from fledgling.tasks.core import read_core_tasks

    chosen = read_core_tasks(resolve_data_root(data_dir), tasks)
    compute_device = World.start(device).device
    keep_freed_memory()
    _, model, tokenizer, _ = load_any_model(checkpoint, compute_device)
    compute_dtype = choose_dtype(compute_device) if dtype == "auto" else DTYPES[dtype]
    return measure_core_speed(Engine(extend_context(model, context), tokenizer, dtype=compute_dtype), chosen, items)


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


@experiment(table_of("benchmarks.optim", "format_optimizer_memory"))
def optim(
    *, gpus: Gpus = 2, depth: Depth = 6, vocab_size: VocabSize = 8192, overrides: Overrides = ()
) -> LaunchedRanks | Any:
    """Measure the memory of a rank in a training step under ZeRO 0 to 3, next to the expected."""
    if launched := launch_experiment(gpus, overrides):
        return launched
    from benchmarks.optim import measure_optimizer_memory
    from fledgling.bench.train import with_model_size

    return measure_optimizer_memory(
        with_model_size(load_recipe("quickstart", overrides), depth, vocab_size, context=16)
    )


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


@experiment(table_of("benchmarks.published", "format_published"))
def published() -> list[dict]:
    """Show the planner's memory, speeds and hours next to published ones, with the error of each."""
    from benchmarks.published import compare_with_published

    return compare_with_published()


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


@experiment(table_of("benchmarks.ideas", "format_ideas"))
def ideas(
    *names: str,
    sizes: str = "4x128,4x256",
    minutes: float = 2,
    seeds: int = 3,
    out: Path = Path("runs/ideas"),
    text: str | None = None,
    clock: Literal["wall", "cpu"] = "wall",
    overrides: Overrides = (),
) -> Any:
    """Race every optional feature against the plain model for the same time; the same command continues.

    Parameters
    ----------
    names
        Ideas of docs/ideas.md, as in `fledgling scaling run --ablate`. Default: all.
    sizes
        Of 4x128 and 4x256, comma-separated.
    minutes
        Training steps of each run.
    seeds
        Runs of each idea and size.
    out
        Directory of the runs, and of ideas.json, which is written after each.
    text
        A source of documents; default: embedded.
    clock
        cpu counts processor time, for a machine that others use too.
    """
    from benchmarks.ideas import SIZES, measure_ideas
    from fledgling.config import UserError
    from fledgling.record import write_json

    chosen = [size.strip() for size in sizes.split(",")]
    if unknown := [size for size in chosen if size not in SIZES]:
        raise UserError(f"sizes: got {unknown[0]!r}, expected some of {', '.join(SIZES)}")
    return measure_ideas(
        *(names, chosen, minutes, seeds, out, text, clock, overrides),
        write=lambda values: write_json(out / "ideas.json", values),
    )


@experiment(table_of("fledgling.bench.rollouts", "format_rollouts"))
def rollouts(run: Path, /, *, rounds: int = 10, overrides: Overrides = ()) -> Any:
    """Time the rollouts of reinforcement learning next to plain generation by the same engine.

    Parameters
    ----------
    run
        A run directory with a finished sft stage, for its recipe and weights.
    rounds
        Rounds of prompts; the figures are medians.
    """
    from fledgling.bench.rollouts import measure_rollouts

    return measure_rollouts(load_recipe(str(run), overrides), run / "sft", rounds)


@experiment(table_of("benchmarks.distill", "format_distillation"))
def distill(
    teacher: Path,
    /,
    *,
    out: Path = Path("runs/distilled"),
    steps: int = 900,
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (1, 2, 3),
    top_k: int | None = None,
    overrides: Overrides = (),
) -> dict:
    """Pretrain a student of half a run's width with the run as its teacher, and alone for the same time.

    Parameters
    ----------
    teacher
        A run directory, such as runs/quickstart.
    out
        The folder of the students' runs, in which an interrupted measurement goes on.
    steps
        Of the student that has a teacher.
    seeds
        Of the students.
    top_k
        Tokens of a position that are stored before the first step, whose time counts; default: a live teacher.
    """
    from benchmarks.distill import measure_distillation

    return measure_distillation(teacher, out, steps, seeds, top_k, overrides)


@experiment(table_of("benchmarks.adapter_skill", "format_adapter_skill"), name="adapter_skill")
def adapter_skill(
    run: Path,
    /,
    *,
    out: Path = Path("runs/adapter_skill"),
    steps: int = 600,
    share: float = 0.5,
    questions: int = 200,
    overrides: Overrides = (),
) -> dict:
    """Teach a run a made-up language with LoRA and by full fine-tuning: exams, memory and time beside the plan.

    Parameters
    ----------
    run
        A run directory with a finished or half-finished sft stage, such as runs/quickstart; it is not changed.
    out
        The folder of both runs, in which an interrupted measurement goes on.
    steps
        Of fine-tuning.
    share
        Of the tokens that are the new language; the rest is the run's own sft mixture.
    questions
        Of each exam.
    """
    from benchmarks.adapter_skill import measure_adapter_skill

    return measure_adapter_skill(run, out, steps, share, questions, overrides)


if __name__ == "__main__":
    sys.exit(main())
