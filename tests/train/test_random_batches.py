"""Random batches: every step the same, with what the loss of each stage reads."""

import pytest
import torch

from fledgling.config import DistillConfig, DPOConfig, RLConfig, StageConfig
from fledgling.train.random_batches import RandomBatches, add_predictions, add_stage_fields


def test_every_step_has_the_same_micro_batches():
    stream = RandomBatches(vocab_size=11, rows=2, context=9, seed=3, count=2)
    first, second = stream.next(), stream.next()
    assert len(first) == 2 and all(
        torch.equal(one.tokens, other.tokens) for one, other in zip(first, second, strict=True)
    )
    batch = first[0]
    assert batch.tokens.shape == batch.targets.shape == (2, 9) and int(batch.tokens.max()) < 11
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.document_ids[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    stream.load_state_dict(stream.state_dict())
    assert torch.equal(stream.next()[0].tokens, batch.tokens)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (StageConfig(), set()),
        (DPOConfig(), {"loss_weights", "rewards", "reference_logprobs"}),
        (DPOConfig(objective="orpo"), {"loss_weights", "rewards"}),
        (RLConfig(kl_weight=0.0), {"loss_weights", "rewards", "advantages", "old_logprobs"}),
        (
            RLConfig(algorithm="ppo", kl_weight=0.1),
            {"loss_weights", "rewards", "advantages", "old_logprobs", "reference_logprobs", "returns", "old_values"},
        ),
    ],
)
def test_a_batch_has_what_the_loss_of_its_stage_reads(table, names):
    (plain,) = RandomBatches(11, 2, 9).next()
    batch = add_stage_fields(plain, table)
    fields = ("loss_weights", "rewards", "advantages", "old_logprobs", "reference_logprobs", "returns", "old_values")
    assert {name for name in fields if getattr(batch, name) is not None} == names
    assert int(batch.document_ids.min()) == (1 if names else 0)  # answers count from 1


def test_a_teachers_predictions_are_of_its_kind():
    (plain,) = RandomBatches(11, 2, 9).next()
    assert add_predictions(plain, DistillConfig(teacher="x")).teacher_logprobs is None  # live
    stored = add_predictions(plain, DistillConfig(teacher="x", top_k=4))
    assert stored.teacher_ids.shape == (2, 9, 4) and stored.teacher_logprobs.shape == (2, 9, 5)
    torch.testing.assert_close(stored.teacher_logprobs.exp().sum(-1), torch.ones(2, 9))
    spans = add_predictions(plain, DistillConfig(teacher="x", match="text"))
    assert spans.span_ids[1].tolist() == list(range(1, 10))
