"""The [distill] table: a teacher, from whose predictions some stages learn."""

from __future__ import annotations

from dataclasses import dataclass, field

from fledgling.config.fields import choice, count, number

TEXT_STAGES = ("pretrain", "midtrain", "sft")  # those that learn from text and conversations


@dataclass(frozen=True)
class DistillConfig:
    """[distill]: a table of the run and not of a stage, because one teacher serves all stages that learn from it."""

    teacher: str | None = None  # a checkpoint, a stage, a run or a Hugging Face directory; None: no teacher
    stages: tuple[str, ...] = field(default=TEXT_STAGES, metadata={"choices": TEXT_STAGES})  # that learn from it
    match: str = choice("tokens", "text")  # what is compared: tokens of one vocabulary, or spans of text of two
    weight: float = number(1.0, 0.0, 1.0)  # of the teacher's predictions; the rest is the weight of the text
    temperature: float = number(1.0, above=True)  # at which both are compared
    every: int = count(1)  # of n steps the first learns from the teacher, the others from the text alone
    until: float = number(1.0, 0.0, 1.0, above=True)  # the share of a stage's steps, from the first on, that do so
    top_k: int | None = count(None)  # tokens of a position that are stored before the first step; None: a live teacher

    def list_taught(self, steps: int, skipped: int = 0) -> range:
        """Returns the numbers, in the stage's data, of the steps that learn from the teacher.

        Args:
            steps: of the stage, planned.
            skipped: steps of its data that rollbacks have left out. The steps made before a step decide whether it
                learns from the teacher, so the last that do are as many steps later in the data.
        """
        return range(skipped % self.every, max(1, round(self.until * steps)) + skipped, self.every)

    def teaches(self, step: int, steps: int) -> bool:
        """Returns whether a step, after `step` that were made of `steps` planned ones, learns from the teacher."""
        return step in self.list_taught(steps)
