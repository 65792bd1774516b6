"""[rl]: four steps on small problems."""

from typing import Any

import pytest
import torch

from fledgling.config import ModelConfig, OptimizerConfig, RLConfig
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.world import World
from fledgling.train import loop
from fledgling.train.critic import attach_critic
from fledgling.train.rl.reward import RewardScorer
from fledgling.train.rl.rollout_stream import RolloutStream
from fledgling.train.stage import Stage
from tests.train.rl.small_problems import BANDIT, COPY, Problem, tokenizer

from .outcomes import Case, differ

PPO = {"algorithm": "ppo"}
TWICE = {"epochs": 2}
DENSE = Problem("dense", ("Choose.", "Go."), lambda _, answer: sum(map(ord, answer)) % 11 / 10, lambda _: ("a",), 3)
RL: dict[str, Case] = {
    "algorithm": ("ppo", {}),
    "tasks": ({COPY.name: 1.0, DENSE.name: 1.0}, {}),
    "rewards": ({"task": 1.0, "format": 1.0}, {}),
    "length_penalty": (0.5, {}),
    "length_penalty_free_tokens": (0, {"length_penalty": 0.5}),
    "prompts_per_round": (3, {}),
    "group_size": (6, {}),
    "epochs": (2, {}),
    "minibatches": (2, {}),
    "clip_ratio": (0.001, TWICE),
    "clip_ratio_high": (0.001, TWICE),
    "kl_weight": (0.5, {}),
    "kl_target": (1e-9, {"kl_weight": 0.5}),
    "entropy_weight": (0.5, {}),
    "temperature": (0.5, {}),
    "max_new_tokens": (2, {}),
    "advantage_normalization": ("zscore", {}),
    "loss_normalization": ("sequence", {}),
    "stale_rounds": (1, {}),
    "drop_uniform_groups": (False, {"tasks": {BANDIT.name: 1.0}}),
    "gamma": (0.5, PPO),
    "gae_lambda": (0.5, PPO),
    "value_weight": (2.0, PPO),
    "value_clip": (1e-6, {**PPO, **TWICE}),
}
RL_ELSEWHERE = ("reward_timeout",)  # test_the_time_of_a_reward_is_the_recipes


def rl_outcome(**table: Any) -> dict[str, Any]:
    """Weights and metrics after four steps on small problems."""
    tasks = {problem.name: problem for problem in (BANDIT, COPY, DENSE)}
    base = {"tasks": {DENSE.name: 1.0}, "prompts_per_round": 4, "group_size": 4, "max_new_tokens": 3}
    config = RLConfig(**{**base, "steps": 4, **table})
    words, world = tokenizer(), World.start("cpu")
    model, reference = (Transformer(ModelConfig(words.vocab_size, 1, 16, 2, 2, 24)) for _ in range(2))
    for seed, one in enumerate((model, reference)):
        one.initialize(seed)
        torch.nn.init.normal_(one.head.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    if config.uses_critic:
        attach_critic(model)
    first = reference.requires_grad_(False) if config.kl_weight else None
    stream = RolloutStream(Engine(model, words), config, tasks, 0, 4, world, reference=first)
    stage = Stage("rl", 4, stream, stream.loss, lambda progress: 1.0)
    optimizer = Optimizer(model, OptimizerConfig(head_lr=0.05), world)
    steps = []
    for _ in range(4):
        loop.train_step(stage, model, optimizer, stream.next(), world)
        metrics = stream.metrics()
        steps.append({n: v for n, v in metrics.items() if not n.startswith(("share_", "rollout_"))})
    stream.close()
    return {**{name: value.clone() for name, value in model.state_dict().items()}, "metrics": steps}


@pytest.mark.parametrize("key", RL)
def test_a_setting_of_rl_changes_what_is_learned(key):
    value, others = RL[key]
    assert differ(rl_outcome(**others), rl_outcome(**others, **{key: value}))


def test_the_time_of_a_reward_is_the_recipes(folder):
    """What happens to a reward that takes longer is tested with the rewards."""
    spec = f"{folder}/rewards.py:vowels"
    scorer = RewardScorer(RLConfig(reward_timeout=0.3, rewards={spec: 1.0}), tokenizer())
    assert scorer.custom_rewards[spec].timeout == 0.3
