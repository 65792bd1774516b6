"""`fledgling scaling inference`: what more samples buy, for one checkpoint or several at equal FLOPs.

Draws are kept in OUT, a file a checkpoint, question by question; the same command goes on from there.
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
        A task whose answers are written.
    samples
        Answers drawn to each question; k are the powers of two up to it.
    questions
        How many; where a set has fewer, all.
    temperature
        Of the draws.
    hold_out
        How many of the largest k the law does not see.
    out
        Where the draws and the page go.
    """
    from fledgling.evals.chat import build_exams
    from fledgling.scaling.inference import analyze_samples, build_inference_page, load_samples, sampling_to_json

    if not checkpoints:
        raise UserError("no checkpoint is named: expected one or several, such as runs/quickstart/sft")
    if samples < 2 or questions < 2 or temperature <= 0 or hold_out < 1:
        given = f"--samples {samples} --questions {questions} --temperature {temperature} --hold {hold_out}"
        raise UserError(f"{given}: expected at least 2, 2, above 0 and 1")
    ks = [1 << i for i in range(samples.bit_length())]
    paper = build_exams([task], questions, data_dir=data_dir)[0]
    files = [complete_samples_file(one, paper, samples, temperature, seed, out, device) for one in checkpoints]
    found = [analyze_samples(load_samples(file), ks, hold_out) for file in files]
    page = build_inference_page(found, task, out / "inference.html")
    if as_json:
        print(
            json.dumps({"task": task, "models": [sampling_to_json(one) for one in found], "page": str(page)}, indent=2)
        )
        return
    for one in found:
        print(f"{one.samples.name}: {len(one.samples.correct)} questions, {samples} draws of each")
        for i, k in enumerate(one.ks):
            values = "  ".join(f"{kind} {one.accuracy[kind][i].value:.3f}" for kind in one.accuracy)
            print(f"  k {k:<5} {values}  {one.tokens[i]:,.0f} tokens, {one.flops[i]:.2e} FLOPs a question")
        if one.law:
            law = one.law
            print(f"  coverage = exp({law.a.value:.3f} k^{law.b.value:.3f}), error at the largest k {law.error:.4f}")
    print(page)


def complete_samples_file(
    checkpoint: str, paper: Exam, samples: int, temperature: float, seed: int, out: Path, device: str
) -> Path:
    """The file of a checkpoint's draws, made or completed now."""
    from fledgling.evals.chat import encode_question
    from fledgling.evals.passk import sample_answers
    from fledgling.evals.session import QUESTIONS_PER_SAVE, EvalSession, make_progress
    from fledgling.plan.flops import forward_flops_per_token
    from fledgling.record.jsonl import JsonlWriter, read_jsonl

    desk = EvalSession.open(checkpoint, device)
    key = {**desk.exam_key(paper), "samples": samples, "temperature": temperature, "seed": seed}
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    kept = JsonlWriter(out / f"draws-{paper.name}-{name}.jsonl")
    lines = read_jsonl(kept.path)
    if not lines:
        cost = forward_flops_per_token(desk.engine.source.config)
        kept.append({"name": checkpoint, "flops_per_token": cost, **key})
    done, told = max(0, len(lines) - 1), make_progress(f"{checkpoint} {paper.name}")
    while done < len(paper.questions):
        here = type(paper)(paper.name, paper.task, paper.questions[done : done + QUESTIONS_PER_SAVE])
        for answers in sample_answers(desk.engine, here, samples, temperature, done, seed):
            kept.append(sample_record(answers, len(encode_question(desk.engine.tokenizer, answers[0].question))))
            done += 1
        told(done, len(paper.questions))
    return kept.path


def sample_record(answers: list[Any], prompt_tokens: int) -> dict[str, Any]:
    """One question's draws."""
    return {
        "prompt": answers[0].question.prompt,
        "prompt_tokens": prompt_tokens,
        "answers": [one.text for one in answers],
        "scores": [one.score for one in answers],
        "logprobs": [one.logprob for one in answers],
        "tokens": [one.num_tokens for one in answers],
    }
