"""Rules by which horizon, batch, learning rates, weight decay and warm-up follow from the size of a model.

Pure functions of numbers, used by plans and training alike: `fledgling.plan.derive` applies them to the fields that a
recipe leaves open, and never changes one that it gives. C is the width, N the parameters without value
embeddings, D the tokens of pretraining, B the tokens of a step, S the steps of a stage; an index s is a later stage's,
p pretraining's.

     1  C = 64 x depth                              fledgling.config.model
     2  D = 20 N                                    Chinchilla, arXiv 2203.15556
     3  B = 524,288 (D / 11.2e9)^0.383              2505.13738, section 4; to the nearest power of two
     4  matrix_lr = 0.02 g                          Muon's updates have one spectral norm at every width: 2310.17813
        matrix_lr = 0.001 (768 / C) g               with AdamW: 2203.03466, table 3
     5  embedding_lr = 0.2 (768 / C)^1/2 g          the published runs' width transfer, between the exponents 0 and 1 of
     6  head_lr = 0.004 (768 / C)^1/2 g             2203.03466 for the two ends of the model
     7  scalar_lr = 0.01 g
     8  g = (B / 524,288)^1/2 (D / 11.2e9)^-0.285   batch: the square root rule of 2205.10287; horizon: the power law of
                                                    2409.19913, whose exponent is 0.32; ours is fitted, see below
     9  weight_decay = B / (matrix_lr D tau)        the time scale of the weights' moving average, 2405.13698
        tau = 1.084 (D / N)^-0.527                  2505.13738, figure 1; matrix_lr at least that of rule 4
    10  warmup_steps = 2 / (1 - beta2), at most S / 10    1910.04209, section 5
    11  pretrain.learning_rate = 1
        midtrain.learning_rate = (B_s / B_p)^1/2, at most 1
    12  sft.learning_rate = 0.7 (D_s / D_p)^0.285 (B_s / B_p)^1/2, at most 1
    13  rl.learning_rate = 0.12 (256 / C)^1/2
        dpo.learning_rate = 0.05
    14  adapter_lr = 0.01 (256 / C)^1.46            at 2,000 the published 0.0005 of "LoRA Without Regret" (2025), whose
                                                    exponent is 0.78; measured at 256, docs/adapters.md

The exponent of rule 8 makes the published depth-20 run and sweeps at depths 2 and 4 have the same g; docs/rates.md has
these sweeps and those that test the rule. The learning rate of a stage multiplies the rates of rules 4 to 7. Rules 12
and 13 interpolate what recipes of depth 4 and 20 held by hand; no sweep has tested them. Rule 14's rate is that of
AdamW at alpha / rank = 2, at any rank, and does not follow batch and horizon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TOKENS_PER_PARAMETER = 20
REFERENCE_BATCH, REFERENCE_TOKENS = 524_288, 11_219_763_200  # the published depth-20 run
BATCH_EXPONENT = 0.383
HORIZON_EXPONENT = -0.285
REFERENCE_WIDTH = 768
MATRIX_LR, MATRIX_ADAMW_LR, EMBEDDING_LR, HEAD_LR, SCALAR_LR = 0.02, 0.001, 0.2, 0.004, 0.01
TIMESCALE, TIMESCALE_EXPONENT = 1.084, -0.527
SFT_LR, SFT_EXPONENT = 0.7, 0.285
RL_LR, RL_WIDTH, DPO_LR = 0.12, 256, 0.05
ADAPTER_LR, ADAPTER_WIDTH, ADAPTER_EXPONENT = 0.01, 256, 1.46

RULE_NUMBERS = {  # field of a recipe, without its stage where all stages have it -> rule
    "pretrain.steps": 2,
    "batch_tokens": 3,
    "optimizer.matrix_lr": 4,
    "optimizer.embedding_lr": 5,
    "optimizer.head_lr": 6,
    "optimizer.scalar_lr": 7,
    "optimizer.weight_decay": 9,
    "warmup_steps": 10,
    "pretrain.learning_rate": 11,
    "midtrain.learning_rate": 11,
    "sft.learning_rate": 12,
    "rl.learning_rate": 13,
    "dpo.learning_rate": 13,
    "optimizer.adapter_lr": 14,
}


@dataclass(frozen=True)
class RunSize:
    """What the rules of pretraining follow from: width C, N without value embeddings, tokens D, tokens B of a step."""

    width: int
    parameters: int
    tokens: int
    batch_tokens: int


def optimal_batch_tokens(tokens: float) -> float:
    """Returns the best batch, in tokens, of a run of `tokens` tokens (rule 3, not rounded)."""
    return REFERENCE_BATCH * (tokens / REFERENCE_TOKENS) ** BATCH_EXPONENT


def width_rates(width: int, matrix_optimizer: str = "muon") -> dict[str, float]:
    """Returns the learning rate of each role of parameters at g = 1 (rules 4 to 7)."""
    narrowness = REFERENCE_WIDTH / width
    return {
        "matrix": MATRIX_ADAMW_LR * narrowness if matrix_optimizer == "adamw" else MATRIX_LR,
        "embedding": EMBEDDING_LR * narrowness**0.5,
        "head": HEAD_LR * narrowness**0.5,
        "scalar": SCALAR_LR,
    }


def batch_factor(batch_tokens: int, tokens: int) -> float:
    """Returns g, by which all rates follow batch and horizon (rule 8)."""
    return math.sqrt(batch_tokens / REFERENCE_BATCH) * (tokens / REFERENCE_TOKENS) ** HORIZON_EXPONENT


def role_rates(size: RunSize, matrix_optimizer: str = "muon") -> dict[str, float]:
    """Returns the learning rate of each role of parameters (rules 4 to 8)."""
    factor = batch_factor(size.batch_tokens, size.tokens)
    return {role: factor * rate for role, rate in width_rates(size.width, matrix_optimizer).items()}


def adapter_rate(width: int) -> float:
    """Returns the learning rate of an adapter's matrices (rule 14); not above that of the narrowest measured width."""
    return ADAPTER_LR * min(1.0, (ADAPTER_WIDTH / width) ** ADAPTER_EXPONENT)


def weight_decay(size: RunSize, matrix_lr: float) -> float:
    """Returns the decay of the matrices (rule 9); lr x decay x steps = 1 / tau."""
    timescale = TIMESCALE * (size.tokens / size.parameters) ** TIMESCALE_EXPONENT
    return size.batch_tokens / (matrix_lr * size.tokens * timescale)


def warmup_steps(steps: int, beta2: float) -> int:
    """Returns the steps of a stage's linear warm-up (rule 10)."""
    return min(round(2 / (1 - beta2)), steps // 10)


def midtrain_rate(batch_ratio: float) -> float:
    """Returns the learning rate of midtraining relative to pretraining's (rule 11); batch_ratio: B_s / B_p."""
    return min(1.0, math.sqrt(batch_ratio))


def sft_rate(token_ratio: float, batch_ratio: float) -> float:
    """Returns the learning rate of SFT relative to pretraining's (rule 12): D_s / D_p and B_s / B_p."""
    return min(1.0, SFT_LR * token_ratio**SFT_EXPONENT * math.sqrt(batch_ratio))


def rl_rate(width: int) -> float:
    """Returns the learning rate of RL relative to pretraining's (rule 13)."""
    return RL_LR * math.sqrt(RL_WIDTH / width)
