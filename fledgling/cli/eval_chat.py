"""`fledgling eval chat` and `fledgling eval passk`: exams of chat tasks on a checkpoint.

Answers are saved in RUN/STAGE/exams/step-N/, a file for each exam with a line for each question; a stopped command
resumes there when it is run again. The accuracies are appended to the stage's evals.jsonl, where the report
reads them. With --out nothing is written into the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fledgling.cli.lists import CountList, NameList
from fledgling.cli.options import Checkpoint, DataDir, Device, Gpus, Json, print_to_stderr, run_on_ranks
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.measurement import Measurement


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
        arithmetic, spelling, counting, identity, stdlib (default: all of these), language; arc_easy, arc_challenge,
        mmlu, gsm8k, humaneval (all of these: chatcore); env:guessing, env:file_tree, env:database, env:web_shop,
        env:path.py:Class, an environment of your own; questions:PATH, a file of your own. Separate names with commas
        or repeat the option.
    wordings
        Of the generated tasks: test, train (the default: both), dev, practice.
    questions
        Questions of each exam; all of a set that has fewer.
    log
        A file for every question, answer and score, as JSON lines.
    out
        A folder for the saved answers instead of RUN/STAGE/exams; nothing is written into the run.
    fresh
        Generate all answers again instead of using saved ones.
    """
    if questions < 1:
        raise UserError(f"--questions is {questions}; expected at least 1")
    options = {"tasks": tasks, "wordings": wordings, "questions": questions, "data_dir": data_dir}
    options |= {"log": log, "out": out, "fresh": fresh}
    require_free_places(log, out)
    code = run_on_ranks(gpus, device, "eval", "chat", checkpoint, **options, as_json=as_json)
    if code is not None:
        return code
    from fledgling.evals.exams import run_exams, select_exams
    from fledgling.evals.saved_answers import answer_to_json
    from fledgling.evals.session import EvalSession

    exams = select_exams(tasks, wordings, questions, data_dir)
    session = EvalSession.open(checkpoint, device)
    results = run_exams(session, exams, out, fresh, print_to_stderr)
    if session.world.is_main:
        for note in results.notes:
            print_to_stderr(note)
        if log:
            lines = (json.dumps(answer_to_json(answer)) + "\n" for answer in results.answers)
            log.write_text("".join(lines), encoding="utf-8")
        print_measurements(results.measurements, as_json)
    session.world.close()
    return 0


def passk(
    checkpoint: Checkpoint,
    /,
    *,
    task: str = "humaneval",
    samples: int = 10,
    k: CountList = (1, 10),
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
        A task with free-text answers: humaneval, gsm8k, arithmetic, spelling, counting, identity, stdlib, language,
        env:guessing, env:file_tree, env:database, env:web_shop, env:path.py:Class, or questions:PATH.
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
    if questions < 1 or samples < max(k) or min(k) < 1:
        shown = ",".join(map(str, k))
        raise UserError(f"--samples {samples}, --k {shown}, --questions {questions}; expected samples >= k >= 1")
    if not 0 < temperature < math.inf:
        raise UserError(f"--temperature is {temperature}; expected a finite number above 0: 0 makes all samples equal")
    options = {"task": task, "samples": samples, "k": k, "questions": questions, "temperature": temperature}
    options |= {"seed": seed, "data_dir": data_dir, "out": out}
    require_free_places(None, out)
    code = run_on_ranks(gpus, device, "eval", "passk", checkpoint, **options, as_json=as_json)
    if code is not None:
        return code
    from fledgling.evals.chat import build_exams
    from fledgling.evals.exams import run_pass_at_k
    from fledgling.evals.session import EvalSession

    exam = build_exams([task], questions, data_dir=data_dir)[0]
    session = EvalSession.open(checkpoint, device)
    measurements = run_pass_at_k(session, exam, samples, k, temperature, seed, out)
    if session.world.is_main:
        print_measurements(measurements, as_json)
    session.world.close()
    return 0


def require_free_places(log: Path | None, out: Path | None) -> None:
    """Raises UserError for a log, or a file or folder of saved answers, that would be a part of a run."""
    from fledgling.record.outside import require_no_part_of_run, require_place_of_answers

    if log is not None:
        require_no_part_of_run(log)
    if out is not None:
        require_place_of_answers(out)


def print_measurements(measurements: Sequence[Measurement], as_json: bool) -> None:
    """Prints measurements as JSON or as a table."""
    if as_json:
        print(json.dumps([asdict(m) for m in measurements], indent=2))
        return
    from fledgling.record.evaluation_names import format_cases

    width = max(20, *(len(m.label) for m in measurements))
    for m in measurements:
        chance = f"   chance {m.chance:.3f}" if m.chance else ""
        baseline = "" if m.baseline is None else f"   best constant answer {m.baseline:.3f}"
        cases = format_cases(m.n, m.clusters, m.cluster_unit)
        interval = "[no interval]" if m.low is None else f"[{m.low:.4f}, {m.high:.4f}]"
        tools = "" if m.tools is None else f"   tools {m.tools}"
        print(f"{m.label:{width}} {m.value:.4f}  {interval}  n {cases}{chance}{baseline}{tools}")
