"""Measures how fast reinforcement learning samples, compared with plain generation by the same engine.

Rollouts are sampled, end at different lengths and call tools. The comparison is `fledgling bench infer`'s way: as many
different prompts of the same mean length, each with the same mean number of greedy tokens, in turn in one process. The
rollouts' share of a training step is in the metrics of training.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fledgling.bench.backends import EngineBackend
from fledgling.bench.infer import NoSpecialTokens
from fledgling.config import Recipe, UserError
from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.runtime.device import name_dtype, set_up_device
from fledgling.runtime.world import World
from fledgling.tasks import load_task
from fledgling.train.rl.build import require_valid_rl_config
from fledgling.train.rl.rollout_stream import RolloutStream


def measure_rollouts(recipe: Recipe, checkpoint: Path, rounds: int = 10) -> dict[str, Any]:
    """Times `rounds` rounds of the recipe's [rl] table with a checkpoint's weights, which stay as they are.

    Returns medians over rounds: tokens a second of rollouts; of plain answers, reading the prompts included, and of
    their further tokens alone; what rollouts reach of both. Raises UserError for no round, or settings that do not fit.
    """
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: expected at least 1")
    table = replace(recipe.rl, algorithm="grpo", kl_weight=0.0, epochs=1, minibatches=1)  # nothing is learned here
    world = World.start(recipe.run.device)
    require_valid_rl_config(table, world)
    setup = set_up_device(recipe.run, world)
    model, tokenizer, _ = load_model(checkpoint, world.device)
    engine = Engine(model, tokenizer, world.device, setup.engine_dtype)
    plain = EngineBackend(Engine(model, NoSpecialTokens({}), world.device, setup.engine_dtype))  # type: ignore[arg-type]
    tasks = {task: load_task(task, recipe.run.data_dir) for task, weight in table.tasks.items() if weight > 0}
    micro = table.micro_batch_size or table.prompts_per_round * table.group_size
    stream = RolloutStream(engine, table, tasks, recipe.seed, micro, world)
    generator, batch = torch.Generator().manual_seed(2), table.prompts_per_round * table.group_size
    samples: dict[str, list[float]] = {name: [] for name in ("rollouts", "whole", "further", "prompt", "answer")}
    for number in range(rounds + 1):
        stream.next()
        prompt, answer = _mean_prompt_length(stream, number), max(2, round(stream.round_metrics["length"]))
        prompts = torch.randint(model.config.vocab_size, (batch, prompt), generator=generator).tolist()
        times = plain.generate(prompts, answer)
        if not number:  # the first round reads what the tasks need, and warms up
            continue
        samples["rollouts"].append(stream.tokens_per_second)
        samples["whole"].append(batch * answer / sum(times))
        samples["further"].append(batch * (answer - 1) / sum(times[1:]))
        samples["prompt"].append(prompt)
        samples["answer"].append(stream.round_metrics["length"])
        print(f"\r{number}/{rounds} rounds", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    stream.close()
    medians = {name: median(values) for name, values in samples.items()}
    shares = {f"share_of_{name}": medians["rollouts"] / medians[name] for name in ("whole", "further")}
    return {"batch": batch, "dtype": name_dtype(setup.engine_dtype), **medians, **shares}


def _mean_prompt_length(stream: RolloutStream, number: int) -> int:
    """Returns the mean length of a round's prompts, in tokens."""
    lengths = [
        len(stream.prompt_tokens(number * stream.config.prompts_per_round + i))
        for i in range(stream.config.prompts_per_round)
    ]
    return max(1, round(sum(lengths) / len(lengths)))


def format_rollouts(result: dict[str, Any]) -> str:
    """Returns the result of `measure_rollouts` as a table."""
    return "\n".join(
        (
            f"{result['batch']} answers at once, {result['dtype']}: prompts of {result['prompt']:.0f} tokens, "
            f"answers of {result['answer']:.1f} on average",
            f"rollouts {result['rollouts']:>10,.0f} tok/s",
            f"plain answers{result['whole']:>8,.0f} tok/s with the reading of prompts: rollouts reach "
            f"{result['share_of_whole']:.0%}",
            f"{'':13}{result['further']:>8,.0f} tok/s of further tokens alone: {result['share_of_further']:.0%}",
        )
    )
