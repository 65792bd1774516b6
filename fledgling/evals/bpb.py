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

from fledgling.data.batch import IGNORE, Batch
from fledgling.data.shards import ShardWriter, TokenShard, tokenize_documents
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.evals.measurement import Z95, Measurement
from fledgling.model.logprob import target_logprobs
from fledgling.model.transformer import Transformer
from fledgling.runtime.world import World
from fledgling.text.tokenizer import Tokenizer, begin

MICRO_ROWS = 16  # of a batch of text


def text_batches(texts: Iterable[str], tokenizer: Tokenizer, context: int, most: int | None = None) -> list[Batch]:
    """Texts as training reads them, in rows of `context` tokens: the first `most` rows, or all; in memory."""
    with TemporaryDirectory() as folder:
        shard = Path(folder) / "text"
        with ShardWriter(shard, tokenizer.vocab_size) as writer:
            tokenize_documents(texts, tokenizer, writer)
        bos = (begin(tokenizer) or [0])[0]
        rows = RowSource(TokenShard.open(shard), "crop", context, seed=0, bos=bos)
        return first_rows(rows, most or len(rows), MICRO_ROWS)


def first_rows(rows: RowSource, count: int, micro_rows: int) -> list[Batch]:
    """The first `count` rows of a source (at most one epoch), always the same, in batches of `micro_rows`."""
    count = min(len(rows), count)
    return MixtureStream([(rows, 1.0)], count, min(micro_rows, count), 1, seed=0, look_ahead=False).next()


@dataclass(frozen=True)
class Sums:
    """What a model makes of a text, row by row: bits, bytes and tokens (rows,) float64."""

    bits: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray


@torch.no_grad()
def sums(model: Transformer, batches: Sequence[Batch], byte_lengths: np.ndarray, world: World | None = None) -> Sums:
    """Bits, bytes and tokens of each row's targets; byte_lengths (V,) raw bytes a token stands for.

    All ranks must call it with the same batches; each runs its part.
    """
    device = model.head.weight.device
    world = world or World(0, 1, 0, device)
    lengths = torch.as_tensor(byte_lengths, device=device)
    found: list[tuple[int, np.ndarray]] = []
    for index in range(world.rank, len(batches), world.size):
        batch = batches[index].to(device)
        size = lengths[batch.targets.clamp(min=0)] * (batch.targets != IGNORE)  # (B, T)
        targets = torch.where(size > 0, batch.targets, IGNORE)
        hidden = model(batch.tokens, batch.documents)
        logprobs = target_logprobs(hidden, model.head.weight, targets, model.config.softcap)
        rows = (-logprobs.double().sum(1) / math.log(2), size.double().sum(1), (size > 0).double().sum(1))
        found.append((index, torch.stack(rows).cpu().numpy()))
    parts = sorted((pair for part in world.gather(found) for pair in part), key=lambda pair: pair[0])
    together = np.concatenate([rows for _, rows in parts], axis=1)
    assert together[1].sum() > 0, "no byte to measure on"
    return Sums(*together)


def ratio(name: str, above: np.ndarray, below: np.ndarray) -> Measurement:
    """sum(above) / sum(below) with the 95 % interval of a ratio of sums over rows (delta method); n rows."""
    value, n = float(above.sum() / below.sum()), len(above)
    half = Z95 * float(np.sqrt(np.square(above - value * below).sum()) / below.sum()) if n > 1 else 0.0
    return Measurement(name, value, value - half, value + half, n)


def bits_per_byte(
    model: Transformer,
    batches: Sequence[Batch],
    byte_lengths: np.ndarray,
    name: str = "bits_per_byte",
    world: World | None = None,
) -> Measurement:
    """-log2 p(text) / bytes(text) over the targets of `batches`, the same on all ranks."""
    found = sums(model, batches, byte_lengths, world)
    return ratio(name, found.bits, found.bytes)


def perplexities(found: Sums, words: int) -> list[Measurement]:
    """exp(nats a token), and exp(nats a word) as word-level benchmarks publish it; words: of the whole text.

    The first depends on the vocabulary. A word is what stands between white space; its nats include the space.
    """
    bits = [ratio("perplexity_per_token", found.bits, found.tokens)]
    if words:
        each = ratio("perplexity_per_word", found.bits, found.bytes)
        scale = float(found.bytes.sum()) / words
        bits.append(Measurement(each.name, *(scale * x for x in (each.value, each.low, each.high)), each.n))
    return [Measurement(m.name, 2.0**m.value, 2.0**m.low, 2.0**m.high, m.n) for m in bits]
