"""`fledgling scaling inference`: accuracy against the number of samples, for checkpoints at equal FLOPs.

Samples are stored in OUT, one file a checkpoint, question by question; the same command resumes from there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.cli.eval_chat import DataDir
from fledgling.cli.options import Device, Json
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.chat import Exam

DEFAULT_OUT = Path("runs/inference")


def inference(
    *checkpoints: str,
    task: str = "arithmetic",
    samples: int = 256,
    questions: int = 50,
    temperature: float = 1.0,
    seed: int = 0,
    hold_out: int = 2,
    data_dir: DataDir = None,
    out: Path = DEFAULT_OUT,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Accuracy against k samples (pass@k, majority vote, best of k), the coverage law, and OUT/inference.html.

    Parameters
    ----------
    checkpoints
        Checkpoints, stages or run directories; several are compared at equal FLOPs.
    task
        A task with written answers.
    samples
        Answers sampled for each question; k are the powers of two up to it.
    questions
        Maximum number of questions.
    temperature
        Sampling temperature.
    hold_out
        Number of the largest k that the fit of the law does not use.
    out
        Directory of the samples and the page.
    """
    from fledgling.evals.chat import build_exams
    from fledgling.scaling.inference import analyze_samples, build_inference_page, load_samples, sampling_to_json

    if not checkpoints:
        raise UserError("no checkpoint is named: expected one or several, such as runs/quickstart/sft")
    if samples < 2 or questions < 2 or temperature <= 0 or hold_out < 1:
        options = f"--samples {samples} --questions {questions} --temperature {temperature} --hold-out {hold_out}"
        raise UserError(f"{options}: expected at least 2, 2, above 0 and 1")
    ks = [1 << i for i in range(samples.bit_length())]
    exam = build_exams([task], questions, data_dir=data_dir)[0]
    files = [complete_samples_file(path, exam, samples, temperature, seed, out, device) for path in checkpoints]
    analyses = [analyze_samples(load_samples(file), ks, hold_out) for file in files]
    page = build_inference_page(analyses, task, out / "inference.html")
    if as_json:
        models = [sampling_to_json(analysis) for analysis in analyses]
        print(json.dumps({"task": task, "models": models, "page": str(page)}, indent=2))
        return
    for analysis in analyses:
        print(f"{analysis.samples.name}: {len(analysis.samples.correct)} questions, {samples} samples of each")
        for i, k in enumerate(analysis.ks):
            values = "  ".join(f"{kind} {analysis.accuracy[kind][i].value:.3f}" for kind in analysis.accuracy)
            print(f"  k {k:<5} {values}  {analysis.tokens[i]:,.0f} tokens, {analysis.flops[i]:.2e} FLOPs a question")
        if law := analysis.law:
            print(f"  coverage = exp({law.a.value:.3f} k^{law.b.value:.3f}), error at the largest k {law.error:.4f}")
    print(page)


def complete_samples_file(
    checkpoint: str, exam: Exam, samples: int, temperature: float, seed: int, out: Path, device: str
) -> Path:
    """Samples the answers that a checkpoint's file does not have yet; returns the file."""
    from fledgling.evals.chat import encode_question
    from fledgling.evals.passk import sample_answers
    from fledgling.evals.session import QUESTIONS_PER_SAVE, EvalSession, make_progress
    from fledgling.plan.flops import forward_flops_per_token
    from fledgling.record.jsonl import JsonlWriter, read_jsonl

    session = EvalSession.open(checkpoint, device)
    key = {**session.exam_key(exam), "samples": samples, "temperature": temperature, "seed": seed}
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    writer = JsonlWriter(out / f"draws-{exam.name}-{name}.jsonl")
    lines = read_jsonl(writer.path)
    if not lines:
        cost = forward_flops_per_token(session.engine.source.config)
        writer.append({"name": checkpoint, "flops_per_token": cost, **key})
    done, report_progress = max(0, len(lines) - 1), make_progress(f"{checkpoint} {exam.name}")
    while done < len(exam.questions):
        part = type(exam)(exam.name, exam.task, exam.questions[done : done + QUESTIONS_PER_SAVE])
        for answers in sample_answers(session.engine, part, samples, temperature, done, seed):
            prompt_tokens = len(encode_question(session.engine.tokenizer, answers[0].question))
            writer.append(sample_record(answers, prompt_tokens))
            done += 1
        report_progress(done, len(exam.questions))
    return writer.path


def sample_record(answers: list[Any], prompt_tokens: int) -> dict[str, Any]:
    """Returns the samples of one question as a line of the file."""
    return {
        "prompt": answers[0].question.prompt,
        "prompt_tokens": prompt_tokens,
        "answers": [answer.text for answer in answers],
        "scores": [answer.score for answer in answers],
        "logprobs": [answer.logprob for answer in answers],
        "tokens": [answer.num_tokens for answer in answers],
    }
