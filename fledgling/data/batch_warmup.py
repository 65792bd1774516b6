"""Warm-up of the batch and of the context: the first steps of a stage read fewer rows, or shorter ones.

Small batches learn more per token while the loss still falls fast, and short rows cost less attention. Over its first
steps a stage reads a quarter, then half, of its rows (`batch_warmup_steps`); or its rows are cut into four, then two
pieces of their own (`context_warmup_steps`). Both are functions of the step alone, so that a stage resumes exactly and
any number of ranks reads the same.

Sources: batch-size warm-up, Brown et al. 2020, arXiv 2005.14165 (appendix B), and McCandlish et al. 2018, 1812.06162;
sequence-length warm-up, Li et al. 2021, arXiv 2108.06084.
"""

from __future__ import annotations

from dataclasses import dataclass

from fledgling.data.batch import Batch


def warmup_divisor(step: int, warmup_steps: int) -> int:
    """Returns 4 in the first half of a warm-up, 2 in the second, then 1."""
    return 1 if step >= warmup_steps else 2 if 2 * step >= warmup_steps else 4


@dataclass(frozen=True)
class BatchWarmup:
    """The rows of each step, and the pieces that they are cut into; 0 steps: they never change.

    Args:
        rows: of a step at full size.
        batch_steps: steps that read fewer rows.
        context_steps: steps whose rows are cut into shorter ones.
    """

    rows: int
    batch_steps: int = 0
    context_steps: int = 0

    def count_rows_at(self, step: int) -> int:
        """Returns how many rows a step reads."""
        return max(1, self.rows // warmup_divisor(step, self.batch_steps))

    def count_rows_before(self, step: int) -> int:
        """Returns how many rows all steps before it read."""
        half, end = -(-self.batch_steps // 2), self.batch_steps
        quarters, halves = min(step, half), max(0, min(step, end) - half)
        whole = step - quarters - halves
        return quarters * max(1, self.rows // 4) + halves * max(1, self.rows // 2) + whole * self.rows

    def cut(self, batch: Batch, step: int) -> Batch:
        """Returns a batch (B, T) as pieces (4 B, T / 4) or (2 B, T / 2); where T does not divide, in fewer pieces."""
        pieces, time = warmup_divisor(step, self.context_steps), batch.tokens.shape[1]
        while time % pieces:
            pieces //= 2
        return batch if pieces == 1 else batch.cut_rows(pieces)
