"""Appends evaluations to the evals.jsonl of a stage: one rule and one shape of line, for training and for `eval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fledgling.record.jsonl import JsonlWriter, read_jsonl

# The values of a line after stage and step, with what replaces one that is not known. Lines of older versions lack
# some. They are those of `fledgling.evals.measurement.Measurement` but its subject, which no line has.
EVALUATION_FIELDS: dict[str, Any] = {
    "name": None,
    "value": None,
    "low": None,
    "high": None,
    "n": None,
    "baseline": None,
    "chance": None,
    "tools": None,
    "clusters": None,
    "cluster_unit": "",
}
SUBJECT = "subject"


class EvaluationLog:
    """The evals.jsonl of one stage, to which training and `fledgling eval` append.

    An evaluation over fewer cases than the recorded one of the same name and step is not appended. An evaluation of a
    part, which has a `subject`, is not appended either: there may be dozens, and their mean has a name of its own.
    Nothing that the file holds is changed.

    Args:
        writer: of the file; shared, if another process may be appending.
        stage: the name that lines give.
    """

    def __init__(self, writer: JsonlWriter, stage: str) -> None:
        self.writer, self.stage = writer, stage
        self._step: int | None = None  # whose recorded numbers of cases are known
        self._cases: dict[str, int] = {}  # name -> the most cases

    def append(self, step: int, evaluation: Mapping[str, Any]) -> bool:
        """Appends a line with `evaluation` after `step` steps, unless the rule leaves it out; returns whether it did.

        evaluation: values of EVALUATION_FIELDS, by name, and perhaps the `subject`.
        """
        fields = {key: value for key, value in evaluation.items() if key != SUBJECT}
        assert fields.keys() <= EVALUATION_FIELDS.keys(), f"not of an evaluation: {sorted(evaluation)}"
        name, cases = evaluation["name"], evaluation.get("n") or 0
        if step != self._step:
            self._read_cases(step)
        if evaluation.get(SUBJECT) or cases < self._cases.get(name, 0):
            return False
        self.writer.append({"stage": self.stage, "step": step, **EVALUATION_FIELDS, **fields})
        self._cases[name] = cases
        return True

    def forget(self) -> None:
        """Reads the file again before the next line: its lines have changed."""
        self._step = None

    def _read_cases(self, step: int) -> None:
        self._step, self._cases = step, {}
        for line in read_jsonl(self.writer.path):
            if line.get("step") == step and isinstance(line.get("name"), str):
                cases = line.get("n")
                known = cases if isinstance(cases, int) else 0
                self._cases[line["name"]] = max(known, self._cases.get(line["name"], 0))
