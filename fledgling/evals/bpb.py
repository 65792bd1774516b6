"""Bits per byte: the loss in a unit that does not depend on the vocabulary.

Every token of the text is a target once; special tokens count neither in the loss nor in the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from fledgling.data.batch import IGNORE, Batch
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.evals.measurement import Measurement
from fledgling.model.logprob import target_logprobs
from fledgling.model.transformer import Transformer


def first_rows(rows: RowSource, count: int, micro_rows: int) -> list[Batch]:
    """The first `count` rows of a source (at most one epoch), always the same, in batches of `micro_rows`."""
    count = min(len(rows), count)
    return MixtureStream([(rows, 1.0)], count, min(micro_rows, count), 1, seed=0, look_ahead=False).next()


@torch.no_grad()
def bits_per_byte(
    model: Transformer, batches: Iterable[Batch], byte_lengths: np.ndarray, name: str = "bits_per_byte"
) -> Measurement:
    """-log2 p(text) / bytes(text) over the targets of `batches`; byte_lengths (V,) raw bytes a token stands for.

    The 95 % interval is that of a ratio of sums over rows (delta method), n the number of rows.
    """
    device = model.head.weight.device
    lengths = torch.as_tensor(byte_lengths, device=device)
    bits_rows, bytes_rows = [], []
    for batch in batches:
        batch = batch.to(device)
        size = lengths[batch.targets.clamp(min=0)] * (batch.targets != IGNORE)  # (B, T)
        targets = torch.where(size > 0, batch.targets, IGNORE)
        hidden = model(batch.tokens, batch.documents)
        logprobs = target_logprobs(hidden, model.head.weight, targets, model.config.softcap)
        bits_rows.append(-logprobs.double().sum(1) / math.log(2))
        bytes_rows.append(size.double().sum(1))
    bits, size = torch.cat(bits_rows), torch.cat(bytes_rows)
    total = float(size.sum())
    assert total > 0, "no byte to measure on"
    value, n = float(bits.sum()) / total, len(bits)
    half = 1.96 * float((bits - value * size).square().sum().sqrt()) / total if n > 1 else 0.0
    return Measurement(name, value, value - half, value + half, n)
