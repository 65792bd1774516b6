"""Bits per byte: the loss in a unit that does not depend on the vocabulary; and perplexity, which does.

Every token of the text is a target once; special tokens count neither in the loss nor in the bytes. Ranks share the
batches and all know the result.
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

MICRO_BATCH_SIZE = 16  # of a batch of text


def make_text_batches(
    texts: Iterable[str], tokenizer: Tokenizer, context: int, max_rows: int | None = None
) -> list[Batch]:
    """Texts as training reads them, in rows of `context` tokens: the first `most` rows, or all; in memory."""
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "text"
        with ShardWriter(shard, tokenizer.vocab_size) as writer:
            tokenize_documents(texts, tokenizer, writer)
        bos = (bos_prefix(tokenizer) or [0])[0]
        rows = RowSource(TokenShard.open(shard), "crop", context, seed=0, bos=bos)
        return read_first_rows(rows, max_rows or len(rows), MICRO_BATCH_SIZE)


def read_first_rows(rows: RowSource, count: int, micro_batch_size: int) -> list[Batch]:
    """The first `count` rows of a source (at most one epoch), always the same, in batches of `micro_rows`."""
    count = min(len(rows), count)
    return MixtureStream([(rows, 1.0)], count, min(micro_batch_size, count), 1, seed=0, prefetch=False).next()


@dataclass(frozen=True)
class TextBits:
    """What a model makes of a text, row by row: bits, bytes and tokens (rows,) float64."""

    bits: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray


@torch.no_grad()
def measure_bits(
    model: Transformer, batches: Sequence[Batch], byte_lengths: np.ndarray, world: World | None = None
) -> TextBits:
    """Bits, bytes and tokens of each row's targets; byte_lengths (V,) raw bytes a token stands for.

    All ranks must call it with the same batches; each runs its part.
    """
    device = model.head.weight.device
    world = world or World(0, 1, 0, device)
    lengths = torch.as_tensor(byte_lengths, device=device)
    found: list[tuple[int, np.ndarray]] = []
    for index in range(world.rank, len(batches), world.size):
        batch = batches[index].to(device)
        size = lengths[batch.targets.clamp(min=0)] * (batch.targets != IGNORE_INDEX)  # (B, T)
        targets = torch.where(size > 0, batch.targets, IGNORE_INDEX)
        hidden = model(batch.tokens, batch.document_ids)
        logprobs = target_logprobs(hidden, model.head.weight, targets, model.config.logit_softcap)
        rows = (-logprobs.double().sum(1) / math.log(2), size.double().sum(1), (size > 0).double().sum(1))
        found.append((index, torch.stack(rows).cpu().numpy()))
    parts = sorted((pair for part in world.all_gather_object(found) for pair in part), key=lambda pair: pair[0])
    together = np.concatenate([rows for _, rows in parts], axis=1)
    assert together[1].sum() > 0, "no byte to measure on"
    return TextBits(*together)


def measure_ratio(name: str, numerators: np.ndarray, denominators: np.ndarray) -> Measurement:
    """sum(above) / sum(below) with the 95 % interval of a ratio of sums over rows (delta method); n rows."""
    value, n = float(numerators.sum() / denominators.sum()), len(numerators)
    half = (
        Z95 * float(np.sqrt(np.square(numerators - value * denominators).sum()) / denominators.sum()) if n > 1 else 0.0
    )
    return Measurement(name, value, value - half, value + half, n)


def measure_bpb(
    model: Transformer,
    batches: Sequence[Batch],
    byte_lengths: np.ndarray,
    name: str = "bits_per_byte",
    world: World | None = None,
) -> Measurement:
    """-log2 p(text) / bytes(text) over the targets of `batches`, the same on all ranks."""
    found = measure_bits(model, batches, byte_lengths, world)
    return measure_ratio(name, found.bits, found.bytes)


def compute_perplexities(text_bits: TextBits, words: int) -> list[Measurement]:
    """exp(nats a token), and exp(nats a word) as word-level benchmarks publish it; words: of the whole text.

    The first depends on the vocabulary. A word is what stands between white space; its nats include the space.
    """
    bits = [measure_ratio("perplexity_per_token", text_bits.bits, text_bits.tokens)]
    if words:
        each = measure_ratio("perplexity_per_word", text_bits.bits, text_bits.bytes)
        scale = float(text_bits.bytes.sum()) / words
        bits.append(Measurement(each.name, *(scale * x for x in (each.value, each.low, each.high)), each.n))
    return [Measurement(m.name, 2.0**m.value, 2.0**m.low, 2.0**m.high, m.n) for m in bits]
