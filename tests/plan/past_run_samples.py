"""Past runs that a known law drew, for the tests of forecasts and of choices between depths."""

import math
import random
import re

from fledgling.config import load_recipe
from fledgling.plan.comparable_runs import Planned
from fledgling.plan.past_runs import FIRST_BITS, PastRun, describe_data
from fledgling.plan.shifted_loss import ShiftedLoss
from fledgling.record.forecast_names import BITS, MEMORY, SECONDS

DATA = describe_data(load_recipe("quickstart", ["model.preset=nanochat-2025"]))
TRUTH = ShiftedLoss(0.4, 7e8, 1.3e10)


def with_vocabulary(entries: int) -> str:
    """Returns what the text of runs with another vocabulary is called."""
    return re.sub(r"\d+ entries", f"{entries} entries", DATA)


def make_run(draw: random.Random, noise=0.01, parameters=None, tokens=None) -> PastRun:
    """Returns a run of random or given size, with the loss of the law and some noise."""
    parameters = parameters or draw.choice([655_000, 1_900_000, 3_700_000, 11_000_000])
    tokens = tokens or round(10 ** draw.uniform(5.3, 6.7))
    later = 6.0 * parameters * tokens
    loss = TRUTH.loss(parameters, tokens) * math.exp(draw.gauss(0, noise))
    share = 1 / (1 + math.exp(-(math.log(later) - 30 + draw.gauss(0, 0.3))))
    seconds, memory = 60 * tokens / 1e5, 1e8 + 30 * parameters
    return PastRun(
        *("2026-11-27", "quickstart", DATA, "cpu", seconds, parameters, tokens, 1.0, later),
        predicted={SECONDS: seconds, MEMORY: memory},
        measured={
            SECONDS: 1.05 * seconds * math.exp(draw.gauss(0, 0.03)),
            MEMORY: memory * math.exp(draw.gauss(0, 0.02)),
            FIRST_BITS: loss,
            BITS: 1.01 * loss,
            "counting": share,
        },
    )


def plan_of(run: PastRun) -> Planned:
    """Returns the plan of a run."""
    return Planned(
        *(run.data, run.parameters, run.tokens, run.passes, run.later_flops),
        *(run.predicted[SECONDS], run.predicted[MEMORY]),
    )
