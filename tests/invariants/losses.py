"""Made-up batches of every stage and the loss that each is learned with, for the laws about one update."""

from collections.abc import Callable
from functools import lru_cache, partial

import torch

from fledgling.config import DistillConfig, DPOConfig, ModelConfig, RLConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.transformer import Transformer
from fledgling.train import critic
from fledgling.train.distill.loss import distillation_loss
from fledgling.train.loss import StepMetrics, next_token_loss
from fledgling.train.preference_loss import preference_batch_loss
from fledgling.train.rl.algorithm import make_algorithm

TEXT, POLICY = ("pretrain", "midtrain", "sft"), ("rl", "ppo", "dr_grpo", "cispo", "gspo", "distill")
PREFERENCES = ("dpo", "ipo", "simpo", "orpo", "kto", "reward")
TAUGHT = {  # text stages that learn from a teacher
    "live teacher": DistillConfig(teacher="", weight=0.7, temperature=2.0),
    "stored teacher": DistillConfig(teacher="", top_k=5, weight=0.7, temperature=2.0),
    "teacher of text": DistillConfig(teacher="", match="text", weight=0.7),
}
LEARNED = (*TEXT, *POLICY, *PREFERENCES, *TAUGHT)
EVERY_WAY = (*TEXT, "rl", "ppo", "dpo")  # of which every split and every stage of ZeRO is tested
UNMOVED = {("reward", "head.weight"), ("reward", "critic.bias")}  # scores are compared, and no token is predicted
TABLES = {
    **{name: RLConfig(algorithm=name, kl_weight=0.05) for name in POLICY[2:-1]},
    "distill": RLConfig(algorithm="distill"),
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
    if stage == "stored teacher":
        batch.teacher_ids = torch.rand(rows, length, vocabulary, generator=draw).argsort(-1)[..., :5]
        batch.teacher_logprobs = torch.randn(rows, length, 6, generator=draw).log_softmax(-1)
    if stage == "teacher of text":  # spans of two targets
        batch.span_ids = (torch.arange(length) // 2 + 1).expand(rows, -1).contiguous()
        ends = torch.arange(length) % 2 == 1
        batch.teacher_logprobs = (-6 * torch.rand(rows, length, generator=draw) * ends)[..., None]
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
    if stage in TAUGHT:
        return partial(taught_loss, config=TAUGHT[stage])
    if stage in PREFERENCES:
        config = DPOConfig(
            objective=stage, beta=1.0 if stage == "ipo" else None
        )  # else its gradients are 25 times others'
        return partial(preference_batch_loss, config=config, baseline=0.3, metrics=StepMetrics())
    config = TABLES[stage]
    return partial(make_algorithm(config).loss, kl_weight=config.kl_weight, metrics=StepMetrics())


def taught_loss(model: Transformer, batch: Batch, config: DistillConfig) -> torch.Tensor:
    """The loss of distillation; a live teacher has another width than the model."""
    is_live = batch.teacher_logprobs is None
    teacher = make_teacher(model.config.vocab_size, model.config.context) if is_live else None
    return distillation_loss(model, batch, config, teacher, StepMetrics())


@lru_cache(maxsize=4)
def make_teacher(vocabulary: int, context: int) -> Transformer:
    """A frozen teacher without parameters that are zero."""
    teacher = Transformer(ModelConfig(vocabulary, 2, 16, 2, 2, context))
    teacher.initialize(7)
    return prepared("sft", teacher).requires_grad_(False)


def prepared(stage: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model as the stage learns it: none of its gradients is zero at the start."""
    if stage in ("ppo", "reward"):
        critic.attach_critic(model)
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    return model
