"""Made-up batches of every stage and the loss that each is learned with, for the laws about one update."""

from collections.abc import Callable
from functools import partial

import torch

from fledgling.config import DPOConfig, RLConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.train import critic
from fledgling.train.loss import StepMetrics, next_token_loss
from fledgling.train.preference_loss import preference_batch_loss
from fledgling.train.rl.algorithm import make_algorithm

TEXT, POLICY = ("pretrain", "midtrain", "sft"), ("rl", "ppo", "dr_grpo", "cispo", "gspo")
PREFERENCES = ("dpo", "ipo", "simpo", "orpo", "kto", "reward")
LEARNED = (*TEXT, *POLICY, *PREFERENCES)
EVERY_WAY = (*TEXT, "rl", "ppo", "dpo")  # of which every split and every stage of ZeRO is tested
UNMOVED = {("reward", "head.weight"), ("reward", "critic.bias")}  # scores are compared, and no token is predicted
TABLES = {
    **{name: RLConfig(algorithm=name, kl_weight=0.05) for name in POLICY[2:]},
    "rl": RLConfig(kl_weight=0.05),
    "ppo": RLConfig(algorithm="ppo", kl_weight=0.05, entropy_weight=0.02, loss_normalization="sequence"),
}


def batch_of(stage: str, rows: int, length: int, vocabulary: int, seed: int) -> Batch:
    """Rows of several documents with very different numbers of targets; of the first there are none from SFT on."""
    draw = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(vocabulary, (2, rows, length), generator=draw).unbind(0)
    if stage not in ("pretrain", "midtrain"):
        for row in range(rows):
            targets[row, row * length // rows :] = IGNORE_INDEX
    batch = Batch(tokens, targets, (torch.arange(length) // 6 + 1).int().expand(rows, -1).contiguous())
    if stage in (*POLICY, *PREFERENCES):
        batch.reference_logprobs = -4 + 0.3 * torch.randn(rows, length, generator=draw)
        batch.loss_weights = torch.full((rows, length), 3.0)
    if stage in POLICY:
        batch.advantages = torch.randn(rows, length, generator=draw)
        batch.old_logprobs = -4 + 0.3 * torch.randn(rows, length, generator=draw)
        batch.loss_weights = 0.5 + torch.rand(rows, length, generator=draw)
    if stage == "kto":  # every other answer is desirable
        assert batch.document_ids is not None
        batch.rewards = (batch.document_ids % 2).float()
    if stage == "ppo":
        batch.returns = torch.randn(rows, length, generator=draw)
        batch.old_values = torch.randn(rows, length, generator=draw)
    return batch


def loss_of(stage: str) -> Callable:
    """The summed loss of a stage."""
    if stage in TEXT:
        return next_token_loss
    if stage in PREFERENCES:
        config = DPOConfig(
            objective=stage, beta=1.0 if stage == "ipo" else None
        )  # else its gradients are 25 times others'
        return partial(preference_batch_loss, config=config, baseline=0.3, metrics=StepMetrics())
    config = TABLES[stage]
    return partial(make_algorithm(config).loss, kl_weight=config.kl_weight, metrics=StepMetrics())


def prepared(stage: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model as the stage learns it: none of its gradients is zero at the start."""
    if stage in ("ppo", "reward"):
        critic.attach_critic(model)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    return model
