"""Which past runs are comparable with a planned one, and the size that each of them counts with.

Runs are compared within one text. Those that began in the same way (the same weights and order of text) are not
independent: `fledgling.plan.past_runs.group_dependent`. Tokens count repeated text by its decreasing use (arXiv
2305.16264).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fledgling.plan.past_runs import FIRST_BITS, PastRun, group_dependent, measure_difference, of_same_text
from fledgling.record.forecast_names import BITS

REPEAT_DECAY = 15.39  # R* of arXiv 2305.16264: passes after which a further one adds little
MAX_FITTED = 64  # past runs of one text and one kind of model that a law is fitted to: its time grows with their square
MIN_LAW_RUNS = 4  # for three coefficients
ENOUGH_OWN_RUNS = 12  # from which on those with another vocabulary or other features are left out


@dataclass(frozen=True)
class Planned:
    """The sizes of a run that its forecast depends on, and the wordings of its exams; see `PastRun`."""

    data: str
    parameters: int
    tokens: int
    passes: float | None
    later_flops: float
    seconds: float
    memory: float
    wordings: str = ""


def effective_tokens(tokens: float, passes: float | None) -> float:
    """Returns the tokens of fresh text that are as useful as `tokens` in `passes` passes (arXiv 2305.16264, eq. 5).

    passes: None: not known, counted as one.
    """
    if passes is None or passes <= 1:
        return tokens
    unique = tokens / passes
    return unique * (1 + REPEAT_DECAY * (1 - math.exp(-(passes - 1) / REPEAT_DECAY)))


def get_size(run: PastRun | Planned, quantity: str = FIRST_BITS) -> tuple[float, float]:
    """Returns the parameters of a run and its effective tokens until `quantity` is measured.

    Those of later stages are their FLOPs over six times the parameters.
    """
    later = run.later_flops / (6 * run.parameters) if quantity == BITS else 0.0
    return run.parameters, effective_tokens(run.tokens, run.passes) + later


def get_extent(run: PastRun | Planned, quantity: str) -> tuple[float, float, float]:
    """Returns parameters, and effective tokens of pretraining and of later stages until `quantity` is measured.

    More of each does no harm; of their sum this is not so, because a later stage may be of other text.
    """
    parameters, first = get_size(run)
    return parameters, first, get_size(run, quantity)[1] - first


def select_runs(runs: Sequence[PastRun], data: str, quantity: str) -> list[PastRun]:
    """Returns the past runs of the same text that measured a quantity, without those whose passes are not known.

    Where fewer than `ENOUGH_OWN_RUNS` had the same vocabulary and features, those of the nearest kind of model too, of
    which there are enough for a law; without such a kind those of all kinds, as long as there are too few own ones.
    Of many of either kind, those of `thin_runs`.
    """
    measured = [run for run in runs if run.passes is not None and run.measured.get(quantity, 0) > 0]
    own, others = split_by_features(prefer_own_features(measured, data, ENOUGH_OWN_RUNS), data)
    kinds: dict[str, list[PastRun]] = {}
    for run in others:
        kinds.setdefault(run.data, []).append(run)
    enough = [kind for kind, some in kinds.items() if len(group_dependent(some)) >= MIN_LAW_RUNS]
    if enough:
        others = kinds[min(enough, key=lambda kind: (measure_difference(kind, data), -len(kinds[kind])))]
    elif len(group_dependent(own)) >= MIN_LAW_RUNS:
        others = []
    return thin_runs(own) + thin_runs(others)


def prefer_own_features(runs: Sequence[PastRun], data: str, least: int) -> list[PastRun]:
    """Returns the runs of a text, its vocabulary and its features; of any, where fewer than `least` are independent."""
    own = [run for run in runs if run.data == data]
    return own if len(group_dependent(own)) >= least else of_same_text(runs, data)


def split_by_features(runs: Sequence[PastRun], data: str) -> tuple[list[PastRun], list[PastRun]]:
    """Returns the runs of that text, vocabulary and features, and all others."""
    return [run for run in runs if run.data == data], [run for run in runs if run.data != data]


def thin_runs(runs: Sequence[PastRun]) -> list[PastRun]:
    """Returns at most MAX_FITTED runs, which still cover the sizes of all: each of them is left out of a fit once.

    Of runs that began in the same way the newest remain, and of these every n-th by its size.
    """
    if len(runs) <= MAX_FITTED:
        return list(runs)
    newest = [group[-1] for group in group_dependent(runs)]
    by_size = sorted(newest, key=get_size)
    count = min(MAX_FITTED, len(by_size))
    chosen = {id(by_size[round(n * (len(by_size) - 1) / max(1, count - 1))]) for n in range(count)}
    return [run for run in newest if id(run) in chosen]


def leave_out_each(groups: Sequence[list[PastRun]]) -> Iterator[tuple[list[PastRun], list[PastRun]]]:
    """Yields each group of runs, and the runs of all other groups."""
    for group in groups:
        yield group, [run for other in groups if other is not group for run in other]


def describe_run_count(runs: Sequence[PastRun], groups: Sequence[list[PastRun]]) -> str:
    """Returns how many past runs there are, and how many of them are independent, as text."""
    return f"{len(runs)} past runs" + (f" ({len(groups)} independent)" if len(groups) < len(runs) else "")
