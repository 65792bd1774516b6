"""A synthetic sweep: run directories whose losses follow a known law, in the format of the training loop."""

import json
from pathlib import Path

import numpy as np

from fledgling.config import ModelConfig, load_recipe
from fledgling.plan.flops import training_flops_per_token
from fledgling.plan.parameters import count_parameters
from fledgling.plan.plan import make_plan
from fledgling.plan.scaling_laws import WITH_HEAD, ChinchillaLoss, parameter_counts
from fledgling.record import write_json
from fledgling.scaling.results import format_flops

LAW = ChinchillaLoss(E=0.75, A=190.0, alpha=0.42, B=420.0, beta=0.44)  # bits per byte; N: matrices + head
VOCABULARY, CONTEXT = 4096, 256
BATCH = 4096


def loss(depth: int, tokens: int) -> float:
    """Returns the law's loss of a depth after `tokens` tokens."""
    config = ModelConfig(depth=depth, context=CONTEXT, preset="nanochat-2025").resolve(VOCABULARY)
    return LAW.loss(parameter_counts(count_parameters(config))[WITH_HEAD], tokens)


def make_run(path: Path, depth: int, budget: float, noise: float = 0.0, batch: int = BATCH) -> Path:
    """Writes one finished run whose log loss is off by `noise`."""
    config = ModelConfig(depth=depth, context=CONTEXT, preset="nanochat-2025").resolve(VOCABULARY)
    steps = round(budget / (training_flops_per_token(config) * batch))
    pinned = [
        f"model.depth={depth}",
        f"pretrain.steps={steps}",
        f"pretrain.batch_tokens={batch}",
        "pretrain.micro_batch_size=1",
        f"run.out={json.dumps(str(path))}",
    ]
    value = loss(depth, steps * batch) * float(np.exp(noise))
    write_json(path / "cell.json", {"depth": depth, "budget": budget})
    write_json(path / "plan.json", make_plan(load_recipe("scaling", pinned)))
    write_json(path / "pretrain/done.json", {"stage": "pretrain", "step": steps, "seconds": budget / 2e11})
    evaluation = {"name": "bits_per_byte", "value": value, "low": value - 0.02, "high": value + 0.02, "n": 512}
    (path / "pretrain/evals.jsonl").write_text(json.dumps({"stage": "pretrain", "step": steps, **evaluation}) + "\n")
    return path


def make_sweep(
    path: Path, depths=(1, 2, 3, 4), budgets=(1e13, 2e13, 4e13), noise: float = 0.003, seed: int = 0, batch: int = BATCH
) -> Path:
    """Writes the runs of every depth at every budget, and the manifests of the shards."""
    rng = np.random.default_rng(seed)
    for budget in budgets:
        for depth in depths:
            make_run(path / f"d{depth}-{format_flops(budget)}", depth, budget, noise * rng.standard_normal(), batch)
    for split, tokens in (("train", 40_000_000), ("validation", 800_000)):
        manifest = {"documents": 1000, "tokens": tokens, "metadata": {"split": split, "bytes": 3.5 * (tokens - 1000)}}
        write_json(path / "shared/data" / f"text-{split}-0" / "manifest.json", manifest)
    return path
