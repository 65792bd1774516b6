"""`fledgling distill`: a teacher answers the prompts of a source; its answers are conversations to learn from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from fledgling.cli.options import ComputeDtype, DataDir, Device, Json
from fledgling.config import UserError


def distill(
    teacher: Path,
    source: str,
    out: Path,
    /,
    *,
    count: int = 1000,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
    dtype: ComputeDtype = "auto",
    as_json: Json = False,
) -> None:
    """Write a teacher's answers to the prompts of a source; sft learns from them as chat:OUT. Run it again to resume.

    Parameters
    ----------
    teacher
        A checkpoint, a stage or a run directory, or a Hugging Face directory.
    source
        A task or a set of conversations: arithmetic, smoltalk, chat:PATH ...; their own answers are not used.
    out
        The JSONL file; what it was made from is written next to it, as .json.
    count
        Answers to generate; a source with fewer rows is read again and again, at temperature 0 once.
    temperature
        Sampling temperature; 0 for the most probable answer.
    max_new_tokens
        Longest answer; one that does not end by then is left out.
    seed
        Seed of the prompts and of the sampling noise.
    """
    from fledgling.evals.session import EvalSession, hash_model, make_progress
    from fledgling.record.outside import require_outside_run
    from fledgling.tasks import load_source
    from fledgling.train.distill.texts import AnswerSettings, write_answers

    if count < 1 or max_new_tokens < 1 or not 0 <= temperature < math.inf:
        given = f"--count {count}, --max-new-tokens {max_new_tokens}, --temperature {temperature}"
        raise UserError(f"{given}: expected at least 1, 1 and 0, and finite")
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: expected a file that ends in .jsonl")
    require_outside_run(out.parent)
    prompts = load_source(source, data_dir)
    prompts.files()
    session = EvalSession.open(teacher, device, dtype, allow_hf=True)
    identity = hash_model(session.engine.source, session.engine.tokenizer)
    settings = AnswerSettings(count, seed, temperature, max_new_tokens)
    counts = write_answers(session.engine, identity, prompts, settings, out, make_progress(out.name))
    print(json.dumps(asdict(counts), indent=2) if as_json else f"{out}: {counts.describe()}")
