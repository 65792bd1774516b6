"""A tiny model trained some steps in any stage and at any stage of ZeRO, on this process's ranks.

Nothing divides: 61 rows, 3 layers, matrices of 18, 36 and 144 rows, six rows a step.
"""

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.data.batch import Batch
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.optim.sharded import unsharded
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.stage import Stage
from tests.invariants.losses import batch_of, loss_of, prepared

CONFIG = ModelConfig(vocab_size=61, depth=3, width=36, heads=2, kv_heads=1, context=24)
Case = tuple[str, int, str, int]  # stage, zero, exact, rows of a micro-batch


def batches_of(stage: str, step: int, rows: int) -> list[Batch]:
    """Six rows cut into micro-batches."""
    return batch_of(stage, 6, 24, 61, seed=step).split(rows)


def fresh(stage: str) -> Transformer:
    """The model before the first step."""
    model = Transformer(CONFIG)
    model.initialize(1)
    return prepared(stage, model)


def trained(stage: str, zero: int, exact: str, rows: int, steps: int, rate: float = 1e-3, eps: float = 1e-6) -> dict:
    """Weights, state, losses and norms after `steps` steps of a stage on this process's ranks."""
    world, model = World.start("cpu"), fresh(stage)
    table = OptimizerConfig(rate, rate, rate, rate, adam_eps=eps, zero_stage=zero, deterministic=exact)
    optimizer = Optimizer(model, table, world)
    one = Stage(stage, steps, None, loss_of(stage), lambda progress: 1.0)
    curve = [
        loop.train_step(one, model, optimizer, batches_of(stage, step, rows)[world.rank :: world.size], world)
        for step in range(steps)
    ]
    with unsharded(model):
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"weights": weights, "state": optimizer.full_state_dict(), "curve": curve}


def results_of(cases: list[Case], steps: int) -> list[dict]:
    """`trained` for every case."""
    return [trained(*case, steps) for case in cases]
