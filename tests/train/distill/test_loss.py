"""Divergences from a teacher equal the formulas on whole tables of probabilities; from the model itself they are 0."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fledgling.config import DistillConfig
from fledgling.data.batch import IGNORE_INDEX
from fledgling.train.distill.divergence import top_k_logprobs
from fledgling.train.distill.loss import distillation_loss, span_divergence
from fledgling.train.loss import StepMetrics, next_token_loss
from tests.invariants.losses import batch_of, make_teacher, prepared
from tests.invariants.test_one_update import CONFIG, Transformer


def student() -> Transformer:
    model = Transformer(CONFIG)
    model.initialize(1)
    return prepared("sft", model)


def divergence_by_hand(model, teacher, batch, temperature: float) -> float:
    """The sum over targets of KL(teacher || model), from tables of all probabilities in float64."""
    total = 0.0
    tables = [m.compute_logits(m(batch.tokens, batch.document_ids)).double() / temperature for m in (teacher, model)]
    p, q = (table.softmax(-1).detach().numpy() for table in tables)
    for row, place in zip(*np.nonzero(batch.targets.numpy() != IGNORE_INDEX), strict=True):
        total += float((p[row, place] * np.log(p[row, place] / q[row, place])).sum())
    return total


def test_the_divergence_of_a_live_teacher_is_that_of_whole_tables():
    model, teacher, batch = student(), make_teacher(60, 24), batch_of("sft", 4, 24, 60, 0)
    metrics = StepMetrics()
    loss = distillation_loss(model, batch, DistillConfig(temperature=2.0), teacher, metrics)
    expected = divergence_by_hand(model, teacher, batch, 2.0)
    assert loss.item() == pytest.approx(4 * expected, rel=1e-4)
    assert float(metrics.sums["divergence"][0]) == pytest.approx(expected, rel=1e-4)
    mixed = distillation_loss(model, batch, DistillConfig(temperature=2.0, weight=0.25), teacher)
    assert float(mixed) == pytest.approx(0.25 * float(loss) + 0.75 * float(next_token_loss(model, batch)), rel=1e-5)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_text_has_the_rest_of_the_weight_in_value_and_gradient(stored, temperature):
    """At a temperature of 1 the text's cross-entropy shares the pass of the divergence."""
    model, teacher, batch = student(), make_teacher(60, 24), batch_of("sft", 4, 24, 60, 0)
    if stored:
        logits = teacher.compute_logits(teacher(batch.tokens, batch.document_ids)).detach() / temperature
        ids = logits.topk(7).indices
        logprobs = top_k_logprobs(logits.flatten(0, 1), ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
        batch = replace(batch, teacher_ids=ids, teacher_logprobs=logprobs)

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    def distilled(weight):
        config = DistillConfig(temperature=temperature, weight=weight)
        return distillation_loss(model, batch, config, None if stored else teacher)

    whole, text, mixed = distilled(1.0), next_token_loss(model, batch), distilled(0.25)
    assert float(mixed) == pytest.approx(0.25 * float(whole) + 0.75 * float(text), rel=1e-5)
    expected = 0.25 * gradients(distilled(1.0)) + 0.75 * gradients(next_token_loss(model, batch))
    assert torch.allclose(gradients(mixed), expected, atol=2e-5, rtol=1e-4)


def test_a_model_that_is_its_teacher_has_nothing_to_learn():
    model, batch = student(), batch_of("sft", 4, 24, 60, 0)
    loss = distillation_loss(model, batch, DistillConfig(), model)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-4)
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-4


def test_the_divergence_of_spans_is_that_of_two_coins():
    p, q = np.array([0.5, 0.9, 1e-4]), np.array([0.2, 0.9, 0.3])
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = span_divergence(torch.tensor(np.log(q)), torch.tensor(np.log(p)), 1.0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9)
    rooted = [np.sqrt(value) for value in (p, q)]
    expected = rooted[0] * np.log(rooted[0] / rooted[1]) + (1 - rooted[0]) * np.log((1 - rooted[0]) / (1 - rooted[1]))
    np.testing.assert_allclose(
        span_divergence(torch.tensor(np.log(q)), torch.tensor(np.log(p)), 2.0).numpy(), expected, atol=1e-9
    )


def test_a_span_s_likelihood_is_the_product_of_its_tokens_and_only_its_end_counts():
    """Two spans of a row: the first of targets 0 and 1, the second of target 2; the others are of none."""
    model, batch = student(), batch_of("pretrain", 1, 24, 60, 0)
    logprobs = model.compute_logits(model(batch.tokens, batch.document_ids)).log_softmax(-1)
    logprobs = logprobs.gather(-1, batch.targets[..., None])[0, :, 0].double()
    spans, teacher = torch.zeros(1, 24, dtype=torch.long), torch.zeros(1, 24, 1)
    spans[0, :3] = torch.tensor([1, 1, 2])
    teacher[0, 1], teacher[0, 2] = -1.5, -0.4
    taught = replace(batch, span_ids=spans, teacher_logprobs=teacher)
    expected = span_divergence(logprobs[0] + logprobs[1], torch.tensor(-1.5).double(), 1.0) + span_divergence(
        logprobs[2], torch.tensor(-0.4).double(), 1.0
    )
    found = distillation_loss(model, taught, DistillConfig(match="text"))
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_every_token_of_a_row_can_be_a_span_of_its_own():
    model, batch = student(), batch_of("pretrain", 1, 24, 60, 0)
    logprobs = model.compute_logits(model(batch.tokens, batch.document_ids)).log_softmax(-1)
    logprobs = logprobs.gather(-1, batch.targets[..., None])[0, :, 0].double()
    taught = replace(batch, span_ids=torch.arange(1, 25)[None], teacher_logprobs=torch.full((1, 24, 1), -0.7))
    expected = span_divergence(logprobs, torch.full((24,), -0.7).double(), 1.0).sum()
    found = distillation_loss(model, taught, DistillConfig(match="text"))
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
