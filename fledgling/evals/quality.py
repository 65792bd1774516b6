"""One measurement of quality for two versions of a model: bits per byte and the accuracy in each task.

`fledgling quantize` measures the checkpoint and its quantized copy on the same text and the same questions.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fledgling.corpora.document import split_held_out
from fledgling.corpora.embedded import harvest_embedded
from fledgling.corpora.readers import read_documents
from fledgling.evals.bpb import make_text_batches, measure_bits, measure_ratio
from fledgling.evals.chat import answer_exams, build_exams, measure_exam
from fledgling.evals.intervals import number_clusters, ratio_interval, sum_by_cluster
from fledgling.infer.engine import Engine
from fledgling.tasks import SKILLS

if TYPE_CHECKING:
    from fledgling.data.batch import Batch
    from fledgling.evals.chat import Exam
    from fledgling.evals.measurement import Measurement
    from fledgling.model.transformer import Transformer
    from fledgling.text.tokenizer import Tokenizer

MAX_TEXT_ROWS = 128  # of the context's length


@dataclass(frozen=True)
class Quality:
    """A measurement, and what it is a ratio of: bits and bytes of each document (C,), or scores and questions.

    Scores and questions are summed over each wording (C,).
    """

    measurement: Measurement
    numerators: np.ndarray
    denominators: np.ndarray


def measure_change(before: Quality, after: Quality) -> tuple[float, float | None, float | None]:
    """Returns after minus before, with its 95 % interval over the clusters, of which both have the same."""
    return ratio_interval(after.numerators - before.numerators, before.denominators)


@dataclass(frozen=True)
class QualityCheck:
    """The text and the questions on which every version of a model is measured."""

    tokenizer: Tokenizer
    batches: Sequence[Batch]
    exams: Sequence[Exam]

    @classmethod
    def prepare(cls, tokenizer: Tokenizer, context: int, text: str | None, questions: int) -> QualityCheck:
        """Reads the text, splits it into rows of `context` tokens, and makes the questions.

        Args:
            text: a file or folder; None is the held-out part of the embedded corpus.
            questions: of each task; none where the tokenizer has no chat tokens.
        """
        print("reading the text that quality is measured on", file=sys.stderr)
        documents = read_documents(text) if text else split_held_out(harvest_embedded())[1]
        batches = make_text_batches((document.text for document in documents), tokenizer, context, MAX_TEXT_ROWS)
        has_chat_tokens = tokenizer.can_chat
        exams = build_exams(list(SKILLS), questions) if questions and has_chat_tokens else []
        return cls(tokenizer, batches, exams)

    def measure_quality(self, model: Transformer, version: str) -> list[Quality]:
        """Returns bits per byte, and the accuracy in each task; version is reported on stderr."""
        print(f"measuring {version}", file=sys.stderr)
        text_bits = measure_bits(model, self.batches, self.tokenizer.byte_lengths())
        documents = number_clusters(text_bits.documents.tolist())
        bits, size = (np.bincount(documents, column) for column in (text_bits.bits, text_bits.bytes))
        bits_per_byte = measure_ratio("bits_per_byte", text_bits, text_bits.bits, text_bits.bytes)
        qualities = [Quality(bits_per_byte, bits[size > 0], size[size > 0])]
        engine = Engine(model, self.tokenizer)
        for exam, answers in zip(self.exams, answer_exams(engine, self.exams), strict=True):
            clusters = number_clusters([answer.question.cluster for answer in answers])
            sums = sum_by_cluster(np.array([answer.score for answer in answers]), clusters)
            qualities.append(Quality(measure_exam(exam.name, answers)[0].with_tools(engine.tool_name), *sums))
        return qualities
