"""`fledgling scaling inference`: accuracy against the number of samples, for checkpoints at equal FLOPs.

Samples are stored in OUT, one file a checkpoint, question by question; the same command resumes from there.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from fledgling.cli.options import DataDir, Device, Json
from fledgling.config import UserError

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
    seed
        Seed of the sampling noise.
    hold_out
        Number of the largest k that the fit of the law does not use.
    out
        Directory of the samples and the page.
    """
    from fledgling.evals.chat import build_exams
    from fledgling.evals.session import EvalSession
    from fledgling.record.evaluation_names import format_cases
    from fledgling.record.outside import require_no_part_of_run
    from fledgling.scaling.inference_scaling import (
        analyze_samples,
        build_inference_page,
        load_samples,
        sampling_to_json,
    )

    if not checkpoints:
        raise UserError("no checkpoint is named: expected one or several, such as runs/quickstart/sft")
    if samples < 2 or questions < 2 or not 0 < temperature < math.inf or hold_out < 1:
        options = f"--samples {samples} --questions {questions} --temperature {temperature} --hold-out {hold_out}"
        raise UserError(f"{options}: expected at least 2, 2, above 0 and 1")
    require_no_part_of_run(out)
    ks = [1 << i for i in range(samples.bit_length())]
    exam = build_exams([task], questions, data_dir=data_dir)[0]
    files = []
    for checkpoint in checkpoints:
        session = EvalSession.open(checkpoint, device)
        files.append(session.complete_samples_file(checkpoint, exam, samples, temperature, seed, out))
    named = zip(checkpoints, files, strict=True)
    analyses = [analyze_samples(load_samples(file, name), ks, hold_out) for name, file in named]
    page = build_inference_page(analyses, task, out / "inference.html")
    if as_json:
        models = [sampling_to_json(analysis) for analysis in analyses]
        print(json.dumps({"task": task, "models": models, "page": str(page)}, indent=2))
        return
    for analysis in analyses:
        clusters, unit = int(analysis.samples.clusters.max()) + 1, exam.questions[0].cluster_unit
        cases = format_cases(len(analysis.samples.correct), clusters, unit)
        print(f"{analysis.samples.name}: questions {cases}, {samples} samples of each")
        for i, k in enumerate(analysis.ks):
            values = "  ".join(f"{kind} {analysis.accuracy[kind][i].value:.3f}" for kind in analysis.accuracy)
            print(f"  k {k:<5} {values}  {analysis.tokens[i]:,.0f} tokens, {analysis.flops[i]:.2e} FLOPs a question")
        if law := analysis.law:
            print(f"  coverage = exp({law.a.value:.3f} k^{law.b.value:.3f}), error at the largest k {law.error:.4f}")
    print(page)
