"""Bits per byte and perplexity against a hand computation, on one rank and on two."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from fledgling.config import ModelConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.evals.bpb import compute_perplexities, make_text_batches, measure_bits, measure_bpb, measure_ratio
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer
from tests.ranks import choose_port


def test_a_fresh_model_spends_log_v_bits_a_token():
    model = Transformer(ModelConfig(64, 1, 32, 1, 1, 16))
    model.initialize(0)
    targets = torch.randint(1, 64, (4, 16))
    targets[0, :3] = IGNORE_INDEX
    targets[1, 0] = 0  # a special token: no bytes, not counted
    lengths = np.array([0] + [2] * 63)
    measured = measure_bpb(model, [Batch(torch.randint(64, (4, 16)), targets)], lengths)
    assert measured.value == pytest.approx(math.log2(64) / 2, rel=1e-5)
    assert measured.n == 4 and measured.low <= measured.value <= measured.high


def test_perplexity_is_the_exponential_of_the_same_loss():
    """A fresh model's perplexity by token is the vocabulary; by word it is that to the power of tokens a word."""
    model = Transformer(ModelConfig(64, 1, 32, 1, 1, 16))
    model.initialize(0)
    batch = Batch(torch.randint(64, (4, 16)), torch.randint(1, 64, (4, 16)))
    measured = measure_bits(model, [batch], np.array([0] + [2] * 63))
    token, word = compute_perplexities(measured, words=32)  # 64 tokens
    assert (token.name, word.name) == ("perplexity_per_token", "perplexity_per_word")
    assert token.value == pytest.approx(64, rel=1e-5) and word.value == pytest.approx(64**2, rel=1e-5)
    assert token.low <= token.value <= token.high and len(compute_perplexities(measured, words=0)) == 1


def _make_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(*(torch.randint(1, 64, (rows, 16), generator=generator) for _ in range(2))) for rows in (3, 3, 3, 3, 1)
    ]


def _make_random_model() -> Transformer:
    model = Transformer(ModelConfig(64, 1, 32, 1, 1, 16))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def _measure_on_rank(rank, size, port, results):
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = World.start("cpu")
    results[rank] = measure_bpb(_make_random_model(), _make_batches(), np.full(64, 2), world=world)
    world.close()


def test_two_ranks_measure_what_one_does():
    port = choose_port()
    results = mp.get_context("spawn").Manager().dict()
    mp.spawn(_measure_on_rank, args=(2, port, results), nprocs=2)
    alone = measure_bpb(_make_random_model(), _make_batches(), np.full(64, 2))
    assert alone.n == 13 and abs(alone.value - 3) > 0.1, "not the loss of a model that knows nothing"
    for rank in range(2):
        assert results[rank].value == pytest.approx(alone.value, rel=1e-6)
        assert (results[rank].n, results[rank].low) == (13, pytest.approx(alone.low, rel=1e-6))


def test_rows_of_one_document_are_one_cluster():
    """Ten documents over 100 rows: the interval is that of ten documents, however many rows they fill."""
    tokenizer = Tokenizer.train(iter(["abcdefghij klmno " * 9]), 320)
    texts = ["abcde fghij " * 40 if n % 2 else "klmno " * 100 for n in range(10)]
    batches = make_text_batches(texts, tokenizer, context=16)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 1, 32, 1, 1, 16))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    bits = measure_bits(model, batches, tokenizer.byte_lengths())
    measured = measure_ratio("bits_per_byte", bits, bits.bits, bits.bytes)
    assert measured.clusters == 10 and measured.cluster_unit == "documents" and measured.n == bits.num_rows > 50
    assert bits.bytes.sum() == sum(map(len, texts)), "every byte is of one document"
    parts = [bits.documents == number for number in np.unique(bits.documents[bits.bytes > 0])]
    by_document = np.array([bits.bits[part].sum() / bits.bytes[part].sum() for part in parts])
    half = 2.262 * by_document.std(ddof=1) / 10**0.5  # equal in size, two kinds
    assert (measured.high - measured.low) / 2 == pytest.approx(half, rel=0.25)
    few = bits.first_rows(5)
    assert few.num_rows == 5 and few.bits.sum() == bits.bits[bits.rows < 5].sum()
