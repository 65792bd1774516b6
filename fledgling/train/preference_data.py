"""Pairs and judged answers of a file as rollouts: documents whose answers are targets and whose prompts are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fledgling.config import UserError
from fledgling.files import (
    ROW_FILES,
    BadRows,
    ColumnMap,
    list_row_blocks,
    require_file,
    require_names,
    split_columns,
)
from fledgling.files.columns import JUDGED_COLUMNS, PAIR_COLUMNS
from fledgling.text.conversation import render_conversation, render_prompt
from fledgling.text.preferences import (
    EXPECTED_JUDGED,
    EXPECTED_PAIR,
    SAME_ANSWERS,
    NothingToLearnError,
    Pair,
    parse_judged,
    parse_pair,
)
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.rollout import Rollout


def render_pair(tokenizer: Tokenizer, pair: Pair, row_tokens: int, where: str) -> tuple[Rollout, bool]:
    """Returns a pair as one rollout of two documents in at most `row_tokens` tokens, and whether it was cut."""
    prompt_length, tokens = _render_answers(tokenizer, pair, where)
    limit = max(row_tokens // 2, row_tokens - min(map(len, tokens)))
    documents = [ids[:limit] for ids in tokens] if sum(map(len, tokens)) > row_tokens else tokens
    if min(map(len, documents)) <= prompt_length:
        raise NothingToLearnError(
            f"{where}: the prompt and two answers do not fit in {row_tokens} tokens; raise model.context"
        )
    was_cut = sum(map(len, documents)) < sum(map(len, tokens))
    if np.array_equal(documents[0], documents[1]):
        where_equal = f" in the {row_tokens} tokens of a row; raise model.context" if was_cut else ""
        raise NothingToLearnError(f"{where}: {SAME_ANSWERS}{where_equal}")
    return _make_rollout(documents, prompt_length), was_cut


def render_judged(
    tokenizer: Tokenizer, conversation: dict, desirable: bool, row_tokens: int, where: str
) -> tuple[Rollout, bool]:
    """Returns a conversation as a rollout whose reward is 1 if it is desirable, else 0; and whether it was cut.

    Args:
        tokenizer: of the run.
        conversation: with the answer that was judged.
        desirable: the judgement.
        row_tokens: of a row; a longer conversation is cut.
        where: the conversation was read, for error messages.
    """
    prompt_length, (ids,) = _render_answers(tokenizer, [conversation], where)
    if min(len(ids), row_tokens) <= prompt_length:
        raise NothingToLearnError(f"{where}: the prompt leaves no room in {row_tokens} tokens; raise model.context")
    rollout = _make_rollout([ids[:row_tokens]], prompt_length)
    return replace(rollout, reward=float(desirable)), len(ids) > row_tokens


@dataclass
class PreferenceFile:
    """Pairs of a file, or its judged answers, and the rows that are neither.

    source: a path, which may be followed by the names of its columns. unusable: rows of which nothing can be learned,
    such as a pair of the same answers.
    """

    source: str
    judged: bool
    bad: BadRows = field(default_factory=BadRows)
    unusable: BadRows = field(default_factory=BadRows)
    count: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a path that is no file, and for a column that its rows do not have."""
        name, self.columns = split_columns(self.source)
        self.path, self.what = Path(name), "answer" if self.judged else "pair"
        self.expected = f"rows like {EXPECTED_JUDGED if self.judged else EXPECTED_PAIR}"
        require_file(self.path, f"{ROW_FILES} of {self.expected}", "dpo.pairs")
        names = JUDGED_COLUMNS if self.judged else PAIR_COLUMNS
        require_names(f"dpo.pairs: {self.path}", self.columns, names, self.expected)

    def iterate(self) -> Iterator[tuple[list[tuple[dict, bool]], str]]:
        """Yields the conversations of a row, each with whether its answer is desirable, and "FILE:LINE"; counts others.

        A pair is two of them. Raises UserError at the end for a named column that no row has.
        """
        mapped = ColumnMap(self.path, self.columns)
        for block in list_row_blocks(self.path):
            for row, where in block.iterate_rows():
                self.count += 1
                mapped.add(row)
                try:
                    if isinstance(row, UserError):
                        raise row
                    if self.judged:
                        yield parse_judged(row, where, self.columns), where
                    else:
                        yield list(zip(parse_pair(row, where, self.columns), (True, False), strict=True)), where
                except NothingToLearnError as error:
                    self.unusable.add(error)
                except UserError as error:
                    self.bad.add(error)
        mapped.require_all()

    def require_rows(self, left: int) -> None:
        """Raises UserError, naming file and line, unless few rows are malformed and some, `left`, are not."""
        self.bad.require_few(self.count)
        if not left and self.unusable.count:
            lines = f"{self.unusable.count:,} {self.what}s"
            raise UserError(f"dpo.pairs: none of the {lines} can be learned from; {self.unusable.first}")
        if not left:
            raise UserError(f"dpo.pairs: {self.path} holds no {self.what}; expected {self.expected}")


def check_preferences(source: str, judged: bool) -> str:
    """Returns which rows of a file are left out before any is tokenized, "" for none.

    Raises as `load_preferences` does.
    """
    file = PreferenceFile(source, judged)
    file.require_rows(sum(1 for _ in file.iterate()))
    return "; ".join(filter(None, (rows.describe(file.count) for rows in (file.bad, file.unusable))))


def load_preferences(
    source: str, judged: bool, tokenizer: Tokenizer, row_tokens: int, log: Callable[[str], None]
) -> list[Rollout]:
    """Returns the pairs of a file, or its judged answers.

    Left out, and counted, are rows that are malformed, whose prompt leaves no room for an answer, or whose answers are
    the same.

    Args:
        source: a path, which may be followed by the names of its columns.

    Raises:
        UserError: that names file and line: more than one row in a hundred is malformed, or nothing is left.
    """
    file = PreferenceFile(source, judged)
    found: list[tuple[Rollout, bool]] = []
    for answers, where in file.iterate():
        try:
            if judged:
                found += [render_judged(tokenizer, *answer, row_tokens, where) for answer in answers]
            else:
                found.append(render_pair(tokenizer, (answers[0][0], answers[1][0]), row_tokens, where))
        except NothingToLearnError as error:
            file.unusable.add(error)
        except UserError as error:
            file.bad.add(error)
    file.require_rows(len(found))
    for rows in (file.bad, file.unusable):
        if rows.count:
            log(f"dpo: {rows.count:,} of {file.count:,} {file.what}s are left out (first: {rows.first})")
    if cut := sum(was_cut for _, was_cut in found):
        log(f"dpo: {cut:,} of {len(found):,} {file.what}s are longer than a row and were cut at their ends")
    return [rollout for rollout, _ in found]


def exchange_answers(rollouts: Sequence[Rollout], row_tokens: int) -> list[Rollout]:
    """Returns each prompt with the answer of the next rollout, cut to a row: samples of no relation to the prompt."""
    exchanged = []
    for rollout, other in zip(rollouts, [*rollouts[1:], *rollouts[:1]], strict=True):
        prompt, answer = rollout.tokens[~rollout.sampled], other.tokens[other.sampled]
        documents = [np.concatenate([prompt, answer])[:row_tokens]]
        exchanged.append(replace(_make_rollout(documents, len(prompt)), loss_weight=1.0))
    return exchanged


def _render_answers(tokenizer: Tokenizer, conversations: Sequence[dict], where: str) -> tuple[int, list[np.ndarray]]:
    """Returns the tokens of the prompt that conversations share, and the tokens of each."""
    try:
        prompt_length = len(render_prompt(tokenizer, {"messages": conversations[0]["messages"][:-1]}))
        return prompt_length, [render_conversation(tokenizer, each).tokens for each in conversations]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _make_rollout(documents: Sequence[np.ndarray], prompt_length: int) -> Rollout:
    ids = np.concatenate(documents).astype(np.int64)
    is_target = np.concatenate([np.arange(len(document)) >= prompt_length for document in documents])
    ends = np.cumsum([len(document) for document in documents]).tolist()
    return Rollout(ids, is_target, np.zeros(len(ids), np.float32), starts=(0, *ends[:-1]))
