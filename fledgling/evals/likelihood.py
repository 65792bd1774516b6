"""How likely a model finds given continuations: the scorer behind CORE and every choice among answers.

The one idea: the choices of an item share a beginning, so an item is one row that forks: the shared tokens are the
trunk, computed once, and the choices are branches side by side (`attention.Tree`). What is fed ends before the last
token, which is only predicted: where choices differ in a single letter, there is no branch left at all.

Rows are sorted by length, batched by tokens and dealt to the ranks; log-probabilities are taken only where a
continuation stands. It neither renders prompts (prompts.py) nor knows what a right answer is (core.py).

B rows, T their longest length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fledgling.infer.engine import Engine
from fledgling.model.attention import TreeMask
from fledgling.model.logprob import iterate_logits
from fledgling.runtime.world import World

BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 16}  # of one forward: bounds what activations take
MIN_PREFIX_SAVING = 0.1  # of an item's tokens; below it, choices that hardly share anything are rows of their own


@dataclass(frozen=True)
class ContinuationRow:
    """A sequence of which tokens[start:] is asked for, given what stands before; tokens (n,) int32, start >= 1."""

    tokens: np.ndarray
    start: int


@dataclass(frozen=True)
class ContinuationScore:
    """What a model says of a row's continuation."""

    logprob: float  # sum over the continuation, in nats
    num_tokens: int  # tokens of the continuation
    predicted: tuple[int, ...]  # the most likely token at each of its places
    is_greedy: bool  # whether these are the continuation itself
    num_cropped: int  # tokens that the model's context had no room for, cut off on the left

    @property
    def mean_logprob(self) -> float:
        """Nats a token; NaN for an empty continuation."""
        return self.logprob / self.num_tokens if self.num_tokens else float("nan")


@dataclass
class ScorerStats:
    """Counts of what was done, for a benchmark: tokens fed, tokens with padding, tokens of all rows one by one."""

    computed_tokens: int = 0
    padded_tokens: int = 0
    choice_tokens: int = 0


@dataclass(frozen=True)
class PackedRow:
    """One row of a forward, of one item or a part of it."""

    tokens: np.ndarray  # (n,)
    branches: np.ndarray | None  # (n,), None for a row that does not fork
    positions: np.ndarray | None  # (n,)
    query_positions: np.ndarray  # (m,) whose next token is asked for
    targets: np.ndarray  # (m,) what that token is
    segments: tuple[tuple[int, int, int], ...]  # (row, tokens of its continuation, tokens cropped), in order of places


class Scorer:
    """Scores rows by an engine's model, all ranks together. `work` counts what that took on this rank."""

    def __init__(
        self, engine: Engine, world: World | None = None, batch_tokens: int | None = None, share_prefixes: bool = True
    ) -> None:
        self.engine, self.world = engine, world or World(0, 1, 0, engine.device)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(engine.device.type, 1 << 14)
        self.share_prefixes = share_prefixes
        self.stats = ScorerStats()
        self.num_batches = 0  # batches so far: the next goes to the next rank, whatever call it belongs to

    def score(
        self, items: Sequence[Sequence[ContinuationRow]], progress: Callable[[int], None] | None = None
    ) -> list[list[ContinuationScore]]:
        """Scores of every row of every item, the same on all ranks, which must all call it with the same items.

        Rows longer than the model's context lose their beginning, each by itself. progress(tokens) is told the tokens
        of each batch of this rank as it is done.
        """
        self.engine.refresh_weights()
        packed, row = [], 0
        for item in items:
            packed += pack_item(item, row, self.engine.context, self.share_prefixes)
            row += len(item)
        self.stats.choice_tokens += sum(min(len(r.tokens), self.engine.context) for item in items for r in item)
        found: list[tuple[int, ContinuationScore]] = []
        for batch in batch_rows(packed, self.batch_tokens):
            self.num_batches += 1
            if self.num_batches % self.world.size != self.world.rank:
                continue
            found += self._score_batch(batch)
            if progress:
                progress(sum(len(one.tokens) for one in batch))
        flat = dict(pair for part in self.world.all_gather_object(found) for pair in part)
        every = iter(flat[index] for index in range(row))
        return [[next(every) for _ in item] for item in items]

    def _score_batch(self, batch: Sequence[PackedRow]) -> list[tuple[int, ContinuationScore]]:
        longest = max(len(one.tokens) for one in batch)
        self.stats.computed_tokens += sum(len(one.tokens) for one in batch)
        self.stats.padded_tokens += longest * len(batch)
        hidden = self.engine.forward(
            stack_padded([one.tokens for one in batch], longest), build_tree(batch, longest, self.engine)
        )
        rows = np.repeat(np.arange(len(batch)), [len(one.query_positions) for one in batch])
        places = np.concatenate([one.query_positions for one in batch])
        targets = np.concatenate([one.targets for one in batch])
        device = hidden.device
        chosen = hidden[torch.from_numpy(rows).to(device), torch.from_numpy(places).to(device)]  # (m, C)
        logprobs, predicted = self._compute_logprobs(chosen, torch.from_numpy(targets).to(device))
        return list(split_scores(batch, logprobs, predicted, targets))

    def _compute_logprobs(self, hidden: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """hidden (m, C), targets (m,) -> log p(target) in nats (m,) float64, and the most likely tokens (m,)."""
        model = self.engine.model
        logprobs, predicted = [], []
        with torch.inference_mode():
            for part, logits in iterate_logits(hidden, model.compute_logits, model.config.vocab_size):
                target_logits = logits.gather(1, targets[part, None])[:, 0]
                logprobs.append(target_logits - logits.logsumexp(-1))
                predicted.append(logits.argmax(-1))
        return torch.cat(logprobs).double().cpu().numpy(), torch.cat(predicted).cpu().numpy()


def split_scores(
    batch: Sequence[PackedRow], logprobs: np.ndarray, predicted: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[int, ContinuationScore]]:
    """Each row's own part of what was computed for a batch, places in the order of the batch's owners."""
    place = 0
    for one in batch:
        for row, count, cropped in one.segments:
            here = slice(place, place + count)
            greedy = bool((predicted[here] == targets[here]).all())
            yield (
                row,
                ContinuationScore(float(logprobs[here].sum()), count, tuple(predicted[here].tolist()), greedy, cropped),
            )
            place += count


def pack_item(
    item: Sequence[ContinuationRow], first_row: int, context: int, share_prefixes: bool = True
) -> list[PackedRow]:
    """The rows of an item, numbered from `first`, as few rows of a forward.

    Only rows cropped alike can share: others begin with different tokens.
    """
    groups: dict[int, list[tuple[int, np.ndarray, int]]] = {}
    for number, row in enumerate(item):
        cropped = max(0, len(row.tokens) - context)
        start = max(1, row.start - cropped)  # a continuation longer than the context loses its own beginning
        groups.setdefault(cropped, []).append((first_row + number, row.tokens[cropped:], start))
    packed = []
    for cropped, group in groups.items():
        fed = [tokens[:-1] for _, tokens, _ in group]
        trunk = common_prefix_length(fed)
        saving = trunk * (len(group) - 1)
        if share_prefixes and len(group) > 1 and saving >= MIN_PREFIX_SAVING * sum(map(len, fed)):
            packed.append(fork_rows(group, trunk, cropped))
        else:
            packed += [fork_rows([one], len(one[1]) - 1, cropped) for one in group]
    return packed


def fork_rows(group: Sequence[tuple[int, np.ndarray, int]], prefix_length: int, cropped: int) -> PackedRow:
    """One row of rows (number, tokens, start) that begin with the same `trunk` tokens."""
    pieces, branches, positions = (
        [group[0][1][:prefix_length]],
        [np.zeros(prefix_length, np.int64)],
        [np.arange(prefix_length)],
    )
    places, targets, owners, length = [], [], [], prefix_length
    for number, (row, tokens, start) in enumerate(group, start=1):
        branch = tokens[prefix_length:-1]
        before = np.arange(start - 1, len(tokens) - 1)  # of the row itself
        places.append(np.where(before < prefix_length, before, before - prefix_length + length))
        targets.append(tokens[start:])
        owners.append((row, len(tokens) - start, cropped))
        pieces.append(branch)
        branches.append(np.full(len(branch), number, np.int64))
        positions.append(np.arange(prefix_length, prefix_length + len(branch)))
        length += len(branch)
    forks = length > prefix_length
    return PackedRow(
        np.concatenate(pieces).astype(np.int64),
        np.concatenate(branches) if forks else None,
        np.concatenate(positions) if forks else None,
        np.concatenate(places),
        np.concatenate(targets).astype(np.int64),
        tuple(owners),
    )


def batch_rows(packed: Sequence[PackedRow], max_tokens: int) -> Iterator[list[PackedRow]]:
    """Rows from the longest to the shortest, in batches of at most `tokens` tokens with padding (or of one row).

    Rows that fork and rows that do not are kept apart: most attention then needs no mask.
    """
    batch: list[PackedRow] = []
    for one in sorted(packed, key=lambda one: (one.branches is None, -len(one.tokens))):
        kind = batch and (batch[0].branches is None) != (one.branches is None)
        if batch and (kind or len(batch[0].tokens) * (len(batch) + 1) > max_tokens):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def build_tree(batch: Sequence[PackedRow], length: int, engine: Engine) -> TreeMask | None:
    """The tree of a batch, None where no row forks."""
    if batch[0].branches is None:
        return None
    branches = stack_padded([one.branches for one in batch], length)
    positions = stack_padded([one.positions for one in batch], length)
    return TreeMask(branches.to(engine.device), positions.to(engine.device))


def stack_padded(rows: Sequence[np.ndarray], length: int) -> Tensor:
    """Rows as one tensor (B, T) int64, padded with zeros on the right."""
    whole = np.zeros((len(rows), length), np.int64)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = row
    return torch.from_numpy(whole)


def common_prefix_length(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows begin with."""
    shortest = min(map(len, rows))
    same = np.ones(shortest, bool)
    for row in rows[1:]:
        same &= row[:shortest] == rows[0][:shortest]
    return shortest if same.all() else int(same.argmin())


def common_suffix_length(rows: Sequence[np.ndarray]) -> int:
    """How many tokens all rows end with."""
    return common_prefix_length([row[::-1] for row in rows])
