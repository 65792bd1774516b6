"""Experiments on what and how well models learn. Each imports its module when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from benchmarks.harness import LaunchedRanks, experiment, launch_experiment, table_of
from fledgling.cli.options import Depth, Gpus, Overrides, VocabSize
from fledgling.config import load_recipe


@experiment(table_of("benchmarks.seeds", "format_seeds"))
def seeds(*runs: Path) -> dict:
    """Show the median and the range of every final evaluation over finished runs with different seeds.

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
    """Compare the rules of learning rates with sweeps of rates at several depths; resumes where it was stopped.

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

    Finished runs are skipped and an interrupted one is resumed: run it again.

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


@experiment(table_of("benchmarks.features", "format_features"))
def features(
    *names: str,
    sizes: str = "4x128,4x256",
    minutes: float = 2,
    seeds: int = 3,
    out: Path = Path("runs/features"),
    text: str | None = None,
    clock: Literal["wall", "cpu"] = "wall",
    overrides: Overrides = (),
) -> Any:
    """Race every optional feature against the plain model for the same time; run it again to resume.

    Parameters
    ----------
    names
        Optional features (docs/features.md), as in `fledgling scaling run --ablate`. Default: all.
    sizes
        Of 4x128 and 4x256, comma-separated.
    minutes
        Training steps of each run.
    seeds
        Runs of each feature and size.
    out
        Directory of the runs, and of features.json, which is written after each.
    text
        A source of documents; default: embedded.
    clock
        cpu counts processor time, for a machine that others use too.
    """
    from benchmarks.features import SIZES, measure_features
    from fledgling.config import UserError
    from fledgling.record import write_json

    chosen = [size.strip() for size in sizes.split(",")]
    if unknown := [size for size in chosen if size not in SIZES]:
        raise UserError(f"sizes: got {unknown[0]!r}, expected some of {', '.join(SIZES)}")
    return measure_features(
        *(names, chosen, minutes, seeds, out, text, clock, overrides),
        write=lambda values: write_json(out / "features.json", values),
    )


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
        A run directory, such as runs/quickstart; its weights after pretraining teach.
    out
        The folder of the students' runs, in which an interrupted measurement is resumed.
    steps
        Of the student that has a teacher.
    seeds
        Of the students.
    top_k
        Tokens of a position that are stored before the first step, whose time counts; default: a live teacher.
    """
    from benchmarks.distill import measure_distillation

    return measure_distillation(teacher, out, steps, seeds, top_k, overrides)


@experiment(table_of("benchmarks.adapter_skill", "format_adapter_skill"), name="adapter-skill")
def adapter_skill(
    run: Path,
    /,
    *,
    out: Path = Path("runs/adapter-skill"),
    steps: int = 600,
    share: float = 0.5,
    questions: int = 200,
    overrides: Overrides = (),
) -> dict:
    """Teach a run a made-up language with LoRA and by full fine-tuning: exams, memory and time next to the plan.

    Parameters
    ----------
    run
        A run directory with a finished or half-finished sft stage, such as runs/quickstart; it is not changed.
    out
        The folder of both runs, in which an interrupted measurement is resumed.
    steps
        Of fine-tuning.
    share
        Of the tokens that are the new language; the rest is the run's own sft mixture.
    questions
        Of each exam.
    """
    from benchmarks.adapter_skill import measure_adapter_skill

    return measure_adapter_skill(run, out, steps, share, questions, overrides)


@experiment(table_of("benchmarks.agents", "format_agents"))
def agents(
    *names: str,
    runs: Path = Path("runs/agents"),
    seeds: tuple[int, ...] = (1, 2, 3),
    plot: Path | None = None,
    overrides: Overrides = (),
) -> list[dict]:
    """Train the shipped environments from careless players to winners; resumes where it was interrupted.

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


@experiment(table_of("benchmarks.cpu_contention", "format_cpu_contention"), name="cpu-contention")
def cpu_contention(
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
    from benchmarks.cpu_contention import measure_cpu_contention

    return measure_cpu_contention(kind, mode, repeats, seconds)


@experiment(table_of("benchmarks.checkouts", "format_checkouts"))
def checkouts(
    before: Path,
    /,
    *,
    kind: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = ("training", "answers"),
    pairs: int = 3,
    blocks: int = 10,
) -> dict:
    """Compare the speed of this checkout with another: training steps and answers, in blocks that take turns.

    Parameters
    ----------
    before
        Directory of the other checkout, such as one that `git worktree add` makes.
    kind
        Some of training, answers.
    pairs
        Pairs of processes; the figures are the median, the lowest and the highest.
    blocks
        Of each process.
    """
    from benchmarks.checkouts import compare_checkouts

    return compare_checkouts(before, kind, pairs, blocks)


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


@experiment(table_of("benchmarks.optim", "format_optimizer_memory"))
def optim(
    *, gpus: Gpus = 2, depth: Depth = 6, vocab_size: VocabSize = 8192, overrides: Overrides = ()
) -> LaunchedRanks | Any:
    """Measure the memory of a rank in a training step under ZeRO 0 to 3, next to the expected."""
    if launched := launch_experiment(gpus, overrides):
        return launched
    from benchmarks.optim import measure_optimizer_memory
    from fledgling.bench.sized_recipe import with_model_size

    return measure_optimizer_memory(
        with_model_size(load_recipe("quickstart", overrides), depth, vocab_size, context=16)
    )
