"""Evaluation of a checkpoint so that a stopped evaluation resumes: exams, pass@k and CORE.

Answers and finished tasks are saved as they come, by default in RUN/STAGE/exams/step-N/; a session with the same
checkpoint and settings reads them and resumes. `record` appends measurements to the stage's evals.jsonl, where the
report reads them. All ranks of a session answer, and the main rank writes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from fledgling.config import UserError
from fledgling.corpora.prepared_data import digest_read_files
from fledgling.evals.chat import Exam, ExamAnswer, ProgressCallback, answer_exams, encode_question
from fledgling.evals.core import run_core
from fledgling.evals.core_log import CoreLog
from fledgling.evals.core_results import CoreSettings, CoreTaskResult
from fledgling.evals.likelihood import Scorer
from fledgling.evals.measurement import Measurement
from fledgling.evals.passk import sample_answers
from fledgling.evals.saved_answers import (
    answer_to_json,
    find_answers_file,
    read_correct_counts,
    read_saved_answers,
    safe_file_name,
    sample_to_json,
)
from fledgling.export.read_hf import read_hf
from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.model.transformer import Transformer
from fledgling.plan.flops import forward_flops_per_token
from fledgling.record.checkpoint import resolve_checkpoint
from fledgling.record.evaluation_log import EvaluationLog
from fledgling.record.jsonl import JsonlWriter, read_jsonl
from fledgling.record.progress_bar import ProgressBar
from fledgling.record.run_lock import hold_lock
from fledgling.runtime.device import DTYPES, choose_dtype, name_dtype
from fledgling.runtime.device_memory import keep_freed_memory
from fledgling.runtime.world import World
from fledgling.tasks.core import CoreTask
from fledgling.tasks.task import Task
from fledgling.text.tokenizer import Tokenizer

QUESTIONS_PER_SAVE = 16  # of pass@k that each rank samples between two saves


@dataclass(frozen=True)
class EvalSession:
    """A loaded checkpoint: its path, its state, an engine, the ranks, and the stage of a run that it belongs to."""

    checkpoint: Path
    state: dict[str, Any]
    engine: Engine
    world: World
    stage_dir: Path | None  # RUN/STAGE; None for a checkpoint outside a run

    @classmethod
    def open(
        cls,
        checkpoint: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        allow_hf: bool = False,
        untrained: bool = False,
    ) -> EvalSession:
        """Loads a checkpoint on all ranks. Raises UserError where there is none.

        Args:
            checkpoint: a checkpoint, a stage or a run directory; with `allow_hf` also a Hugging Face directory.
            dtype: float32 or bfloat16; auto is the fastest of the hardware.
            untrained: replaces the weights with random ones.
        """
        world = World.start(device)
        keep_freed_memory()
        if allow_hf:
            path, model, tokenizer, state = load_any_model(checkpoint, world.device)
        else:
            path = resolve_checkpoint(checkpoint)
            model, tokenizer, state = load_model(path, device=world.device)
        if untrained:
            randomize_weights(model)
            model.to(world.device)
        engine = Engine(model, tokenizer, dtype=choose_dtype(world.device) if dtype == "auto" else DTYPES[dtype])
        return cls(path, state, engine, world, find_stage_dir(path, state))

    @property
    def exams_dir(self) -> Path | None:
        """RUN/STAGE/exams/CHECKPOINT, where answers are saved; None for a checkpoint outside a run."""
        return self.stage_dir / "exams" / self.checkpoint.name if self.stage_dir else None

    def record(self, measurements: Sequence[Measurement]) -> None:
        """Appends measurements to the evals.jsonl of the checkpoint's stage, if it has one; says if it cannot."""
        if self.stage_dir and self.world.is_main:
            try:
                record_measurements(self.stage_dir, int(self.state.get("step", 0)), measurements)
            except UserError as error:  # of a read-only run: what was measured is printed all the same
                print(f"not recorded: {error}", file=sys.stderr)

    # ---- exams -----------------------------------------------------------------------------------

    def exam_key(self, exam: Exam) -> dict[str, Any]:
        """Returns what an exam's answers and scores are a function of.

        That is the checkpoint's files, the dtype, the questions, and what judges the answers: the facts of questions,
        such as tests of a program, and a user's own code.
        """
        questions = json.dumps([(q.prompt, q.answer, q.choices) for q in exam.questions])
        code = list_code(exam.task)
        facts = [q.facts for q in exam.questions] if any(q.facts for q in exam.questions) else []
        scoring = json.dumps([facts, digest_read_files(code)], sort_keys=True, default=str) if facts or code else ""
        judged = {"judged": hashlib.sha256(scoring.encode()).hexdigest()[:16]} if scoring else {}
        return {
            **judged,
            "checkpoint": hashlib.sha256((self.checkpoint / "manifest.json").read_bytes()).hexdigest()[:16],
            "dtype": name_dtype(self.engine.dtype),
            "questions": len(exam.questions),
            "questions_digest": hashlib.sha256(questions.encode()).hexdigest()[:16],
        }

    def run_exam(
        self, exam: Exam, folder: Path | None, fresh: bool = False, log: Callable[[str], None] = lambda text: None
    ) -> list[ExamAnswer]:
        """Returns the answers to an exam; saved ones are read, new ones are saved in `folder` as they come.

        fresh: ignores saved answers. log: is called with one line when saved answers are read.
        """
        with self._lock_answers(folder):
            return self._run_locked_exam(exam, folder, fresh, log)

    @contextmanager
    def _lock_answers(self, folder: Path | None) -> Iterator[None]:
        """Keeps other evaluations from writing the same answers, which are counted by their lines."""
        with ExitStack() as locks:
            with self.world.main_process_first():
                if folder and self.world.is_main:
                    locks.enter_context(hold_lock(folder, "this evaluation", remedy="save elsewhere with --out DIR"))
            yield

    def _run_locked_exam(
        self, exam: Exam, folder: Path | None, fresh: bool, log: Callable[[str], None]
    ) -> list[ExamAnswer]:
        key = self.exam_key(exam)
        writer, saved = None, {}
        if folder and self.world.is_main:
            path = folder / f"{safe_file_name(exam.name)}.jsonl"
            saved = {} if fresh else read_saved_answers(path, key, exam)
            writer = JsonlWriter(path)
            if saved:
                log(f"{exam.name}: read {len(saved):,} saved answers from {path}")
            else:
                if (others := len(read_jsonl(path)) - 1) > 0 and not fresh:
                    log(f"{exam.name}: {others:,} saved answers are of other weights, questions or scoring: deleted")
                path.unlink(missing_ok=True)
                writer.append({"key": key})

        def save(new_answers: Mapping[int, ExamAnswer]) -> None:
            for index, answer in new_answers.items():
                if writer:
                    writer.append({"index": index, **answer_to_json(answer)})

        saved = self.world.all_gather_object(saved)[0]
        show = self.world.is_main and len(saved) < len(exam.questions)
        progress = make_progress(exam.name) if show else None
        try:
            return answer_exams(self.engine, [exam], progress, self.world, saved, save)[0]
        finally:
            if writer:
                writer.close()

    def count_correct_samples(
        self, exam: Exam, samples: int, temperature: float, seed: int, folder: Path | None
    ) -> list[int]:
        """Returns for each question how many of `samples` sampled answers are right, for pass@k.

        The arguments are those of `complete_samples_file`; `folder` may be None, then nothing is read or saved.
        """
        with self._lock_answers(folder):
            return self._count_locked_samples(exam, samples, temperature, seed, folder)

    def _count_locked_samples(
        self, exam: Exam, samples: int, temperature: float, seed: int, folder: Path | None
    ) -> list[int]:
        world = self.world
        key = {**self.exam_key(exam), "samples": samples, "temperature": temperature, "seed": seed}
        writer = (
            JsonlWriter(find_answers_file(folder, f"{safe_file_name(exam.name)}-passk", key))
            if folder and world.is_main
            else None
        )
        correct = world.all_gather_object(read_correct_counts(writer.path) if writer else [])[0]
        progress = make_progress(f"{exam.name} pass@k")
        while len(correct) < len(exam.questions):
            first = len(correct) + world.rank * QUESTIONS_PER_SAVE
            part = Exam(exam.name, exam.task, exam.questions[first : first + QUESTIONS_PER_SAVE])
            answers = sample_answers(self.engine, part, samples, temperature, first, seed) if part.questions else []
            for line in chain(*world.all_gather_object([sample_to_json(sampled) for sampled in answers])):
                correct.append(line["correct"])
                if writer:
                    writer.append(line)
            if world.is_main:
                progress(len(correct), len(exam.questions))
        if writer:
            writer.close()
        return correct

    def complete_samples_file(
        self, name: str, exam: Exam, samples: int, temperature: float, seed: int, folder: Path
    ) -> Path:
        """Samples the answers that a file in `folder` does not have yet; returns the file.

        Its first line has `name` and the forward FLOPs of a token. Each other line has the sampled answers to one
        question with their scores, log-probabilities and numbers of tokens.

        Args:
            exam: with its questions; folder: of the file.
            samples: answers to each question; temperature, seed: of their sampling.
        """
        key = {**self.exam_key(exam), "samples": samples, "temperature": temperature, "seed": seed}
        writer = JsonlWriter(find_answers_file(folder, f"draws-{safe_file_name(exam.name)}", key))
        lines = read_jsonl(writer.path)
        if not lines:
            writer.append({"name": name, "flops_per_token": forward_flops_per_token(self.engine.source.config), **key})
        done, progress = max(0, len(lines) - 1), make_progress(f"{name} {exam.name}")
        while done < len(exam.questions):
            part = Exam(exam.name, exam.task, exam.questions[done : done + QUESTIONS_PER_SAVE])
            for answers in sample_answers(self.engine, part, samples, temperature, done, seed):
                prompt = encode_question(self.engine.tokenizer, answers[0].question)
                writer.append(
                    {
                        "prompt": answers[0].question.prompt,
                        "cluster": answers[0].question.cluster,
                        "prompt_tokens": len(prompt),
                        "answers": [answer.text for answer in answers],
                        "scores": [answer.score for answer in answers],
                        "logprobs": [answer.logprob for answer in answers],
                        "tokens": [answer.num_tokens for answer in answers],
                    }
                )
                done += 1
            progress(done, len(exam.questions))
        writer.close()
        return writer.path

    # ---- CORE ------------------------------------------------------------------------------------

    def make_scorer(self) -> Scorer:
        """Returns a scorer of continuations that uses all ranks."""
        return Scorer(self.engine, self.world)

    def run_core(
        self,
        tasks: Sequence[CoreTask],
        settings: CoreSettings,
        finished: Path | None = None,
        log_path: Path | None = None,
    ) -> list[CoreTaskResult]:
        """Returns the scores of CORE tasks; finished tasks are read from a file and saved there.

        finished: the file; by default core.jsonl in the stage's exams, or next to a checkpoint outside a run.
        """
        is_main = self.world.is_main
        if finished is None:
            outside = self.checkpoint.with_name(f"{self.checkpoint.name}.core.jsonl")
            finished = self.exams_dir / "core.jsonl" if self.exams_dir else outside
        progress_bar, started = ProgressBar("core") if is_main else None, time.monotonic()

        def show_progress(label: str, done: float, total: float) -> None:
            if progress_bar:
                progress_bar.update(int(done), max(1, int(total)), {"task": label}, time.monotonic() - started)

        log = CoreLog(log_path) if log_path and is_main else None
        model_key = f"{hash_model(self.engine.source, self.engine.tokenizer)} {self.engine.dtype}"
        try:
            return run_core(self.make_scorer(), tasks, settings, model_key, finished, log, show_progress)
        finally:
            if progress_bar:
                progress_bar.close()
            if log:
                log.close()


def list_code(task: Task) -> list[Path]:
    """Returns the files of a user's code that judge the answers to a task."""
    try:
        return [file for file in task.files() if file.suffix == ".py"]
    except UserError:  # the rows of a public set that training would read are not here
        return []


def find_stage_dir(checkpoint: Path, state: Mapping[str, Any]) -> Path | None:
    """Returns RUN/STAGE of a checkpoint RUN/STAGE/checkpoints/NAME, None for a checkpoint outside a run.

    Links and relative paths are resolved: `.` within a stage, or a link to a checkpoint, is of that stage.
    """
    checkpoint = checkpoint.resolve()
    stage_dir = checkpoint.parent.parent
    is_in_run = checkpoint.parent.name == "checkpoints" and stage_dir.name == state.get("stage")
    return stage_dir if is_in_run and (stage_dir / "metrics.jsonl").is_file() else None


def record_measurements(stage_dir: Path, step: int, measurements: Sequence[Measurement]) -> None:
    """Appends measurements of `step` to a stage's evals.jsonl, which a run in training may be writing."""
    writer = JsonlWriter(stage_dir / "evals.jsonl", is_shared=True)
    log = EvaluationLog(writer, stage_dir.name)
    for measurement in measurements:
        log.append(step, asdict(measurement))
    writer.close()


def make_progress(name: str) -> ProgressCallback:
    """Returns a function (done, total) that shows progress and the time left on stderr."""
    progress_bar, started = ProgressBar(name), time.monotonic()

    def show_progress(done: int, total: int) -> None:
        progress_bar.update(done, total, {}, time.monotonic() - started)
        if done >= total:
            progress_bar.close()

    return show_progress


# ---- models --------------------------------------------------------------------------------------


def load_any_model(checkpoint: str | Path, device: torch.device) -> tuple[Path, Transformer, Tokenizer, dict[str, Any]]:
    """Returns path, model, tokenizer and state of a checkpoint, a stage, a run, or a Hugging Face directory."""
    path = Path(checkpoint)
    if (path / "config.json").is_file():
        source = read_hf(path)
        model = Transformer(source.config)
        model.load_state_dict(source.state)
        return path, model.to(device).eval(), source.tokenizer, {}
    path = resolve_checkpoint(path)
    return path, *load_model(path, device=device)


def randomize_weights(model: Transformer, seed: int = 0) -> None:
    """Fills a model with random weights, including those initialized to zero, which make all choices equally likely."""
    generator = torch.Generator().manual_seed(seed)
    model.cpu().initialize(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)


def hash_model(model: Transformer, tokenizer: Tokenizer) -> str:
    """Returns SHA-256 over the weights, the model's configuration and the tokenizer: what determines the scores."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    digest.update(tokenizer.fingerprint().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
