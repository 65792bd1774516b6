"""Exams of a checkpoint from names: which are meant, their answers, and what is recorded of them.

`fledgling eval chat` calls `select_exams` and `run_exams`; `fledgling eval passk` calls `run_pass_at_k`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fledgling.config import UserError
from fledgling.evals.chat import Exam, ExamAnswer, build_exams, compute_chatcore, measure_exam
from fledgling.evals.measurement import Measurement
from fledgling.evals.passk import measure_pass_at_k
from fledgling.evals.session import EvalSession
from fledgling.tasks import PUBLIC_TASKS, SKILLS
from fledgling.tasks.task import DEV, PRACTICE, TEST, TRAIN

SETS = (TEST, TRAIN, PRACTICE, DEV)  # of wordings
TEMPERATURE = 0.8  # of pass@k; the name of a value at another one says which
RENAMED_SETS = {"training": TRAIN, "practised": PRACTICE, "development": DEV}


@dataclass(frozen=True)
class ExamResults:
    """The answers of several exams, their measurements, and notes about them for the user."""

    answers: tuple[ExamAnswer, ...]
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]


def select_exams(
    tasks: Sequence[str], wordings: Sequence[str], questions: int, data_dir: str | Path | None = None
) -> list[Exam]:
    """Returns the exams that are named.

    Args:
        tasks: names of tasks, or chatcore for all of PUBLIC_TASKS; empty means SKILLS.
        wordings: sets of wordings of generated tasks, by the names of `count_by_wordings`.
        questions: of each exam; all of a set that has fewer.

    Raises:
        UserError: an unknown task or set of wordings, missing files, or no exam at all.
    """
    counts = count_by_wordings(wordings, questions)
    groups = [PUBLIC_TASKS if name == "chatcore" else (name,) for name in tasks or SKILLS]
    names = list(dict.fromkeys(name for group in groups for name in group))
    exams = build_exams(names, counts, names, data_dir)
    if not exams:
        raise UserError(f"--wordings {','.join(wordings)}: {', '.join(names)} has no exam in them; name test too")
    return exams


def count_by_wordings(wordings: Sequence[str], questions: int) -> dict[str, int]:
    """Returns the number of questions by set of wordings. Raises UserError for a set that does not exist."""
    unknown = next((name for name in wordings if name not in SETS), None)
    if unknown in RENAMED_SETS:
        raise UserError(f'--wordings: "{unknown}" was renamed to "{RENAMED_SETS[unknown]}"')
    if unknown is not None:
        raise UserError(f'--wordings has "{unknown}"; expected some of {", ".join(SETS)}')
    return dict.fromkeys(wordings or (TEST, TRAIN), questions)


def run_exams(
    session: EvalSession,
    exams: Sequence[Exam],
    out: Path | None = None,
    fresh: bool = False,
    log: Callable[[str], None] = lambda text: None,
) -> ExamResults:
    """Answers exams and measures them, with chatcore where all its tasks are among them; all ranks call it.

    Args:
        out: a folder of saved answers; None is that of the checkpoint's stage, whose evals.jsonl then gets the
            measurements.
        fresh: ignores saved answers.
        log: is called with one line when saved answers are read.
    """
    by_exam = [session.run_exam(exam, out or session.exams_dir, fresh, log) for exam in exams]
    measurements = [m for exam, answers in zip(exams, by_exam, strict=True) for m in measure_exam(exam.name, answers)]
    notes = []
    if cropped := sum(answer.cropped for answers in by_exam for answer in answers):
        notes.append(f"{cropped:,} prompts were longer than the context and lost their beginning")
    if core := compute_chatcore(measurements):
        measurements.append(core)
    elif {exam.name for exam in exams} & set(PUBLIC_TASKS):
        notes.append(f"chatcore needs all of {', '.join(PUBLIC_TASKS)}: --tasks chatcore")
    measurements = [m.with_tools(session.engine.tool_name) for m in measurements]
    if not out:
        session.record(measurements)
    return ExamResults(tuple(answer for answers in by_exam for answer in answers), tuple(measurements), tuple(notes))


def run_pass_at_k(
    session: EvalSession,
    exam: Exam,
    samples: int,
    ks: Sequence[int],
    temperature: float,
    seed: int = 0,
    out: Path | None = None,
) -> list[Measurement]:
    """Samples answers to an exam and returns pass@k of each k; all ranks call it.

    Args:
        session: of the checkpoint.
        exam: with its questions.
        samples: answers to each question.
        ks: each k of pass@k, at most `samples`.
        temperature: of sampling.
        seed: of sampling.
        out: as in `run_exams`.
    """
    correct = session.count_correct_samples(exam, samples, temperature, seed, out or session.exams_dir)
    passed = measure_pass_at_k(exam.name, exam.questions, correct, samples, ks)
    at = "" if temperature == TEMPERATURE else f" at temperature {temperature:g}"
    measurements = [replace(m, name=m.name + at).with_tools(session.engine.tool_name) for m in passed]
    if not out:
        session.record(measurements)
    return measurements
