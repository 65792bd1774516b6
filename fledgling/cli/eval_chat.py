"""`fledgling eval chat` and `fledgling eval passk`: exams of chat tasks on a checkpoint.

Answers are saved in RUN/STAGE/exams/step-N/, a file for each exam with a line for each question; a stopped command
continues from there when it is run again. The accuracies are appended to the stage's evals.jsonl, where the report
reads them. With --out nothing is written into the run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fledgling.cli.options import Checkpoint, Device, Gpus, Json, run_on_ranks
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.measurement import Measurement

DataDir = Annotated[
    str | None, Parameter(name="--data-dir", help="The data root; else FLEDGLING_DATA, else ~/.cache/fledgling.")
]
NameList = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


def chat(
    checkpoint: Checkpoint,
    /,
    *,
    tasks: NameList = (),
    wordings: NameList = (),
    questions: int = 200,
    data_dir: DataDir = None,
    log: Path | None = None,
    out: Path | None = None,
    fresh: Annotated[bool, Parameter(negative=())] = False,
    gpus: Gpus = None,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """Accuracy in chat tasks: letters by their logits, everything else by greedy generation, with tools.

    Parameters
    ----------
    tasks
        arithmetic, counting, spelling, identity, stdlib (default: all of these); arc_easy, arc_challenge, mmlu,
        gsm8k, humaneval (all of these: chatcore); questions:PATH, a file of your own. Separate names with commas or
        repeat the option.
    wordings
        Of the generated tasks: test, training (the default: both), development, practised.
    questions
        Questions of each exam; all of a set that has fewer.
    log
        A file for every question, answer and score, as JSON lines.
    out
        A folder for the saved answers instead of RUN/STAGE/exams; nothing is written into the run.
    fresh
        Generate all answers again instead of using saved ones.
    """
    from fledgling.evals.chat import build_exams, compute_chatcore, measure_exam
    from fledgling.evals.session import EvalSession, answer_to_json
    from fledgling.tasks import PUBLIC_TASKS, SKILLS

    if questions < 1:
        raise UserError(f"--questions is {questions}; expected at least 1")
    counts = _count_questions(_split_names(wordings), questions)
    options = {
        "tasks": tasks,
        "wordings": wordings,
        "questions": questions,
        "data_dir": data_dir,
        "log": log,
        "out": out,
        "fresh": fresh,
    }
    code = run_on_ranks(gpus, device, "eval", "chat", checkpoint, **options, as_json=as_json)
    if code is not None:
        return code
    groups = [PUBLIC_TASKS if name == "chatcore" else (name,) for name in _split_names(tasks) or SKILLS]
    names = list(dict.fromkeys(name for group in groups for name in group))
    exams = build_exams(names, counts, names, data_dir)
    if not exams:
        raise UserError(f"--wordings {','.join(wordings)}: {', '.join(names)} has no exam in them; name test too")
    session = EvalSession.open(checkpoint, device)
    folder = out or session.exams_dir
    answers = [session.run_exam(exam, folder, fresh, _print_to_stderr) for exam in exams]
    measurements = [m for exam, given in zip(exams, answers, strict=True) for m in measure_exam(exam.name, given)]
    core = compute_chatcore(measurements)
    tools = session.engine.tool_name
    if session.world.is_main:
        every_answer = [answer for exam_answers in answers for answer in exam_answers]
        if cropped := sum(answer.cropped for answer in every_answer):
            _print_to_stderr(f"{cropped:,} prompts were longer than the context and lost their beginning")
        if core:
            measurements.append(core)
        elif set(names) & set(PUBLIC_TASKS):
            _print_to_stderr(f"chatcore needs all of {', '.join(PUBLIC_TASKS)}: --tasks chatcore")
        if log:
            lines = (json.dumps(answer_to_json(answer)) + "\n" for answer in every_answer)
            log.write_text("".join(lines), encoding="utf-8")
        if not out:
            session.record([m.with_tools(tools) for m in measurements])
        print_measurements([m.with_tools(tools) for m in measurements], as_json)
    session.world.close()
    return 0


def passk(
    checkpoint: Checkpoint,
    /,
    *,
    task: str = "humaneval",
    samples: int = 10,
    k: NameList = ("1", "10"),
    questions: int = 164,
    temperature: float = 0.8,
    seed: int = 0,
    data_dir: DataDir = None,
    out: Path | None = None,
    gpus: Gpus = None,
    device: Device = "auto",
    as_json: Json = False,
) -> int:
    """pass@k: the probability that at least one of k sampled answers is right, by the unbiased estimator.

    Parameters
    ----------
    task
        A task with free-text answers: humaneval, gsm8k, arithmetic, ...
    samples
        Sampled answers to each question: at least the largest k.
    k
        The values of k, such as 1,5,10 (default: 1,10).
    questions
        Questions of the task; all of a set that has fewer.
    temperature
        Sampling temperature.
    seed
        Seed of the sampling noise.
    out
        A folder for the saved answers instead of RUN/STAGE/exams; nothing is written into the run.
    """
    from fledgling.evals.chat import build_exams
    from fledgling.evals.passk import measure_pass_at_k
    from fledgling.evals.session import EvalSession

    ks = _parse_ks(_split_names(k))
    if questions < 1 or samples < max(ks):
        raise UserError(f"--samples {samples}, --k {max(ks)}, --questions {questions}; expected samples >= k >= 1")
    if not 0 < temperature < math.inf:
        raise UserError(
            f"--temperature is {temperature}; expected a finite number above 0, or all samples are the same"
        )
    options = {"task": task, "samples": samples, "k": k, "questions": questions, "temperature": temperature}
    options |= {"seed": seed, "data_dir": data_dir, "out": out}
    code = run_on_ranks(gpus, device, "eval", "passk", checkpoint, **options, as_json=as_json)
    if code is not None:
        return code
    exam = build_exams([task], questions, data_dir=data_dir)[0]
    session = EvalSession.open(checkpoint, device)
    correct = session.count_correct_samples(exam, samples, temperature, seed, out or session.exams_dir)
    if session.world.is_main:
        passed = measure_pass_at_k(exam.name, exam.questions, correct, samples, ks)
        measurements = [m.with_tools(session.engine.tool_name) for m in passed]
        if not out:
            session.record(measurements)
        print_measurements(measurements, as_json)
    session.world.close()
    return 0


def _count_questions(wordings: Sequence[str], questions: int) -> dict[str, int]:
    """Returns the number of questions by set of wordings. Raises UserError for a set that does not exist."""
    from fledgling.record.evaluation_names import WORDINGS
    from fledgling.tasks.task import DEVELOPMENT, PRACTICE, TEST, TRAIN

    sets = dict(zip(WORDINGS.values(), (TEST, TRAIN, PRACTICE, DEVELOPMENT), strict=True))
    unknown = [name for name in wordings if name not in sets]
    if unknown:
        raise UserError(f'--wordings has "{unknown[0]}"; expected some of {", ".join(sets)}')
    return {sets[name]: questions for name in wordings or ("test", "training")}


def _print_to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def _split_names(values: Sequence[str]) -> list[str]:
    return [name for value in values for name in value.split(",") if name]


def _parse_ks(words: Sequence[str]) -> list[int]:
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--k {','.join(words)}: expected whole numbers from 1, such as 1,5,10")
    return [int(word) for word in words]


def print_measurements(measurements: Sequence[Measurement], as_json: bool) -> None:
    """Prints measurements as JSON or as a table."""
    if as_json:
        print(json.dumps([asdict(m) for m in measurements], indent=2))
        return
    from fledgling.record.evaluation_names import format_cases

    width = max(20, *(len(m.name) for m in measurements))
    for m in measurements:
        chance = f"   chance {m.chance:.3f}" if m.chance else ""
        baseline = "" if m.baseline is None else f"   best constant answer {m.baseline:.3f}"
        cases = format_cases(m.n, m.clusters, m.cluster_unit)
        interval = "[no interval]" if m.low is None else f"[{m.low:.4f}, {m.high:.4f}]"
        tools = "" if m.tools is None else f"   tools {m.tools}"
        print(f"{m.name:{width}} {m.value:.4f}  {interval}  n {cases}{chance}{baseline}{tools}")
