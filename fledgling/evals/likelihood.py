"""Log-probabilities of given continuations: the scorer of CORE and of every choice among answers.

The choices of an item share a prefix, so an item is one row that forks: the shared tokens are the trunk, computed once,
and the choices are branches (`attention.TreeMask`). The last token of a choice is only predicted and never fed: where
choices differ in a single letter, the row has no branch at all.

Rows are sorted by length, batched by tokens and distributed over the ranks; log-probabilities are computed only where a
continuation is. Prompts are built in fledgling/tasks/core.py, right answers are known to core_results.py.

B rows, T their longest length, C width, V vocabulary, m scored tokens.
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

BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 16}  # of one forward pass: bounds the memory of activations
MIN_PREFIX_SAVING = 0.1  # of an item's tokens; below it, choices with a short common prefix are separate rows


@dataclass(frozen=True)
class ContinuationRow:
    """A sequence whose tokens[start:] is scored, given the tokens before; tokens (n,) int32, 1 <= start < n."""

    tokens: np.ndarray
    start: int

    def __post_init__(self) -> None:
        """Rejects a row without a scored token, or without a token before the first scored one."""
        assert 1 <= self.start < len(self.tokens), f"start is {self.start} of a row of {len(self.tokens)} tokens"


@dataclass(frozen=True)
class ContinuationScore:
    """The model's score of a row's continuation."""

    logprob: float  # sum over the continuation, in nats
    num_tokens: int  # of the continuation
    predicted: tuple[int, ...]  # the most likely token at each of its positions
    is_greedy: bool  # whether these are the continuation itself
    num_cropped: int  # tokens of the row that one forward pass has no room for: they precede its window

    @property
    def mean_logprob(self) -> float:
        """Nats a token."""
        return self.logprob / self.num_tokens


@dataclass
class ScorerStats:
    """Token counts of this rank, for benchmarks."""

    computed_tokens: int = 0
    choice_tokens: int = 0  # of all rows, each from its beginning


@dataclass(frozen=True)
class PackedRow:
    """One row of a forward pass, of one item or a part of it."""

    tokens: np.ndarray  # (n,)
    branches: np.ndarray | None  # (n,), None for a row that does not fork
    positions: np.ndarray | None  # (n,)
    query_positions: np.ndarray  # (m,) whose next token is scored
    targets: np.ndarray  # (m,) that next token
    segments: tuple[tuple[int, int, int], ...]  # (row, tokens of its continuation, cropped tokens), in order


class Scorer:
    """Scores rows with an engine's model, all ranks together. `stats` counts the tokens of this rank."""

    def __init__(
        self, engine: Engine, world: World | None = None, batch_tokens: int | None = None, share_prefixes: bool = True
    ) -> None:
        self.engine, self.world = engine, world or World(0, 1, 0, engine.device)
        self.batch_tokens = batch_tokens or BATCH_TOKENS.get(engine.device.type, 1 << 14)
        self.share_prefixes = share_prefixes
        self.stats = ScorerStats()
        self.num_batches = 0  # so far, over all calls: the next batch goes to the next rank

    def score(
        self, items: Sequence[Sequence[ContinuationRow]], progress: Callable[[int], None] | None = None
    ) -> list[list[ContinuationScore]]:
        """Returns the score of every row of every item, the same on all ranks, which must all pass the same items.

        Each row longer than the model's context loses its beginning; a continuation longer than that is scored in
        several windows (`split_windows`), so that every one of its tokens counts. progress(tokens) is called with the
        tokens of each finished batch of this rank.
        """
        self.engine.refresh_weights()
        packed: list[PackedRow] = []
        num_rows = 0
        for item in items:
            packed += pack_item(item, num_rows, self.engine.context, self.share_prefixes)
            num_rows += len(item)
        self.stats.choice_tokens += sum(min(len(row.tokens), self.engine.context) for item in items for row in item)
        own_scores: list[tuple[int, ContinuationScore]] = []
        for batch in batch_rows(packed, self.batch_tokens):
            self.num_batches += 1
            if self.num_batches % self.world.size != self.world.rank:
                continue
            own_scores += self._score_batch(batch)
            if progress:
                progress(sum(len(row.tokens) for row in batch))
        windows: dict[int, list[ContinuationScore]] = {}
        for part in self.world.all_gather_object(own_scores):
            for row, score in part:
                windows.setdefault(row, []).append(score)
        in_order = iter(join_windows(windows[index]) for index in range(num_rows))
        return [[next(in_order) for _ in item] for item in items]

    def _score_batch(self, batch: Sequence[PackedRow]) -> list[tuple[int, ContinuationScore]]:
        longest = max(len(row.tokens) for row in batch)
        self.stats.computed_tokens += sum(len(row.tokens) for row in batch)
        tokens = stack_padded([row.tokens for row in batch], longest)  # (B, T)
        hidden = self.engine.forward(tokens, build_tree(batch, longest, self.engine))  # (B, T, C)
        rows = np.repeat(np.arange(len(batch)), [len(row.query_positions) for row in batch])
        positions = np.concatenate([row.query_positions for row in batch])
        targets = np.concatenate([row.targets for row in batch])
        device = hidden.device
        queries = hidden[torch.from_numpy(rows).to(device), torch.from_numpy(positions).to(device)]  # (m, C)
        logprobs, predicted = self._compute_logprobs(queries, torch.from_numpy(targets).to(device))
        return list(split_scores(batch, logprobs, predicted, targets))

    def _compute_logprobs(self, hidden: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns log p(target) in nats, float64, and the most likely tokens, (m,) each, of hidden (m, C)."""
        model = self.engine.model
        logprobs, predicted = [], []
        with torch.inference_mode():
            for part, logits in iterate_logits(hidden, model.compute_logits, model.config.vocab_size):
                target_logits = logits.gather(1, targets[part, None])[:, 0]
                logprobs.append(target_logits - logits.logsumexp(-1))
                predicted.append(logits.argmax(-1))
        return torch.cat(logprobs).cpu().double().numpy(), torch.cat(predicted).cpu().numpy()


def join_windows(windows: Sequence[ContinuationScore]) -> ContinuationScore:
    """Returns the score of a whole continuation from those of its windows, in any order."""
    ordered = sorted(windows, key=lambda window: window.num_cropped)
    return ContinuationScore(
        sum(window.logprob for window in ordered),
        sum(window.num_tokens for window in ordered),
        tuple(token for window in ordered for token in window.predicted),
        all(window.is_greedy for window in ordered),
        ordered[-1].num_cropped,
    )


def split_windows(row: ContinuationRow, context: int) -> Iterator[tuple[int, ContinuationRow]]:
    """Yields (tokens before it, window) for windows of at most `context` tokens; every scored token is in one of them.

    A continuation that fits has one window, with as much before it as there is room for. A longer one has several full
    windows: the first keeps the beginning of the row where the continuation begins within `context` tokens, and each
    further one starts with the last token of the one before. That is lm-evaluation-harness's way (`context_len=1`): the
    first scored token of a further window is predicted from one token alone, so the sum is a lower bound of what a
    sliding window gives.

    Args:
        row: n tokens.
        context: of the model, in tokens, at least 2.
    """
    n, done = len(row.tokens), row.start
    if n - row.start >= context:
        first = 0 if row.start < context else row.start - 1
        yield first, ContinuationRow(row.tokens[first : first + context], row.start - first)
        done = first + context
    while done < n:
        end = min(n, done + context - 1)
        first = max(0, end - context)
        yield first, ContinuationRow(row.tokens[first:end], done - first)
        done = end


def split_scores(
    batch: Sequence[PackedRow], logprobs: np.ndarray, predicted: np.ndarray, targets: np.ndarray
) -> Iterator[tuple[int, ContinuationScore]]:
    """Yields (row, score) from the results of a batch (m,), whose tokens are in the order of the batch's segments."""
    start = 0
    for packed in batch:
        for row, count, cropped in packed.segments:
            part = slice(start, start + count)
            greedy = bool((predicted[part] == targets[part]).all())
            logprob = float(logprobs[part].sum())
            yield row, ContinuationScore(logprob, count, tuple(predicted[part].tolist()), greedy, cropped)
            start += count


def pack_item(
    item: Sequence[ContinuationRow], first_row: int, context: int, share_prefixes: bool = True
) -> list[PackedRow]:
    """Returns the rows of an item, numbered from `first_row`, as few rows of a forward pass.

    Only windows that lose the same number of tokens share a prefix: others begin with different tokens.
    """
    groups: dict[int, list[tuple[int, np.ndarray, int]]] = {}
    for index, row in enumerate(item):
        for cropped, window in split_windows(row, context):
            groups.setdefault(cropped, []).append((first_row + index, window.tokens, window.start))
    packed = []
    for cropped, group in groups.items():
        fed = [tokens[:-1] for _, tokens, _ in group]
        prefix = common_prefix_length(fed)
        saving = prefix * (len(group) - 1)
        if share_prefixes and len(group) > 1 and saving >= MIN_PREFIX_SAVING * sum(map(len, fed)):
            packed.append(fork_rows(group, prefix, cropped))
        else:
            packed += [fork_rows([row], len(row[1]) - 1, cropped) for row in group]
    return packed


def fork_rows(group: Sequence[tuple[int, np.ndarray, int]], prefix_length: int, cropped: int) -> PackedRow:
    """Returns one row of several (row, tokens, start) whose first `prefix_length` tokens are the same."""
    pieces, branches = [group[0][1][:prefix_length]], [np.zeros(prefix_length, np.int64)]
    positions = [np.arange(prefix_length)]
    queries, targets, segments, length = [], [], [], prefix_length
    for number, (row, tokens, start) in enumerate(group, start=1):
        branch = tokens[prefix_length:-1]
        before = np.arange(start - 1, len(tokens) - 1)  # in the row itself
        queries.append(np.where(before < prefix_length, before, before - prefix_length + length))
        targets.append(tokens[start:])
        segments.append((row, len(tokens) - start, cropped))
        pieces.append(branch)
        branches.append(np.full(len(branch), number, np.int64))
        positions.append(np.arange(prefix_length, prefix_length + len(branch)))
        length += len(branch)
    has_branches = length > prefix_length
    return PackedRow(
        np.concatenate(pieces).astype(np.int64),
        np.concatenate(branches) if has_branches else None,
        np.concatenate(positions) if has_branches else None,
        np.concatenate(queries),
        np.concatenate(targets).astype(np.int64),
        tuple(segments),
    )


def batch_rows(packed: Sequence[PackedRow], max_tokens: int) -> Iterator[list[PackedRow]]:
    """Yields rows from longest to shortest, in batches of at most `max_tokens` tokens with padding (or of one row).

    Rows that fork and rows that do not are in separate batches: most attention then needs no mask.
    """
    batch: list[PackedRow] = []
    for row in sorted(packed, key=lambda row: (row.branches is None, -len(row.tokens))):
        is_other_kind = batch and (batch[0].branches is None) != (row.branches is None)
        if batch and (is_other_kind or len(batch[0].tokens) * (len(batch) + 1) > max_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def build_tree(batch: Sequence[PackedRow], length: int, engine: Engine) -> TreeMask | None:
    """Returns the tree mask of a batch, None where no row forks."""
    branches = [row.branches for row in batch if row.branches is not None]
    positions = [row.positions for row in batch if row.positions is not None]
    if not branches:
        return None
    device = engine.device
    return TreeMask(stack_padded(branches, length).to(device), stack_padded(positions, length).to(device))


def stack_padded(rows: Sequence[np.ndarray], length: int) -> Tensor:
    """Returns rows as one tensor (B, T) int64, padded with zeros on the right."""
    stacked = np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        stacked[index, : len(row)] = row
    return torch.from_numpy(stacked)


def common_prefix_length(rows: Sequence[np.ndarray]) -> int:
    """Returns the number of tokens that all rows, (T,) each of its own length, begin with."""
    shortest = min(map(len, rows))
    same = np.ones(shortest, bool)
    for row in rows[1:]:
        same &= row[:shortest] == rows[0][:shortest]
    return shortest if same.all() else int(same.argmin())


def common_suffix_length(rows: Sequence[np.ndarray]) -> int:
    """Returns the number of tokens that all rows, (T,) each of its own length, end with."""
    return common_prefix_length([row[::-1] for row in rows])
