"""Multi-token prediction: weights by step, targets within one document, the loss, and no more than that."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.config import ModelConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.multi_token_prediction import MultiTokenTargets, stack_targets
from fledgling.model.transformer import Transformer
from fledgling.train.loss import next_token_loss
from tests.data.test_stream import make_stream


def test_the_furthest_target_goes_first():
    multi_token = MultiTokenTargets(2, 8)
    assert [multi_token.weights_at(step) for step in (0, 2, 3)] == [[1, 0.5, 0.25], [1, 0.5, 0.125], [1, 0.5, 0.0625]]
    assert [multi_token.weights_at(step) for step in (4, 6)] == [[1, 0.5], [1, 0.25]]
    assert [multi_token.weights_at(step) for step in (8, 9, 99)] == [[1]] * 3
    assert MultiTokenTargets(2).weights_at(10**9) == [1, 0.5, 0.25] and MultiTokenTargets(0, 5).weights_at(2) == [1]


def test_a_target_after_the_next_is_of_the_same_document_and_not_ignored():
    targets = torch.tensor([[1, 2, 3, IGNORE_INDEX, 5, 6]])
    batch = MultiTokenTargets(2).add(Batch(targets, targets, torch.tensor([[0, 0, 0, 1, 1, 1]])), 0)
    assert stack_targets(targets, batch.target_weights)[0, 0].tolist() == [1, 2, 3]
    expected = [[1, 0.5, 0.25], [1, 0.5, 0], [1, 0, 0], [0, 0, 0], [1, 0.5, 0], [1, 0, 0]]
    assert batch.target_weights[0].tolist() == expected
    short = MultiTokenTargets(3).add(Batch(targets[:, :2], targets[:, :2]), 0)  # a row shorter than its furthest target
    assert short.target_weights[0].tolist() == [[1, 0.5, 0, 0], [1, 0, 0, 0]]
    plain = Batch(targets, targets)
    assert MultiTokenTargets(2, 4).add(plain, 4) is plain and MultiTokenTargets().add(plain, 0) is plain


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_loss_is_the_weighted_sum_of_the_logits_that_the_model_answers_with(shift):
    model = Transformer(ModelConfig(40, 1, 32, 2, context=12, logit_softcap=5.0, logit_shift=shift))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(40, (2, 13), generator=torch.Generator().manual_seed(2))
    batch = MultiTokenTargets(1).add(Batch(tokens[:, :-1], tokens[:, 1:]), 0)
    logits = model.compute_logits(model(batch.tokens))
    nll = [F.cross_entropy(logits[:, : 12 - k].mT, tokens[:, 1 + k :], reduction="sum") for k in (0, 1)]
    torch.testing.assert_close(next_token_loss(model, batch), nll[0] + nll[1] / 2, rtol=1e-5, atol=1e-4)


def test_a_stream_gives_the_weights_of_its_step_with_the_same_rows_and_after_a_resume():
    plain, multi_token = (
        make_stream(steps=4),
        make_stream(steps=4, multi_token=MultiTokenTargets(1, 2), context_warmup_steps=2),
    )
    shapes = []
    for step in range(4):
        if step == 1:
            state = multi_token.state_dict()
            multi_token = make_stream(steps=4, multi_token=MultiTokenTargets(1, 2), context_warmup_steps=2)
            multi_token.load_state_dict(state)
        for one, other in zip(plain.next(), multi_token.next(), strict=True):
            assert torch.equal(one.targets.flatten(), other.targets.flatten())
            shapes.append(None if other.target_weights is None else tuple(other.target_weights.shape))
            if step == 1:
                assert other.target_weights[..., 1].max() == 0.25
    assert shapes == [(8, 2, 2)] * 2 + [(4, 4, 2)] * 2 + [None] * 4


@pytest.mark.parametrize("prefetch", [False, True])
def test_the_weights_fall_by_the_steps_that_were_made_where_batches_are_skipped(prefetch):
    stream = make_stream(steps=4, multi_token=MultiTokenTargets(1, 4), prefetch=prefetch)
    weights = [stream.next()[0].target_weights[..., 1].max()]
    stream.skip(2)
    weights += [batches[0].target_weights[..., 1].max() for batches in stream]
    assert weights == [0.5, 0.375, 0.25, 0.125]
