"""Bits per byte: the loss in a unit that does not depend on the vocabulary; and perplexity, which does.

Every token of the text is a target once; special tokens count neither in the loss nor in the bytes. The ranks share the
batches and all get the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.shards import ShardWriter, TokenShard, tokenize_documents
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.evals.measurement import Z95, Measurement
from fledgling.model.logprob import target_logprobs
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer, bos_prefix

MICRO_BATCH_SIZE = 16  # rows of a batch of text


def make_text_batches(
    texts: Iterable[str], tokenizer: Tokenizer, context: int, max_rows: int | None = None
) -> list[Batch]:
    """Returns texts as training reads them, in rows of `context` tokens: the first `max_rows` rows, or all."""
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "text"
        with ShardWriter(shard, tokenizer.vocab_size) as writer:
            tokenize_documents(texts, tokenizer, writer)
        bos = (bos_prefix(tokenizer) or [0])[0]
        rows = RowSource(TokenShard.open(shard), "crop", context, seed=0, bos=bos)
        return read_first_rows(rows, max_rows or len(rows), MICRO_BATCH_SIZE)


def read_first_rows(rows: RowSource, count: int, micro_batch_size: int) -> list[Batch]:
    """Returns the first `count` rows of a source (at most one epoch), always the same, in micro-batches."""
    count = min(len(rows), count)
    return MixtureStream([(rows, 1.0)], count, min(micro_batch_size, count), 1, seed=0, prefetch=False).next()


@dataclass(frozen=True)
class TextBits:
    """Bits, bytes and tokens of each row of a text under a model, (rows,) float64 each."""

    bits: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray

    def first_rows(self, count: int) -> TextBits:
        """Returns the first `count` rows."""
        return TextBits(self.bits[:count], self.bytes[:count], self.tokens[:count])


@torch.no_grad()
def measure_bits(
    model: Transformer, batches: Sequence[Batch], byte_lengths: np.ndarray, world: World | None = None
) -> TextBits:
    """Returns bits, bytes and tokens of each row's targets. byte_lengths: (V,) raw bytes of each token.

    All ranks must call it with the same batches; each computes a part.
    """
    device = model.head.weight.device
    world = world or World(0, 1, 0, device)
    lengths = torch.as_tensor(byte_lengths, device=device)
    own_parts: list[tuple[int, np.ndarray]] = []
    for index in range(world.rank, len(batches), world.size):
        batch = batches[index].to(device)
        size = lengths[batch.targets.clamp(min=0)] * (batch.targets != IGNORE_INDEX)  # (B, T)
        targets = torch.where(size > 0, batch.targets, IGNORE_INDEX)
        hidden = model(batch.tokens, batch.document_ids)
        logprobs = target_logprobs(hidden, model.head.weight, targets, model.config.logit_softcap)
        rows = (-logprobs.double().sum(1) / math.log(2), size.double().sum(1), (size > 0).double().sum(1))
        own_parts.append((index, torch.stack(rows).cpu().numpy()))
    parts = sorted((pair for part in world.all_gather_object(own_parts) for pair in part), key=lambda pair: pair[0])
    columns = np.concatenate([rows for _, rows in parts], axis=1)  # (3, rows)
    assert columns[1].sum() > 0, "no byte to measure on"
    return TextBits(*columns)


def measure_ratio(name: str, numerators: np.ndarray, denominators: np.ndarray) -> Measurement:
    """Returns sum(numerators) / sum(denominators) over n rows, with the 95 % interval of a ratio (delta method)."""
    value, n = float(numerators.sum() / denominators.sum()), len(numerators)
    deviation = float(np.sqrt(np.square(numerators - value * denominators).sum()) / denominators.sum())
    half = Z95 * deviation if n > 1 else 0.0
    return Measurement(name, value, value - half, value + half, n)


def measure_bpb(
    model: Transformer,
    batches: Sequence[Batch],
    byte_lengths: np.ndarray,
    name: str = "bits_per_byte",
    world: World | None = None,
) -> Measurement:
    """Returns -log2 p(text) / bytes(text) over the targets of `batches`, the same on all ranks."""
    text_bits = measure_bits(model, batches, byte_lengths, world)
    return measure_ratio(name, text_bits.bits, text_bits.bytes)


def compute_perplexities(text_bits: TextBits, words: int) -> list[Measurement]:
    """Returns exp(nats a token) and, for a text of `words` words, exp(nats a word) as word-level benchmarks publish it.

    The first depends on the vocabulary. Words are separated by white space, which counts in their nats.
    """
    exponents = [measure_ratio("perplexity_per_token", text_bits.bits, text_bits.tokens)]
    if words:
        scale = float(text_bits.bytes.sum()) / words
        bpb = measure_ratio("perplexity_per_word", text_bits.bits, text_bits.bytes)
        assert bpb.low is not None and bpb.high is not None
        exponents.append(Measurement(bpb.name, scale * bpb.value, scale * bpb.low, scale * bpb.high, bpb.n))
    return [_power_of_two(m) for m in exponents]


def _power_of_two(m: Measurement) -> Measurement:
    assert m.low is not None and m.high is not None
    return Measurement(m.name, 2.0**m.value, 2.0**m.low, 2.0**m.high, m.n)
