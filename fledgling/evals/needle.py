"""A needle in a haystack: whether a model finds a number that was stated far before, at several lengths and depths.

A text of the wanted length has the sentence "The secret number is 7." at a depth (0 is its beginning, 1 its end), and
ends with "The secret number is". The answer is the most probable of the ten digits, so chance is .1, and a model that
only completes texts can take the exam.

Source: Kamradt 2023, "Needle In A Haystack"; by likelihood, so that small models are measured too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fledgling.config import UserError
from fledgling.evals.likelihood import ContinuationRow, Scorer
from fledgling.evals.measurement import Measurement, wilson_interval
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.tasks.task import make_rng
from fledgling.text.tokenizer import Tokenizer, bos_prefix

NEEDLE = "\nThe secret number is {}. Remember it.\n"
QUESTION = "\nThe secret number is"
DIGITS = tuple("0123456789")
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Needle:
    """One text: a row for each digit, and which digit was given."""

    length: int
    depth: float
    rows: tuple[ContinuationRow, ...]
    answer: int


def extend_context(model: Transformer, context: int | None, rope: str) -> Transformer:
    """Returns the same weights in a model of another context; see `ModelConfig.with_context`."""
    if not context or context == model.config.context:
        return model
    longer = Transformer(model.config.with_context(context, rope), model.compute_dtype)
    longer.load_state_dict(model.state_dict())
    return longer.to(next(model.parameters()).device).eval()


def choose_lengths(lengths: Sequence[int], context: int) -> list[int]:
    """Returns the lengths of texts in tokens: those that are given, else a quarter, a half and all of the context.

    Raises UserError for one that is longer than the context.
    """
    if too_long := [length for length in lengths if length > context]:
        raise UserError(
            f"--lengths {too_long[0]}: the model reads at most {context} tokens; extend its context by --context"
        )
    return list(lengths) or sorted({max(1, context // 4), max(1, context // 2), context})


def make_needles(
    tokenizer: Tokenizer, texts: Iterable[str], lengths: Sequence[int], depths: Sequence[float], questions: int
) -> list[Needle]:
    """Returns the exam: `questions` texts of each length and depth, a pure function of the arguments.

    Args:
        texts: what haystacks are cut from; repeated where they are too short.
        lengths: tokens of a text, its question included.

    Raises UserError for a length that has no space, or no text.
    """
    question, start = tokenizer.encode(QUESTION), bos_prefix(tokenizer)
    ends = [tokenizer.encode(f" {digit}") for digit in DIGITS]
    needles = [tokenizer.encode(NEEDLE.format(digit)) for digit in DIGITS]
    needed = len(start) + max(map(len, needles)) + len(question) + max(map(len, ends))
    if too_short := [length for length in lengths if length < needed + 1]:
        raise UserError(
            f"--lengths {too_short[0]}: expected at least {needed + 1} tokens for the needle and the question"
        )
    hay: list[int] = []
    for text in texts:
        hay += tokenizer.encode(text + "\n\n")
        if len(hay) > 64 * max(lengths):
            break
    if not hay:
        raise UserError("there is no text to hide a needle in")
    exam = []
    for length in lengths:
        for depth in depths:
            for index in range(questions):
                rng = make_rng("needle", length, depth, index)
                answer = rng.randrange(10)
                space = length - len(start) - len(needles[answer]) - len(question) - max(map(len, ends))
                first = rng.randrange(len(hay))
                straw = (hay[first:] + hay * (space // len(hay) + 1))[:space]
                cut = round(depth * space)
                before = [*start, *straw[:cut], *needles[answer], *straw[cut:], *question]
                rows = [ContinuationRow(np.array(before + end, dtype=np.int32), len(before)) for end in ends]
                exam.append(Needle(length, depth, tuple(rows), answer))
    return exam


def measure_needles(model: Transformer, tokenizer: Tokenizer, exam: Sequence[Needle]) -> list[Measurement]:
    """Returns the share of numbers that are found, for each length, and for each of its depths."""
    scores = Scorer(Engine(model, tokenizer)).score([needle.rows for needle in exam])
    found = [
        int(np.argmax([score.logprob for score in row])) == needle.answer
        for needle, row in zip(exam, scores, strict=True)
    ]
    groups: dict[str, list[bool]] = {}
    for needle, right in zip(exam, found, strict=True):
        groups.setdefault(f"needle_{needle.length}", []).append(right)
    for needle, right in zip(exam, found, strict=True):
        groups.setdefault(f"needle_{needle.length}_at_{round(100 * needle.depth)}", []).append(right)
    return [_make_measurement(name, results) for name, results in groups.items()]


def _make_measurement(name: str, found: Sequence[bool]) -> Measurement:
    right, n = sum(found), len(found)
    return Measurement(name, right / n, *wilson_interval(right, n), n, chance=1 / len(DIGITS))
