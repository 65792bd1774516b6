"""Exam scores recomputed: lines of evals.jsonl, drawn at random, from the checkpoint of their step.

Lines after the seal come first, since no hash has them. An exam is the beginning of a larger one, so a line's name and
number of questions say what was asked; answers are greedy. Start with `check_scores`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fledgling.config import RunConfig, UserError
from fledgling.config.load import parse_recipe
from fledgling.evals.chat import answer_exams, build_exams, measure_exam
from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.record import checkpoint, read_jsonl
from fledgling.record.evaluation_names import WORDINGS, split_evaluation_name
from fledgling.record.seal import read_seal
from fledgling.report.run_data import finite_number
from fledgling.runtime.device import DTYPES, choose_dtype
from fledgling.runtime.world import World
from fledgling.tasks import GENERATED_TASKS, PUBLIC_TASKS
from fledgling.verify.check import Check
from fledgling.verify.files import is_usable, list_stage_checkpoints, list_stages
from fledgling.verify.stage_order import find_stage_parent

EXAM_SETS = ("train", "test", "dev", "practice")  # of wordings, that this version has
# Of a score that was computed in the same way, and of one that was not: training answers all exams in common groups,
# which rounds products of bfloat16 otherwise than one exam alone does; so do other machines and versions.
DIFFERENCE, DIFFERENCE_ELSEWHERE = 0.02, 0.15
MAX_QUESTIONS, MAX_GENERATED = 20_000, 2_000  # of an exam: MMLU has 14,042; a generated one must be drawn first
MADE_ELSEWHERE = ("bits_per_byte", "zeros")  # by `steps.replay`, and by programs that are no model


class _OutOfTime(Exception):
    """The time for the exams is over."""


@dataclass(frozen=True)
class ScoreLine:
    """A line of a stage's evals.jsonl. number: from 1. weights: the checkpoint that was examined; None: it is gone."""

    stage: str
    number: int
    values: dict[str, Any]
    is_sealed: bool
    weights: Path | None

    def __str__(self) -> str:
        return f"{self.stage}/evals.jsonl line {self.number}: {self.values.get('name')}"

    @property
    def engine(self) -> tuple[Path | None, bool]:
        """What its engine is found by: the weights, and whether training has measured."""
        return self.weights, self.is_sealed

    @property
    def num_questions(self) -> int:
        """The questions of the exam."""
        count = self.values.get("n")
        return count if type(count) is int else 0

    def allows(self, recomputed: float, is_elsewhere: bool) -> bool:
        """Returns whether a recomputed score is the line's, up to one question or the difference allowed."""
        allowed = max(DIFFERENCE_ELSEWHERE if is_elsewhere else DIFFERENCE, 1 / self.num_questions)
        return abs(recomputed - float(self.values["value"])) <= allowed + 1e-9

    def find_obstacle(self) -> str:
        """Returns why the score of the line is not recomputed; "" if it can be."""
        name, value = self.values.get("name"), finite_number(self.values.get("value"))
        task, end = split_evaluation_name(name) if isinstance(name, str) else ("", "")
        if task not in (*GENERATED_TASKS, *PUBLIC_TASKS) or task == "humaneval" or WORDINGS[end] not in EXAM_SETS:
            return "is not an exam that is recomputed"
        most = MAX_GENERATED if task in GENERATED_TASKS else MAX_QUESTIONS
        if value is None or not 1 <= self.num_questions <= most:
            return f"has no value, or not 1 to {most:,} questions"
        return "" if self.weights is not None else f"the checkpoint of step {self.values.get('step')} is gone"


def list_score_lines(run_dir: Path) -> list[ScoreLine]:
    """Returns the lines of all stages' evaluations except those that other checks recompute."""
    found = []
    for stage in list_stages(run_dir):
        seal, weights = read_seal(run_dir / stage), {}
        sealed = len(seal["lines"].get("evals", [])) if seal else 0
        for path in list_stage_checkpoints(run_dir, stage):
            if is_usable(path):
                weights[int(checkpoint.read_checkpoint_state(path)["step"])] = path
        parent = find_stage_parent(run_dir, stage)
        if parent is not None and parent.path is not None:
            weights.setdefault(0, parent.path)
        for number, values in enumerate(read_jsonl(run_dir / stage / "evals.jsonl"), start=1):
            name, step = str(values.get("name")), values.get("step")
            if not name.startswith(MADE_ELSEWHERE):
                examined = weights.get(step) if type(step) is int else None
                found.append(ScoreLine(stage, number, values, number <= sealed, examined))
    return found


def find_added_measurements(run_dir: Path) -> list[str]:
    """Returns a line for each value after the seal that training alone measures, and whose step it has measured."""
    found = []
    for stage in list_stages(run_dir):
        seal, lines = read_seal(run_dir / stage), read_jsonl(run_dir / stage / "evals.jsonl")
        count = len(seal["lines"].get("evals", [])) if seal else len(lines)
        measured = {(line.get("step"), str(line.get("name"))) for line in lines[:count]}
        for number, line in enumerate(lines[count:], start=count + 1):
            key = (line.get("step"), str(line.get("name")))
            if key[1].startswith(MADE_ELSEWHERE) and key in measured:
                found.append(
                    f"{stage}/evals.jsonl line {number}: {key[1]} of step {key[0]} is in the seal, and once more"
                )
    return found


def check_scores(
    run_dir: Path, count: int, deadline: float, chance: random.Random, is_elsewhere: bool, show: Callable[[str], None]
) -> Check:
    """Recomputes `count` scores and compares them; the exams with the fewest questions first.

    Args:
        run_dir: of the run.
        count: lines that are drawn, those after the seal before the others.
        deadline: in seconds of `time.monotonic`; an exam that is not done by then is left out.
        chance: draws the lines.
        is_elsewhere: whether another machine or version made the scores: a larger difference is allowed.
        show: is called before each checkpoint.
    """
    check, lines = Check("exam scores recomputed", "values"), list_score_lines(run_dir)
    check.problems += find_added_measurements(run_dir)
    possible = []
    for line in lines:
        if not (obstacle := line.find_obstacle()):
            possible.append(line)
        elif not line.is_sealed:
            check.notes.append(f"not recomputed: {line}: {obstacle}, and no seal has it")
    check.total = len(possible)
    chance.shuffle(possible)
    drawn = sorted(sorted(possible, key=lambda line: line.is_sealed)[:count], key=lambda line: line.num_questions)
    engines: dict[tuple[Path | None, bool], Engine] = {}
    for line in drawn:
        show(str(line))
        try:
            recomputed = make_score(line, engines, deadline)
        except _OutOfTime:
            check.notes.append(f"no time left for {line}: give --seconds more")
            continue
        except UserError as error:
            check.notes.append(f"not recomputed: {line}: {error}")
            continue
        if recomputed is None:
            check.notes.append(f"not recomputed: {line}: it was measured with other questions or tools")
            continue
        check.checked += 1
        is_other = is_elsewhere or (line.is_sealed and engines[line.engine].dtype != torch.float32)
        if not line.allows(recomputed, is_other):
            check.problems.append(
                f"{line} over {line.num_questions:,} questions is {line.values['value']}, and {recomputed} from the "
                f"weights of {line.weights}"
            )
    return check


def load_engine(line: ScoreLine, run: RunConfig) -> Engine:
    """Returns an engine that computes as training does for a line of the seal, and else as `fledgling eval` does."""
    device = World.start(run.device).device
    assert line.weights is not None
    model, tokenizer, _ = load_model(line.weights, device=device)
    is_given = line.is_sealed and run.dtype != "auto"  # `eval` chooses it whatever the recipe says
    return Engine(model, tokenizer, dtype=DTYPES[run.dtype] if is_given else choose_dtype(device))


def make_score(line: ScoreLine, engines: dict[tuple[Path | None, bool], Engine], deadline: float) -> float | None:
    """Returns the recomputed score of a line; None where the exam has other questions or tools.

    Args:
        line: whose score can be recomputed.
        engines: by `ScoreLine.engine`; receives a new one.
        deadline: in seconds of `time.monotonic`.

    Raises:
        _OutOfTime: the deadline has passed. UserError: as `build_exams`, for files that are not here.
    """
    assert line.weights is not None
    state = checkpoint.read_checkpoint_state(line.weights)
    recipe = parse_recipe(state["recipe"])
    task, end = split_evaluation_name(line.values["name"])
    wordings = WORDINGS[end]
    exams = build_exams([task], {wordings: line.num_questions}, [task], recipe.run.data_dir)
    exam = next((exam for exam in exams if exam.name == line.values["name"]), None)
    if exam is None or len(exam.questions) != line.num_questions:
        return None

    def progress(done: int, total: int) -> None:
        if time.monotonic() > deadline:
            raise _OutOfTime

    progress(0, 0)
    if line.engine not in engines:
        engines[line.engine] = load_engine(line, recipe.run)
    engine = engines[line.engine]
    if line.values.get("tools") not in (None, engine.tool_name):
        return None
    (answers,) = answer_exams(engine, [exam], progress)
    recomputed = measure_exam(exam.name, answers)[0]
    facts = {"baseline": recomputed.baseline, "clusters": recomputed.clusters}  # which follow from the questions
    is_same = all(line.values.get(name) in (None, value) for name, value in facts.items())
    return recomputed.value if is_same else None
