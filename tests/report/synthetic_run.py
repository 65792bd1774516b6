"""A synthetic run of four stages, written by the recorder; `make_run(path)` can also be called by hand."""

import json
import math
import random
from pathlib import Path

from fledgling.config import dump_toml, load_recipe
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.record import Recorder, write_json
from fledgling.runtime.system_environment import collect_environment

PEAK_FLOPS = 1e12  # of the synthetic machine
STAGES = {
    "pretrain": (500, 3.2, 5.6),
    "midtrain": (150, 1.9, 2.3),
    "sft": (400, 0.55, 1.5),
    "rl": (60, 0.0, 0.1),
}
TASKS = {
    "arithmetic": (0.02, 0.99, 0.9),
    "counting": (0.22, 0.96, 0.85),
    "spelling": (0.0, 0.9, 0.7),
    "stdlib": (0.05, 0.93, 0.9),
}
PROMPTS = (
    "What is 12 + 30?",
    "Spell the word otter.",
    "What does os.getcwd do?",
    "Who are you?",
    "The list is",
)
ANSWERS = (
    "the the of of\nself.self.",
    "The module is a function of the list.",
    "It returns 42, I think: the answer of the sum.",
    "12 + 30 = 42.",
)


def interval(share: float, n: int) -> tuple[float, float]:
    half = 1.96 * math.sqrt(max(share * (1 - share), 0.002) / n)
    return max(0.0, share - half), min(1.0, share + half)


def _work(recorder: Recorder, name: str, steps: int, least: float, most: float, chance: random.Random) -> None:
    for step in range(1, steps + 1):
        loss = least + (most - least) * math.exp(-5 * step / steps) + chance.gauss(0, 0.05)
        extra = {"reward": 0.45 + 0.3 * step / steps + chance.gauss(0, 0.05)} if name == "rl" else {}
        saved = {"save_stall": 0.01, "save_seconds": 0.2} if step % 20 == 1 and step > 1 else {}
        speed = chance.gauss(18_000, 250) * (0.2 if name == "rl" else 1) * (0.1 if step == 1 else 1)
        recorder.log_metrics(
            step,
            loss=loss,
            tokens=4096 * step,
            training_seconds=4096 * step / 20_000,
            tokens_per_second=speed,
            mfu=speed / 47_000,
            peak_flops=PEAK_FLOPS,
            **extra,
            **saved,
        )


def _measure(recorder: Recorder, name: str, place: int, steps: int) -> None:
    for part in range(5):
        step, way = steps * part // 4, (place + part / 4) / 4
        bits = 1.5 + 3 * math.exp(-6 * way) - 0.02 * way
        recorder.log_evaluation(step, "bits_per_byte", bits, bits - 0.015, bits + 0.015, 40_000)
        if place:
            for task, (first, last, unseen) in TASKS.items():
                share = first + (last - first) / (1 + math.exp(-12 * (way - 0.6)))
                for suffix, factor in (("", 1.0), ("_test", unseen)):
                    low, high = interval(share * factor, 200)
                    constant = 0.6 if task == "counting" else 0.06
                    recorder.log_evaluation(step, task + suffix, share * factor, low, high, 200, constant)
        for i, prompt in enumerate(PROMPTS):
            recorder.log_sample(step, prompt, ANSWERS[min(3, max(0, place + part // 3 - (i % 2)))])


def make_run(path: Path, stages=tuple(STAGES), scale: float = 1.0, planned: bool = True) -> Path:
    """Writes a run of the given stages under `path`; scale shortens it."""
    chance = random.Random(1)
    recipe = load_recipe("quickstart", [f"run.out={json.dumps(str(path))}"])
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.toml").write_text(dump_toml(recipe))
    write_json(path / "environment.json", collect_environment())
    write_json(path / "tokenizer/training.json", {"vocab_size": 1024, "fingerprint": "5eed" * 16})
    shard = {"documents": 18_211, "tokens": 4_811_302, "files": {"tokens.bin": {"sha256": "ab12" * 16}}}
    write_json(path / "data/embedded-train/manifest.json", shard)
    if planned:
        write_json(path / "plan.json", make_plan(recipe, PlanSettings(price=0.4, peak_flops=PEAK_FLOPS)))
    for place, name in enumerate(stages):
        steps, least, most = STAGES[name]
        steps = max(8, round(steps * scale))
        with Recorder(path / name, name, steps, quiet=True) as recorder:
            _work(recorder, name, steps, least, most, chance)
            _measure(recorder, name, place, steps)
            recorder.log_notice("compiled for two cores")
            recorder._seconds_before = steps * 4096 / 18_000
            recorder.mark_done(tokens=4096 * steps, save_stall=0.21, save_seconds=0.2)
    return path
