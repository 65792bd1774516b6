"""Chooses the run that a budget becomes and forecasts it, from speeds that are given: without torch, for `plan` too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from fledgling.config import Recipe, UserError
from fledgling.corpora.prepare import EMBEDDED
from fledgling.plan import core_speed
from fledgling.plan.amount import Budget
from fledgling.plan.budget import RunChoice, TrainingSpeed, choose_run
from fledgling.plan.budgeted_run import BudgetedRun, dump_without_place
from fledgling.plan.cost import require_utilization
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.forecast import forecast_run
from fledgling.plan.hardware import DeviceSpec
from fledgling.plan.past_runs import FIRST_BITS, PastRun, load_past_runs, of_same_text
from fledgling.plan.plan import CHARACTERS_PER_TOKEN
from fledgling.plan.stage_seconds import (
    EVALUATIONS,
    MEASURING_EAGERLY_SECONDS,
    MEASURING_SECONDS,
    StageContent,
    estimate_core_time,
)
from fledgling.plan.utilization import choose_utilization
from fledgling.record.forecast_names import BITS, MEMORY, SECONDS
from fledgling.report.forecasts import is_exam
from fledgling.runtime.cores import count_cores
from fledgling.speedrun.own_text import count_document_bytes, count_own_text
from fledgling.speedrun.text_digests import digest_texts
from fledgling.tasks.exam_names import exam_names
from fledgling.tasks.skills import WORDINGS
from fledgling.train.planned_teacher import find_teacher
from fledgling.train.source_sizes import count_generated_shares, count_source_sizes

EMBEDDED_TOKENS = 4_550_000  # of the embedded corpus with 1,024 entries; 17,797 rows of 256


def plan_budgeted_run(
    recipe: Recipe, budget: Budget, device: DeviceSpec, ranks: int, mfu: float | None, is_pinned: bool = False
) -> BudgetedRun:
    """Returns the run that a budget becomes on a GPU that is not there, for `fledgling plan --minutes`.

    Its speed is `mfu`, what `fledgling bench train` measured of this device, or what is assumed of it, in this order.
    Measuring it, with which `fledgling speedrun` begins, is counted.

    mfu: fraction of the peak FLOP/s; None: measured or assumed. The other arguments are those of `choose_budgeted_run`.

    Raises:
        UserError: ranks below 1, or a utilization outside (0, 1].
    """
    if ranks < 1:
        raise UserError(f"--gpus {ranks}: expected at least 1")
    require_utilization(mfu)
    if recipe.run.init_from:
        from fledgling.train.init_from import take_given_model  # imports torch, which other plans do without

        recipe, is_pinned = take_given_model(recipe), True
    per_token = training_flops_per_token(recipe.resolve_model())
    rows = recipe.pretrain.micro_batch_size or 1
    tokens, compiled = rows * recipe.resolve_model().context, device.compiles(recipe.run.compile)
    utilization, device = choose_utilization(device, mfu, None, per_token, tokens, compiled)
    flops = device.peak_flops * utilization["mfu"] * ranks
    sources = {"table": "assumed", "given": "--mfu", "measured": "of `fledgling bench train`"}
    speed = TrainingSpeed(flops, per_token, sources[utilization["mfu_source"]])
    if utilization["mfu_source"] == "measured" and device.kind == "cpu":  # of this machine, so its cores are measured
        speed = replace(speed, core_share=core_speed.measure_core_share(), cores=count_cores())
    core = estimate_core_time(device.kind, flops, per_token, speed.core_share, speed.cores)
    measuring = (MEASURING_SECONDS if compiled else MEASURING_EAGERLY_SECONDS) * core.share
    return choose_budgeted_run(recipe, budget, device, ranks, [speed], measuring, is_pinned)


def choose_budgeted_run(
    recipe: Recipe,
    budget: Budget,
    device: DeviceSpec,
    ranks: int,
    speeds: list[TrainingSpeed],
    spent: float = 0.0,
    is_pinned: bool = False,
) -> BudgetedRun:
    """Returns the run that a budget becomes, with its forecast.

    Args:
        recipe: whose depth and steps may change.
        budget: seconds, or money at a price.
        device: the GPU.
        ranks: number of GPUs.
        speeds: measured here, or assumed of the GPU.
        spent: seconds of the budget that are spent already.
        is_pinned: whether the depth stays the recipe's.
    """
    runs = load_past_runs()
    choice = choose_run(
        *(recipe, budget, speeds, device, ranks, runs),
        spent=spent,
        is_pinned=is_pinned,
        sizes=count_source_sizes(recipe),
        contents=describe_contents(recipe),
        unique_tokens=count_unique_tokens(recipe),
        digests=digest_texts(recipe),
        teacher=find_teacher(recipe, Path(recipe.run.out)),
    )
    return make_budgeted_run(recipe, budget, choice, runs, device.name, ranks)


def describe_contents(recipe: Recipe) -> dict[str, StageContent]:
    """Returns what the time of each stage depends on besides its steps."""
    generated, texts = count_generated_shares(recipe), count_own_text(recipe)
    exams = {name: exam_names(recipe.stage_config(name), recipe.sft.mixture) for name in recipe.stages}
    return {name: StageContent(len(exams[name]), generated.get(name, 0.0), texts[name]) for name in recipe.stages}


def list_measured_exams(runs: Sequence[PastRun], data: str) -> list[str]:
    """Returns the exams that past runs of this text measured; what else they measured has forecasts of its own."""
    others = (SECONDS, MEMORY, FIRST_BITS, BITS)
    own = of_same_text(runs, data)
    known = [name for run in own for name in run.measured if is_exam(name) and name not in others]
    return list(dict.fromkeys(known))


def make_budgeted_run(
    recipe: Recipe, budget: Budget, choice: RunChoice, runs: list[PastRun], device: str, ranks: int
) -> BudgetedRun:
    """Returns a choice with its forecast.

    Args:
        recipe: as it was given.
        budget: of the run.
        choice: the recipe with its steps, and what is planned of it.
        runs: past runs, from which the forecast follows.
        device: name of the GPU.
        ranks: number of GPUs.
    """
    planned = replace(choice.planned, wordings=WORDINGS)
    exams = list_measured_exams(runs, planned.data)
    return BudgetedRun(
        budget,
        dump_without_place(recipe),
        choice.recipe,
        choice.stages,
        EVALUATIONS.index(choice.evaluations),
        choice.law,
        choice.speed,
        asdict(planned),
        tuple(forecast_run(planned, runs, exams)),
        device,
        ranks,
    )


def count_unique_tokens(recipe: Recipe) -> float | None:
    """Returns the tokens of one pass over the largest source of pretraining; None where they are not known.

    Text that is present is counted by the bytes of its files, and of a file with columns by all of them; the tokens of
    generated tasks and of text that is absent are not known.
    """
    largest, entries = recipe.pretrain.largest_source, recipe.tokenizer.vocab_size
    if largest == EMBEDDED:
        return EMBEDDED_TOKENS * math.log2(1024) / math.log2(entries)
    token_bytes = CHARACTERS_PER_TOKEN * math.log2(entries) / math.log2(65_536)
    return count_document_bytes(recipe.run, largest) / token_bytes or None
