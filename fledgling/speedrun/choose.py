"""Chooses the run that a budget becomes and forecasts it, from speeds that are given: without torch, for `plan` too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from fledgling.config import Recipe
from fledgling.plan.amount import Budget
from fledgling.plan.budget import RunChoice, TrainingSpeed, choose_run
from fledgling.plan.budgeted_run import BudgetedRun, dump_without_place
from fledgling.plan.forecast import BITS, FIRST_BITS, MEMORY, SECONDS, forecast_run
from fledgling.plan.hardware import DeviceSpec
from fledgling.plan.past_runs import PastRun, load_past_runs
from fledgling.plan.stage_seconds import EVALUATIONS
from fledgling.report.forecasts import is_exam
from fledgling.tasks.exam_names import exam_names
from fledgling.train.source_sizes import count_source_sizes

EMBEDDED_TOKENS = 4_550_000  # of the embedded corpus with 1,024 entries; 17,797 rows of 256


def choose_budgeted_run(
    recipe: Recipe,
    budget: Budget,
    device: DeviceSpec,
    ranks: int,
    speeds: list[TrainingSpeed],
    spent: float = 0.0,
    is_pinned: bool = False,
) -> BudgetedRun:
    """Returns the run that a budget becomes, with its forecast; `plan --minutes` calls it too.

    speeds: measured here, or assumed of the card. spent: seconds of the budget that are spent already.
    """
    runs = load_past_runs()
    exams = {name: len(exam_names(recipe.stage_config(name), recipe.sft.mixture)) for name in recipe.stages}
    choice = choose_run(
        *(recipe, budget, speeds, device, ranks, runs),
        spent=spent,
        is_pinned=is_pinned,
        sizes=count_source_sizes(recipe),
        exams=exams,
        unique_tokens=count_unique_tokens(recipe),
    )
    return make_budgeted_run(recipe, budget, choice, runs, device.name, ranks)


def list_measured_exams(runs: Sequence[PastRun], data: str) -> list[str]:
    """Returns the exams that past runs of this data measured; what else they measured has forecasts of its own."""
    others = (SECONDS, MEMORY, FIRST_BITS, BITS)
    known = [name for run in runs if run.data == data for name in run.measured if is_exam(name) and name not in others]
    return list(dict.fromkeys(known))


def make_budgeted_run(
    recipe: Recipe, budget: Budget, choice: RunChoice, runs: list[PastRun], device: str, ranks: int
) -> BudgetedRun:
    """Returns a choice with its forecast."""
    exams = list_measured_exams(runs, choice.planned.data)
    return BudgetedRun(
        budget,
        dump_without_place(recipe),
        choice.recipe,
        choice.stages,
        EVALUATIONS.index(choice.evaluations),
        choice.law,
        choice.speed,
        asdict(choice.planned),
        tuple(forecast_run(choice.planned, runs, exams)),
        device,
        ranks,
    )


def count_unique_tokens(recipe: Recipe) -> float:
    """Returns the tokens of one pass over the largest source of pretraining, where that is known; else infinity."""
    mixture = recipe.pretrain.mixture
    largest = max(mixture, key=lambda name: mixture[name], default="")
    if largest != "embedded":
        return math.inf
    return EMBEDDED_TOKENS * math.log2(1024) / math.log2(recipe.tokenizer.vocab_size)
