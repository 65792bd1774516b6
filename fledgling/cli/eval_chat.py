"""`fledgling eval chat` and `fledgling eval passk`: questions put to a checkpoint as a user would.

Answers are kept beside the checkpoint's stage, RUN/STAGE/exams/step-N/, a file an exam with a line for every
question, answer and score; stopped anywhere, the same command goes on from there. The accuracies go into the stage's
evals.jsonl, where the report reads them. With --out nothing is written into the run. On several ranks all answer, and
the main one writes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fledgling.cli.options import Checkpoint, Device, Gpus, Json, run_on_ranks
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.chat import Exam, ExamAnswer
    from fledgling.evals.measurement import Measurement
    from fledgling.infer.engine import Engine
    from fledgling.runtime.world import World

QUESTIONS_PER_SAVE = 16  # questions of pass@k drawn between two saves
DataDir = Annotated[
    str | None, Parameter(name="--data-dir", help="Where data lies; else FLEDGLING_DATA, else ~/.cache/fledgling.")
]
NameList = Annotated[tuple[str, ...], Parameter(help="Names, with commas between or the option repeated.")]


def chat(
    checkpoint: Checkpoint,
    /,
    *,
    tasks: NameList = (),
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
        arithmetic, counting, spelling, identity, stdlib (all of these where none is named); arc_easy,
        arc_challenge, mmlu, gsm8k, humaneval (all of these: chatcore); questions:PATH, a file of your own.
    questions
        How many of each; where a set has fewer, all.
    log
        A file for every question, answer and score, as JSON lines.
    out
        A folder for what is finished, and nothing is written into the run; else RUN/STAGE/exams.
    fresh
        Ask again what was asked before.
    """
    from fledgling.evals.chat import build_exams, compute_chatcore, measure_exam
    from fledgling.tasks import PUBLIC_TASKS, SKILLS

    if questions < 1:
        raise UserError(f"--questions is {questions}; expected at least 1")
    common = {"tasks": tasks, "questions": questions, "data_dir": data_dir, "log": log, "out": out, "fresh": fresh}
    code = run_on_ranks(gpus, device, "eval", "chat", checkpoint, **common, as_json=as_json)
    if code is not None:
        return code
    named = _split_names(tasks) or list(SKILLS)
    names = list(dict.fromkeys(name for given in named for name in (PUBLIC_TASKS if given == "chatcore" else (given,))))
    papers = build_exams(names, questions, data_dir=data_dir)
    desk = EvalSession.open(checkpoint, device, out)
    found, answers = [], []
    for paper in papers:
        given = desk.answer_exam(paper, fresh)
        found += measure_exam(paper.name, given)
        answers += given
    core = compute_chatcore(found)
    if desk.world.is_main:
        if cropped := sum(one.cropped for one in answers):
            print(f"{cropped:,} prompts were longer than the context and lost their beginning", file=sys.stderr)
        if core:
            found.append(core)
        elif set(names) & set(PUBLIC_TASKS):
            print(f"chatcore needs all of {', '.join(PUBLIC_TASKS)}: --tasks chatcore", file=sys.stderr)
        if log:
            log.write_text("".join(json.dumps(_answer_line(one)) + "\n" for one in answers), encoding="utf-8")
        desk.record_measurements(found)
        print_measurements(found, as_json)
    desk.world.close()
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
    """pass@k: the chance that one of k drawn answers is right, by the unbiased estimator.

    Parameters
    ----------
    task
        A task whose answers are written: humaneval, gsm8k, arithmetic, ...
    samples
        Answers drawn to each question: at least the largest k.
    k
        The k to estimate, such as 1,5,10.
    questions
        How many; where a set has fewer, all.
    temperature
        Of the draws.
    out
        A folder for what is finished, and nothing is written into the run; else RUN/STAGE/exams.
    """
    from fledgling.evals.chat import Exam, build_exams
    from fledgling.evals.passk import measure_pass_at_k, sample_answers
    from fledgling.record.jsonl import JsonlWriter, read_jsonl

    ks = _parse_ks(_split_names(k))
    if questions < 1 or samples < max(ks):
        raise UserError(f"--samples {samples}, --k {max(ks)}, --questions {questions}; expected samples >= k >= 1")
    if temperature <= 0:
        raise UserError(f"--temperature is {temperature}; expected above 0, or all draws are the same")
    common = {"task": task, "samples": samples, "k": k, "questions": questions, "temperature": temperature}
    common |= {"seed": seed, "data_dir": data_dir, "out": out}
    code = run_on_ranks(gpus, device, "eval", "passk", checkpoint, **common, as_json=as_json)
    if code is not None:
        return code
    paper = build_exams([task], questions, data_dir=data_dir)[0]
    desk = EvalSession.open(checkpoint, device, out)
    world = desk.world
    key = {**desk.exam_key(paper), "samples": samples, "temperature": temperature, "seed": seed}
    name = f"passk-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]}"
    kept = (
        JsonlWriter(desk.folder / f"{_safe_file_name(paper.name)}-{name}.jsonl")
        if desk.folder and world.is_main
        else None
    )
    right = world.all_gather_object([line["right"] for line in read_jsonl(kept.path)] if kept else [])[0]
    told = desk.make_progress(f"{paper.name} pass@k")
    while len(right) < len(paper.questions):
        first = len(right) + world.rank * QUESTIONS_PER_SAVE
        here = Exam(paper.name, paper.task, paper.questions[first : first + QUESTIONS_PER_SAVE])
        drawn = sample_answers(desk.engine, here, samples, temperature, first, seed) if here.questions else []
        for line in chain(*world.all_gather_object([_sample_line(answers) for answers in drawn])):
            right.append(line["right"])
            if kept:
                kept.append(line)
        if world.is_main:
            told(len(right), len(paper.questions))
    if world.is_main:
        found = measure_pass_at_k(paper.name, right, samples, ks)
        desk.record_measurements(found)
        print_measurements(found, as_json)
    world.close()
    return 0


def _sample_line(answers: Sequence[ExamAnswer]) -> dict[str, Any]:
    """All answers to one question, and how many are right."""
    right = int(sum(one.score for one in answers))
    return {"prompt": answers[0].question.prompt, "right": right, "answers": [one.text for one in answers]}


def _split_names(given: Sequence[str]) -> list[str]:
    return [name for part in given for name in part.split(",") if name]


def _parse_ks(given: Sequence[str]) -> list[int]:
    if not given or not all(word.isdecimal() and int(word) for word in given):
        raise UserError(f"--k {','.join(given)}: expected whole numbers from 1, such as 1,5,10")
    return [int(word) for word in given]


def _answer_line(one: ExamAnswer) -> dict[str, Any]:
    q = one.question
    facts = {"task": q.task, "prompt": q.prompt, "expected": q.answer, "facts": q.facts, "choices": list(q.choices)}
    return {**facts, "answer": one.text, "score": one.score, "cropped": one.cropped}


def _safe_file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


@dataclass(frozen=True)
class EvalSession:
    """A checkpoint ready to be examined: its engine, what it is, and the folder of what is finished."""

    engine: Engine
    identity: str  # of the checkpoint's files
    stage_dir: Path | None  # RUN/<stage>, whose evals.jsonl learns of the accuracies; None: nobody does
    step: int
    folder: Path | None
    world: World

    @classmethod
    def open(cls, checkpoint: str, device: str, out: Path | None) -> EvalSession:
        """Load a checkpoint. Raises UserError where there is none."""
        from fledgling.infer.engine import Engine
        from fledgling.infer.runner import load_model
        from fledgling.record.checkpoint import resolve_checkpoint
        from fledgling.runtime.device import choose_dtype
        from fledgling.runtime.world import World

        world = World.start(device)
        place = world.device
        path = resolve_checkpoint(checkpoint)
        model, tokenizer, state = load_model(path, device=place)
        identity = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()[:16]
        stage_dir = path.parent.parent if path.parent.name == "checkpoints" else None
        step = int(state.get("step", 0))
        folder = out or (stage_dir / "exams" / path.name if stage_dir else None)
        engine = Engine(model, tokenizer, dtype=choose_dtype(place))
        return cls(engine, identity, None if out else stage_dir, step, folder, world)

    def exam_key(self, paper: Exam) -> dict[str, Any]:
        """What an exam's answers are a function of: the weights and the questions."""
        asked = json.dumps([(q.prompt, q.answer, q.choices) for q in paper.questions])
        return {
            "checkpoint": self.identity,
            "questions": len(paper.questions),
            "asked": hashlib.sha256(asked.encode()).hexdigest()[:16],
        }

    def answer_exam(self, paper: Exam, fresh: bool) -> list[ExamAnswer]:
        """The answers to an exam: those that are kept, and the others asked now by all ranks and kept as they come."""
        from fledgling.evals.chat import answer_exams
        from fledgling.record.jsonl import JsonlWriter

        key = self.exam_key(paper)
        lines, known = None, {}
        if self.folder and self.world.is_main:
            path = self.folder / f"{_safe_file_name(paper.name)}.jsonl"
            known = {} if fresh else read_saved_answers(path, key, paper)
            if known:
                print(f"{paper.name}: {len(known):,} answers kept in {path}", file=sys.stderr)
            else:
                path.unlink(missing_ok=True)
            lines = JsonlWriter(path)
            if not known:
                lines.append({"key": key})

        def keep(new: Mapping[int, ExamAnswer]) -> None:
            for place, one in new.items():
                if lines:
                    lines.append({"place": place, **_answer_line(one)})

        known = self.world.all_gather_object(known)[0]
        told = self.make_progress(paper.name) if self.world.is_main and len(known) < len(paper.questions) else None
        try:
            return answer_exams(self.engine, [paper], told, self.world, known, keep)[0]
        finally:
            if lines:
                lines.close()

    def make_progress(self, name: str):
        """A function (done, total) that shows an exam's progress and the time left on stderr."""
        import time

        from fledgling.record.progress_bar import ProgressBar

        display, began = ProgressBar(name), time.monotonic()

        def told(done: int, total: int) -> None:
            display.update(done, total, {}, time.monotonic() - began)
            if done >= total:
                display.close()

        return told

    def record_measurements(self, found: list[Measurement]) -> None:
        """Add accuracies to the stage's evals.jsonl, but none of fewer questions than stand there for this step."""
        from fledgling.record import Recorder, read_jsonl

        if self.stage_dir is None:
            return
        there = {
            line.get("name"): line.get("n") or 0
            for line in read_jsonl(self.stage_dir / "evals.jsonl")
            if line.get("step") == self.step
        }
        with Recorder(self.stage_dir, self.stage_dir.name, self.step, quiet=True) as recorder:
            for m in found:
                if "/" not in m.name and (m.n or 0) >= there.get(m.name, 0):
                    recorder.log_evaluation(self.step, m.name, m.value, m.low, m.high, m.n, m.baseline)


def read_saved_answers(path: Path, key: dict[str, Any], paper: Exam) -> dict[int, ExamAnswer]:
    """The answers that a file of this module's keeps under the same key, by the place of their question."""
    from fledgling.evals.chat import ExamAnswer
    from fledgling.record import read_jsonl

    header, *lines = read_jsonl(path) or [{}]
    if header.get("key") != key:
        return {}
    return {
        line["place"]: ExamAnswer(paper.questions[line["place"]], line["answer"], line["score"], line["cropped"])
        for line in lines
        if line.get("place") in range(len(paper.questions))
    }


def print_measurements(found: Sequence[Measurement], as_json: bool) -> None:
    """Print measurements as JSON or as a table."""
    if as_json:
        print(json.dumps([asdict(m) for m in found], indent=2))
        return
    width = max(20, *(len(m.name) for m in found))
    for m in found:
        chance = f"   chance {m.chance:.3f}" if m.chance else ""
        best = "" if m.baseline is None else f"   best constant answer {m.baseline:.3f}"
        print(f"{m.name:{width}} {m.value:.4f}  [{m.low:.4f}, {m.high:.4f}]  n {m.n}{chance}{best}")
