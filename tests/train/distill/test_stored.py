"""Stored predictions: the teacher's at every target, found by a row's content; corruption and change are rejected."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fledgling.config import UserError
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.batch_warmup import BatchWarmup
from fledgling.data.mixture import SourceOrder
from fledgling.data.multi_token_prediction import NEXT_TOKEN_ONLY
from fledgling.data.shards import ShardWriter, TokenShard
from fledgling.data.stream import BatchBuilder, RowSource
from fledgling.train.distill import stored
from fledgling.train.distill.divergence import top_k_logprobs
from fledgling.train.distill.stored import PredictionStore
from tests.invariants.losses import make_teacher

BOS, STEPS = 59, 6


def make_builder(folder: Path, seed: int = 0, rank: int = 0, ranks: int = 1) -> BatchBuilder:
    """Six steps of four rows of 24 tokens, of which two micro-batches of two."""
    draw = np.random.default_rng(seed)
    if not folder.exists():
        with ShardWriter(folder, 60) as writer:
            for length in (40, 300, 7, 200):
                writer.add_document(draw.integers(0, 59, length))
    source = RowSource(TokenShard.open(folder), "crop", 24, 0, BOS)
    return BatchBuilder(
        (source,), SourceOrder.from_weights([1.0]), 2, "all", rank, ranks, (0,), BatchWarmup(4), NEXT_TOKEN_ONLY
    )


def store(
    folder: Path, builder: BatchBuilder, steps: int = STEPS, identity: str = "id", dtype=torch.float32
) -> PredictionStore:
    opened = PredictionStore(folder, identity, dtype, 5, 1.0, 60)
    opened.store_steps(builder, range(steps), lambda: make_teacher(60, 24), lambda text: None)
    return opened


def test_every_target_has_the_teacher_s_most_probable_tokens_on_any_rank(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SHARD_VALUES", 800)
    opened = store(tmp_path / "data", make_builder(tmp_path / "tokens"))
    assert len(opened.shards) > 2
    second_rank = make_builder(tmp_path / "tokens", rank=1, ranks=2)
    again = PredictionStore(tmp_path / "data", "id", torch.float32, 5, 1.0, 60)
    teacher = make_teacher(60, 24)
    for step in range(STEPS):
        for batch in second_rank.build_batches(step):
            found, mask = again.add_predictions(batch), batch.targets != IGNORE_INDEX
            logits = teacher.compute_logits(teacher(batch.tokens, batch.document_ids))
            ids = logits.topk(5).indices
            assert found.teacher_ids[mask].equal(ids[mask])
            expected = top_k_logprobs(logits[mask], ids[mask])
            torch.testing.assert_close(found.teacher_logprobs[mask], expected, rtol=3e-3, atol=3e-3)
            torch.testing.assert_close(found.teacher_logprobs[mask].exp().sum(-1), torch.ones(int(mask.sum())))


def test_interrupted_storing_is_resumed_and_a_longer_stage_adds_only_its_own_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SHARD_VALUES", 800)
    read: list[int] = []
    predict = stored.predict_rows

    def count_rows(teacher, batch: Batch, *others):
        if len(read) == 5:
            raise KeyboardInterrupt
        read.append(len(batch.tokens))
        return predict(teacher, batch, *others)

    builder = make_builder(tmp_path / "tokens")
    whole = store(tmp_path / "whole", builder)
    monkeypatch.setattr(stored, "predict_rows", count_rows)
    with pytest.raises(KeyboardInterrupt):
        store(tmp_path / "data", builder)
    finished = max(PredictionStore(tmp_path / "data", "id", torch.float32, 5, 1.0, 60).finished_steps.values())
    assert 0 < finished < STEPS
    monkeypatch.setattr(stored, "predict_rows", predict)
    opened = store(tmp_path / "data", builder)
    assert len(np.unique(opened._keys)) == len(opened._keys) == len(whole._keys)
    before = len(opened.shards)
    assert len(store(tmp_path / "data", builder, STEPS).shards) == before, "nothing is stored twice"
    assert len(store(tmp_path / "data", builder, STEPS + 4)._keys) <= len(opened._keys) + 16


def test_another_text_teacher_or_dtype_and_a_corrupt_shard_are_rejected(tmp_path):
    opened = store(tmp_path / "data", make_builder(tmp_path / "tokens"))
    other = make_builder(tmp_path / "others", seed=1).build_batches(0)[0]
    with pytest.raises(UserError, match="has no predictions of a row that is read now"):
        opened.add_predictions(other)
    assert not PredictionStore(tmp_path / "data", "another", torch.float32, 5, 1.0, 60).shards
    assert not PredictionStore(tmp_path / "data", "id", torch.bfloat16, 5, 1.0, 60).shards
    file = next((tmp_path / "data").rglob("logprobs.bin"))
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"shard-00000 is corrupt: logprobs.bin does not match its SHA-256"):
        PredictionStore(tmp_path / "data", "id", torch.float32, 5, 1.0, 60)


def test_what_is_stored_already_needs_no_teacher_and_other_steps_of_a_stage_are_stored_too(tmp_path):
    builder = make_builder(tmp_path / "tokens")
    opened, read, lines = store(tmp_path / "data", builder, 0), [], []

    def load():
        read.append(1)
        return make_teacher(60, 24)

    for steps in (range(0, STEPS, 2), range(0, STEPS, 2), range(1, STEPS, 2), range(0, STEPS + 2, 2)):
        opened.store_steps(builder, steps, load, lines.append)
        for step in steps:
            opened.add_predictions(builder.build_batches(step)[0])
    assert ["found again" in line for line in lines] == [False, True, False, False] and len(read) == 3
    assert "for steps 7 to 8" in lines[-1]
