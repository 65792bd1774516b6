"""What the model wrote during training: prompts with their answers over time, as many as a page shows."""

from typing import Any

from fledgling.report.run_data import RunData, SampledText

MAX_PROMPTS, MAX_ANSWERS, MAX_TEXT_CHARACTERS = 16, 8, 1200


def sample_groups(run: RunData) -> list[dict[str, Any]]:
    """Returns prompts in the order of their first use, each with the answers over training."""
    groups: dict[str, list[SampledText]] = {}
    for stage in run.stages:
        for sample in stage.samples:
            groups.setdefault(sample.prompt, []).append(sample)
    shown = []
    for prompt, samples in list(groups.items())[:MAX_PROMPTS]:
        count = min(MAX_ANSWERS, len(samples))
        chosen = [samples[round(i * (len(samples) - 1) / max(1, count - 1))] for i in range(count)]
        answers = [{"stage": s.stage, "step": f"{s.step:,}", "text": _shorten_sample(s.text)} for s in chosen]
        shown.append({"prompt": _shorten_sample(prompt), "answers": answers})
    return shown


def describe_left_out_samples(run: RunData) -> str:
    """Returns a sentence on the recorded answers that `sample_groups` leaves out, or ""."""
    samples = [sample.prompt for stage in run.stages for sample in stage.samples]
    prompts = list(dict.fromkeys(samples))
    shown = sum(min(MAX_ANSWERS, samples.count(prompt)) for prompt in prompts[:MAX_PROMPTS])
    if shown == len(samples):
        return ""
    return f"{shown} of {len(samples)} recorded answers are shown; all are in samples.jsonl of each stage."


def _shorten_sample(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[:MAX_TEXT_CHARACTERS] + " …"
