"""Training with rounded matrices: the gradient is that of the rounded weights; what was trained is quantized."""

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig, UserError
from fledgling.data.batch import Batch
from fledgling.kernels.qat import QAT_BITS, fake_quantize, fake_quantize_matrix
from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.loss import next_token_loss
from fledgling.train.stage import Stage
from tests.invariants.losses import batch_of, prepared
from tests.ranks import one_thread

CONFIG = ModelConfig(61, 2, 64, 2, 2, 24, preset="nanochat-2025")
GROUPS = {"int8": 64, "int4": 32}


def make_model(quantization: str | None = None) -> Transformer:
    model = Transformer(CONFIG)
    model.initialize(1)
    prepared("sft", model)
    if quantization:
        fake_quantize(model, quantization)
    return model


def packed_loss(model: Transformer, batch: Batch, bits: int) -> float:
    """The loss of the model once it is quantized, with the products in fp32."""
    tensors = quantize_state_dict(CONFIG, model.state_dict(), bits, GROUPS[f"int{bits}"])
    packed = load_quantized_model(CONFIG, tensors, {"bits": bits}, dtype=torch.float32)
    with torch.no_grad():
        return float(next_token_loss(packed, batch))


@pytest.mark.parametrize("quantization", QAT_BITS)
def test_a_step_multiplies_by_what_is_quantized_and_moves_the_full_precision_weights(quantization):
    batch, bits = batch_of("pretrain", 2, 24, 61, seed=0), QAT_BITS[quantization]
    model = make_model(quantization)
    loss = next_token_loss(model, batch)
    loss.backward()
    rounded = make_model()
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if parameter.ndim == 2 and not name.startswith("embedding"):
                parameter.copy_(fake_quantize_matrix(parameter, bits, GROUPS[quantization]))
    expected = next_token_loss(rounded, batch)
    expected.backward()
    assert loss.item() == expected.item()
    assert all(a.grad.equal(b.grad) for a, b in zip(model.parameters(), rounded.parameters(), strict=True))
    assert packed_loss(model, batch, bits) == pytest.approx(
        loss.item(), rel=2e-3
    )  # what is not quantized is bf16 there
    with torch.no_grad():
        assert float(next_token_loss(model, batch)) == float(next_token_loss(make_model(), batch)), "no evaluation is"


def test_a_width_that_is_no_whole_number_of_groups_is_rejected():
    model = Transformer(ModelConfig(61, 1, 48, 2, 2, 24))
    with pytest.raises(UserError, match=r"q_proj.weight has 48 columns, expected a multiple of 64 for 4 bits"):
        fake_quantize(model, "int4")


def train(quantization: str | None, batch: Batch, steps: int) -> Transformer:
    """A model that learns one batch, rounded in the second half of the steps or never."""
    world, model = World.start("cpu"), make_model()
    optimizer = Optimizer(model, OptimizerConfig(), world)
    stage = Stage("sft", steps, None, next_token_loss, lambda progress: 1.0)  # type: ignore[arg-type]
    for step in range(steps):
        if quantization and step == steps // 2:
            fake_quantize(model, quantization)
        optimizer.set_schedule_multiplier(min(1.0, 3 * (1 - step / steps)))
        loop.train_step(stage, model, optimizer, [batch], world)
    return model


def test_a_model_that_was_trained_rounded_is_better_in_four_bits_than_one_that_was_not():
    with one_thread():
        batch = batch_of("pretrain", 24, 24, 61, seed=3)
        afterwards, trained = (packed_loss(train(way, batch, 60), batch, 4) for way in (None, "int4"))
    assert trained < 0.99 * afterwards, (trained, afterwards)
