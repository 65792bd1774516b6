"""`fledgling scaling inference`: what more samples buy, for one checkpoint or several at equal FLOPs.

Draws are kept in OUT, a file a checkpoint, question by question; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledgling.cli.exams import TOGETHER, DataDir, Desk
from fledgling.cli.options import Device, Json
from fledgling.config import UserError

if TYPE_CHECKING:
    from fledgling.evals.chat import Exam

OUT = Path("runs/inference")


def inference(
    *checkpoints: str,
    task: str = "arithmetic",
    samples: int = 256,
    questions: int = 50,
    temperature: float = 1.0,
    seed: int = 0,
    hold: int = 2,
    data_dir: DataDir = None,
    out: Path = OUT,
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
    hold
        How many of the largest k the law does not see.
    out
        Where the draws and the page go.
    """
    from fledgling.evals.chat import exams
    from fledgling.scaling.inference import analyse, load, to_json
    from fledgling.scaling.inference_page import build

    if not checkpoints:
        raise UserError("no checkpoint is named: expected one or several, such as runs/quickstart/sft")
    if samples < 2 or questions < 2 or temperature <= 0 or hold < 1:
        given = f"--samples {samples} --questions {questions} --temperature {temperature} --hold {hold}"
        raise UserError(f"{given}: expected at least 2, 2, above 0 and 1")
    ks = [1 << i for i in range(samples.bit_length())]
    paper = exams([task], questions, data_dir=data_dir)[0]
    files = [drawn(one, paper, samples, temperature, seed, out, device) for one in checkpoints]
    found = [analyse(load(file), ks, hold) for file in files]
    page = build(found, task, out / "inference.html")
    if as_json:
        print(json.dumps({"task": task, "models": [to_json(one) for one in found], "page": str(page)}, indent=2))
        return
    for one in found:
        print(f"{one.draws.name}: {len(one.draws.right)} questions, {samples} draws of each")
        for i, k in enumerate(one.ks):
            values = "  ".join(f"{kind} {one.accuracy[kind][i].value:.3f}" for kind in one.accuracy)
            print(f"  k {k:<5} {values}  {one.tokens[i]:,.0f} tokens, {one.flops[i]:.2e} FLOPs a question")
        if one.law:
            law = one.law
            print(f"  coverage = exp({law.a.value:.3f} k^{law.b.value:.3f}), error at the largest k {law.error:.4f}")
    print(page)


def drawn(checkpoint: str, paper: Exam, samples: int, temperature: float, seed: int, out: Path, device: str) -> Path:
    """The file of a checkpoint's draws, made or completed now."""
    from fledgling.evals.chat import prompt_ids
    from fledgling.evals.passk import draw
    from fledgling.plan.flops import per_token_forward
    from fledgling.record.lines import Lines, read_lines

    desk = Desk.open(checkpoint, device, out)
    key = {**desk.key(paper), "samples": samples, "temperature": temperature, "seed": seed}
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    kept = Lines(out / f"draws-{paper.name}-{name}.jsonl")
    lines = read_lines(kept.path)
    if not lines:
        cost = per_token_forward(desk.engine.source.config)
        kept.append({"name": checkpoint, "flops_per_token": cost, **key})
    done, told = max(0, len(lines) - 1), desk.progress(f"{checkpoint} {paper.name}")
    while done < len(paper.questions):
        here = type(paper)(paper.name, paper.task, paper.questions[done : done + TOGETHER])
        for answers in draw(desk.engine, here, samples, temperature, done, seed):
            kept.append(line(answers, len(prompt_ids(desk.engine.tokenizer, answers[0].question))))
            done += 1
        told(done, len(paper.questions))
    return kept.path


def line(answers: list[Any], prompt_tokens: int) -> dict[str, Any]:
    """One question's draws."""
    return {
        "prompt": answers[0].question.prompt,
        "prompt_tokens": prompt_tokens,
        "answers": [one.text for one in answers],
        "scores": [one.score for one in answers],
        "logprobs": [one.logprob for one in answers],
        "tokens": [one.tokens for one in answers],
    }
