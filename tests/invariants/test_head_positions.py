"""Where few positions have a target, the head computes these alone, in every stage, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from fledgling.data.batch import IGNORE_INDEX
from fledgling.model import logprob
from tests.invariants.losses import LEARNED, batch_of, loss_of
from tests.invariants.many_ranks import fresh


@pytest.mark.parametrize("stage", LEARNED)
def test_the_head_computes_positions_with_a_target_alone(stage, monkeypatch):
    batch = batch_of(stage, 6, 24, 61, seed=0)
    targets = batch.targets.clone()
    targets[:, ::3] = IGNORE_INDEX
    batch = replace(batch, targets=targets)
    listed = batch.to("cpu")
    assert listed.head_positions is not None and len(listed.head_positions) < 100 < targets.numel()
    computed, part = [], logprob._chunk_logprobs
    monkeypatch.setattr(
        logprob, "_chunk_logprobs", lambda hidden, *rest: (computed.append(len(hidden)), part(hidden, *rest))[1]
    )
    model = fresh(stage)

    def measure(given):
        loss = loss_of(stage)(model, given)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return loss, torch.autograd.grad(loss, parameters, allow_unused=True)

    expected, gradients = measure(batch)
    assert stage == "reward" or set(computed) == {targets.numel()}
    computed.clear()
    loss, found = measure(listed)
    assert stage == "reward" or set(computed) == {len(listed.head_positions)}
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
