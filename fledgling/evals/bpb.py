"""Bits per byte: the loss in a unit that does not depend on the vocabulary; and perplexity, which does.

Every token of the text is a target once; special tokens count neither in the loss nor in the bytes. The ranks share the
batches and all get the result. Rows of one document are not independent, so intervals are over documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.shards import ShardWriter, TokenShard, tokenize_documents
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.evals.intervals import number_clusters, ratio_interval, sum_by_cluster
from fledgling.evals.measurement import Measurement
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
    """Returns the first `count` rows of a source (at most one epoch), always the same, in micro-batches.

    document_ids are the same for all rows of a document, numbered from 0.
    """
    count = min(len(rows), count)
    batches = MixtureStream([(rows, 1.0)], count, min(micro_batch_size, count), 1, seed=0, prefetch=False).next()
    numbers = np.stack([rows.read_row_documents(index)[:-1] for index in range(count)])  # (rows, T)
    numbers = np.unique(numbers, return_inverse=True)[1].reshape(numbers.shape).astype(np.int32)
    ends = np.cumsum([len(batch.tokens) for batch in batches])[:-1]
    pairs = zip(batches, np.split(numbers, ends), strict=True)
    return [replace(batch, document_ids=torch.from_numpy(part)) for batch, part in pairs]


@dataclass(frozen=True)
class TextBits:
    """Bits, bytes and tokens of a text under a model, each (parts,) float64: a part is what a row has of a document.

    rows, documents: (parts,) the row and the document of each part.
    """

    bits: np.ndarray
    bytes: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray
    documents: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows that were read."""
        return int(self.rows.max()) + 1

    def first_rows(self, count: int) -> TextBits:
        """Returns the first `count` rows."""
        first = self.rows < count
        return TextBits(*(column[first] for column in (self.bits, self.bytes, self.tokens, self.rows, self.documents)))


@torch.no_grad()
def measure_bits(
    model: Transformer, batches: Sequence[Batch], byte_lengths: np.ndarray, world: World | None = None
) -> TextBits:
    """Returns bits, bytes and tokens of the targets. byte_lengths: (V,) raw bytes of each token.

    document_ids of the batches are numbers of documents, as from `read_first_rows`; without them, each row is one. All
    ranks must call it with the same batches; each computes a part.
    """
    device = model.head.weight.device
    world = world or World(0, 1, 0, device)
    lengths = torch.as_tensor(byte_lengths, device=device)
    first_rows = np.cumsum([0, *(len(batch.tokens) for batch in batches)])
    own_parts: list[tuple[int, np.ndarray, np.ndarray]] = []
    for index in range(world.rank, len(batches), world.size):
        batch = batches[index].to(device)
        size = lengths[batch.targets.clamp(min=0)] * (batch.targets != IGNORE_INDEX)  # (B, T)
        targets = torch.where(size > 0, batch.targets, IGNORE_INDEX)
        hidden = model(batch.tokens, batch.document_ids)
        cap = model.config.logit_softcap, model.config.logit_shift
        logprobs = target_logprobs(hidden, model.head.weight, targets, *cap, model.logprob_kernels)
        nats, size = logprobs.cpu().double(), size.cpu().double()  # some devices have no float64
        values = torch.stack((-nats / math.log(2), size, (size > 0).double()), dim=-1)  # (B, T, 3)
        rows = np.repeat(first_rows[index] + np.arange(len(size)), size.shape[1])
        documents = rows if batch.document_ids is None else batch.document_ids.cpu().numpy().ravel()
        keys, owners = np.unique(np.stack([rows, documents]), axis=1, return_inverse=True)  # (2, parts)
        sums, _ = sum_by_cluster(values.flatten(0, 1).numpy(), owners.ravel())  # (parts, 3)
        own_parts.append((index, sums.T, keys))
    parts = sorted((part for own in world.all_gather_object(own_parts) for part in own), key=lambda part: part[0])
    sums = np.concatenate([sums for _, sums, _ in parts], axis=1)
    assert sums[1].sum() > 0, "no byte to measure on"
    return TextBits(*sums, *np.concatenate([keys for *_, keys in parts], axis=1))


def measure_ratio(name: str, text_bits: TextBits, numerators: np.ndarray, denominators: np.ndarray) -> Measurement:
    """Returns sum(numerators) / sum(denominators) over the parts of a text, with its interval over documents."""
    documents = number_clusters(text_bits.documents.tolist())
    tops, bottoms = (np.bincount(documents, column) for column in (numerators, denominators))
    used = bottoms > 0
    bounds = ratio_interval(tops[used], bottoms[used])
    return Measurement(name, *bounds, text_bits.num_rows, clusters=int(used.sum()), cluster_unit="documents")


def measure_bpb(
    model: Transformer,
    batches: Sequence[Batch],
    byte_lengths: np.ndarray,
    name: str = "bits_per_byte",
    world: World | None = None,
) -> Measurement:
    """Returns -log2 p(text) / bytes(text) over the targets of `batches`, the same on all ranks.

    Args:
        batches: of this rank.
        byte_lengths: (V,), bytes of each token.
        name: of the measurement.
        world: the ranks over which the sums are taken; None: this process alone.
    """
    text_bits = measure_bits(model, batches, byte_lengths, world)
    return measure_ratio(name, text_bits, text_bits.bits, text_bits.bytes)


def measure_text(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], world: World | None = None
) -> list[Measurement]:
    """Returns bits per byte of texts, and perplexity by token and by word, the same on all ranks."""
    words = 0

    def count_words() -> Iterator[str]:
        nonlocal words
        for text in texts:
            words += len(text.split())
            yield text

    batches = make_text_batches(count_words(), tokenizer, model.config.context)
    text_bits = measure_bits(model, batches, tokenizer.byte_lengths(), world)
    bits_per_byte = measure_ratio("bits_per_byte", text_bits, text_bits.bits, text_bits.bytes)
    return [bits_per_byte, *compute_perplexities(text_bits, words)]


def compute_perplexities(text_bits: TextBits, words: int) -> list[Measurement]:
    """Returns exp(nats a token) and, for a text of `words` words, exp(nats a word) as word-level benchmarks publish it.

    The first depends on the vocabulary. Words are separated by white space, which counts in their nats.
    """
    exponents = [measure_ratio("perplexity_per_token", text_bits, text_bits.bits, text_bits.tokens)]
    if words:
        scale = float(text_bits.bytes.sum()) / words
        exponents.append(measure_ratio("perplexity_per_word", text_bits, scale * text_bits.bits, text_bits.bytes))
    return [_power_of_two(m) for m in exponents]


def _power_of_two(m: Measurement) -> Measurement:
    low, high = (None if bound is None else 2.0**bound for bound in (m.low, m.high))
    return replace(m, value=2.0**m.value, low=low, high=high)
