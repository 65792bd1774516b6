"""The scale of a float16 loss: gradients are what they would be without, and an overflow moves nothing."""

import math

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.data.batch import Batch
from fledgling.model.transformer import Transformer
from fledgling.optim.loss_scale import GROWTH_INTERVAL, INITIAL_SCALE, make_loss_scale
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.world import World
from fledgling.train.health import Health
from fledgling.train.loop import train_step
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage


def test_the_scale_halves_after_an_overflow_and_doubles_after_many_finite_steps():
    scale = make_loss_scale(torch.float16)
    scale.record_step(False)
    assert scale.lowered and scale.value == INITIAL_SCALE / 2
    for _ in range(GROWTH_INTERVAL):
        scale.record_step(True)
    assert scale.value == INITIAL_SCALE and not scale.lowered
    saved = scale.state_dict()
    resumed = make_loss_scale(torch.float16)
    resumed.value = 1.0
    resumed.load_state_dict(saved)
    assert (resumed.value, resumed.finite_steps) == (INITIAL_SCALE, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_have_no_scale(dtype):
    scale = make_loss_scale(dtype)
    scale.record_step(False)
    assert (scale.value, scale.lowered, scale.state_dict()) == (1.0, False, {})


def take_step(dtype, broken=False, steps=1):
    """Returns model, optimizer, loss and norm after steps in a dtype; broken: the first gradient is infinite."""
    config = ModelConfig(family="fledgling", vocab_size=60, depth=1, width=32, heads=2, kv_heads=2, context=16)
    model, world = Transformer(config, dtype), World(0, 1, 0, torch.device("cpu"))
    model.initialize(0)
    optimizer = Optimizer(model, OptimizerConfig(), world, dtype=dtype)
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, 17), generator=draw)
    hook = model.head.weight.register_hook(lambda grad: grad * math.inf) if broken else None
    stage = Stage("pretrain", 1, None, next_token_loss, lambda progress: 1.0)
    for _ in range(steps):
        loss, norm = train_step(stage, model, optimizer, [Batch(tokens[:, :-1], tokens[:, 1:].clone())], world)
    if hook:
        hook.remove()
    return model, optimizer, loss, norm


def test_a_float16_step_has_the_norm_and_loss_of_fp32():
    _, plain, *expected = take_step(torch.float32, steps=3)
    _, scaled, *found = take_step(torch.float16, steps=3)
    assert scaled.updates == plain.updates == 3 and scaled.loss_scale.value == INITIAL_SCALE
    assert found == pytest.approx(expected, rel=2e-2)


def test_an_overflow_moves_nothing_and_lowers_the_scale():
    before = Transformer(take_step(torch.float16)[0].config)
    before.initialize(0)
    model, optimizer, loss, norm = take_step(torch.float16, broken=True)
    assert math.isfinite(loss) and not math.isfinite(norm)
    assert optimizer.updates == 0 and optimizer.loss_scale.value == INITIAL_SCALE / 2
    assert all(map(torch.equal, before.parameters(), model.parameters()))
    assert not any(torch.count_nonzero(state.read()) for state in optimizer.state.values())


def test_the_scale_is_saved_and_resumed_with_the_optimizer():
    _, optimizer, *_ = take_step(torch.float16, broken=True)
    saved = optimizer.full_state_dict()
    _, again, *_ = take_step(torch.float16)
    again.load_full_state_dict(saved)
    assert again.loss_scale.value == INITIAL_SCALE / 2
    _, other, *_ = take_step(torch.float32)
    other.load_full_state_dict(saved)  # a run is resumed in another dtype
    assert not other.loss_scale.enabled


def test_a_lowered_scale_is_counted_and_ends_no_stage():
    health = Health()
    assert not any(health.record_step(1.0, math.inf, False, rescaled=True) for _ in range(9))
    assert (health.bad, health.metrics()) == (0, {"rescaled": 9})
