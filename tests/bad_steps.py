"""Steps whose loss or gradient is not finite, in a stage that `train.run` builds."""

import math
from dataclasses import replace

from fledgling.train import run


def make_bad(value, kind):
    """Returns a loss that is not finite, or whose gradient alone or whose value alone is not."""
    if kind == "both":
        return value * math.nan
    if kind == "value":
        return value + math.inf
    copy = value.clone()
    copy.register_hook(lambda gradient: gradient * math.nan)
    return copy


def make_steps_bad(patch, positions, kind="both", ranks=(0, 1), stage="pretrain"):
    """Makes the losses at some positions of a stage's data not finite."""
    build = run.STAGE_BUILDERS[stage]

    def patched_builder(name, context):
        built = build(name, context)

        def loss(model, batch):
            value = built.loss(model, batch)
            is_bad = built.batches.state_dict()["step"] - 1 in positions and context.world.rank in ranks
            return make_bad(value, kind) if is_bad else value

        return replace(built, loss=loss)

    patch.setitem(run.STAGE_BUILDERS, stage, patched_builder)
