"""The tables of a recipe and their defaults.

A field that is None is open: `fledgling.plan.derive` fills rates, weight decay, warm-up and horizon by the rules of
`scaling_rules.py`; the stage or planner that reads it derives the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledgling.config.adapter import AdapterConfig
from fledgling.config.distill import DistillConfig
from fledgling.config.errors import UserError, did_you_mean
from fledgling.config.fields import WEIGHTS, choice, count, number, optional_choice
from fledgling.config.model import ROPE_TYPES, ModelConfig
from fledgling.config.variants import ALGORITHM_TRAITS, OBJECTIVE_TRAITS

STAGES = ("pretrain", "midtrain", "sft", "dpo", "rl")
NUM_CONTROL_TOKENS = 9  # of every vocabulary that is trained (`fledgling.text.tokenizer_json.SPECIAL_TOKENS`)
NUM_LETTER_TOKENS = 52  # ASCII letters after a space; alone they are bytes
DEFAULT_STAGES = ("pretrain", "midtrain", "sft", "rl")  # of a recipe that names none


@dataclass(frozen=True)
class TokenizerConfig:
    """[tokenizer]: the byte-level BPE vocabulary, and the text it is trained on."""

    vocab_size: int = count(1024, 256)  # entries, the special tokens included
    max_characters: int = count(2_000_000_000)  # characters of text that are read at most
    max_digits: int = count(1, 1, 3)  # longest group of digits that may become one token
    letter_tokens: bool = True  # each ASCII letter, and each after a space, has its own token
    sources: tuple[str, ...] = ("embedded",)  # names of corpora, or paths


def require_vocabulary(vocab_size: int, letter_tokens: bool) -> None:
    """Raises UserError for a vocabulary that is smaller than what each has: bytes, letters and control tokens."""
    smallest = 256 + NUM_CONTROL_TOKENS + (NUM_LETTER_TOKENS if letter_tokens else 0)
    if vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size is {vocab_size}; the bytes{', letters' if letter_tokens else ''} and the "
            f"special tokens alone take {smallest}: choose at least that"
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """[optimizer]: learning rates by parameter role; Muon for the matrices, AdamW for embedding, head and scalars."""

    matrix_lr: float | None = number(None, above=True)  # this and the next three: None: by rules 4 to 7
    embedding_lr: float | None = number(None, above=True)
    head_lr: float | None = number(None, above=True)
    scalar_lr: float | None = number(None, above=True)
    adam_betas: tuple[float, float] = field(default=(0.8, 0.95), metadata={"low": 0.0, "high": 0.9999})
    adam_eps: float = number(1e-10, above=True)
    momentum: float = number(0.95, 0.0, 0.9999)
    adapter_lr: float | None = number(None, above=True)  # AdamW, of the trained part of an [adapter]; None: by rule 14
    weight_decay: float | None = number(None)  # of the blocks' matrices; None: by rule 9
    cautious_weight_decay: bool = False  # decays only values that the update moves toward 0
    matrix_optimizer: str = choice("muon", "normuon", "adamw")  # of the blocks' matrices
    newton_schulz: str = choice("jordan", "polar_express")  # coefficients of Muon's iteration
    newton_schulz_steps: int = count(5, 1, 100)
    equilibrate: bool = False  # MuonEq: rows of a matrix's momentum are equally long before the iteration
    normalize_update: bool = False  # Muon+: columns, then rows, of a matrix's update are equally long
    tied_updates: int = count(0, 0)  # first updates of pretraining in which embedding and head are one matrix
    zero_stage: int | None = field(default=None, metadata={"low": 0, "high": 3})  # ZeRO; None: 1 with several ranks
    state: str = choice("float32", "8bit", "host")  # of moments between steps; host: in its memory, next to a GPU
    deterministic: str = choice("auto", "on", "off")  # the same bits on 1, 2, 4, 8 ranks; auto: on a CPU


@dataclass(frozen=True)
class LoopConfig:
    """The fields that every stage has: length, schedule, evaluations, checkpoints. Only its subclasses are tables.

    The mixture of dpo and rl is what they are evaluated on; if it is empty, that of sft.
    """

    steps: int | None = count(None)  # optimizer steps; None: derived from `num_epochs`
    num_epochs: float | None = number(None, above=True)  # over the text; None: `steps` decide (pretrain), else 1
    micro_batch_size: int | None = count(None)  # rows of one forward/backward on one rank; None: what fits
    learning_rate: float | None = number(None, above=True)  # a factor of the rates of [optimizer]; None: rules 11 to 13
    warmup_steps: int | None = count(None, 0)  # steps from 0 to the full rate; None: by rule 10
    decay_fraction: float = number(0.4, 0.0, 1.0)  # the last fraction of the steps, over which the rate decays
    final_lr_fraction: float = number(0.0, 0.0, 1.0)  # of the full rate, at the last step
    mixture: dict[str, float] = field(default_factory=dict, metadata=WEIGHTS)  # source -> weight
    eval_every: int = count(0, 0)  # steps; 0: only at the end
    eval_questions: int = count(200)  # per task
    sample_every: int = count(0, 0)  # steps; 0: only at the end
    save_every: int = count(0, 0)  # steps; 0: only at the end
    keep_checkpoints: int = count(2)


PHASES = ("batch_warmup_steps", "context_warmup_steps", "mtp_decay_steps")  # settings that count a stage's first steps


@dataclass(frozen=True)
class StageConfig(LoopConfig):
    """[pretrain], [midtrain], [sft]: stages that learn from text and conversations."""

    batch_tokens: int | None = count(None)  # tokens of one step over all ranks; None: derived
    examples_per_step: int | None = count(None)  # where batch_tokens is open; None: sft 32, others by the depth
    batch_warmup_steps: int = count(0, 0)  # steps that read a quarter, then half, of the rows
    context_warmup_steps: int = count(0, 0)  # steps whose rows are cut into four, then two, pieces of their own
    mtp_targets: int = count(0, 0, 8)  # multi-token prediction: tokens after the next one that a position predicts
    mtp_decay_steps: int = count(0, 0)  # steps over which the weights of these tokens fall to 0; 0: they stay
    mixture_unit: str = choice("tokens", "examples")  # what the weights of the mixture are shares of
    train_on: Literal["all", "assistant"] = choice("all", "assistant")  # the tokens that are targets
    quantization_aware: str = choice("none", "int8", "int4")  # in training, so that the quantized model is better
    core_every: int = count(0, 0)  # steps between evaluations of CORE, and one at the end; 0: none
    core_max_per_task: int = count(500)  # items of each of its tasks

    @property
    def used_sources(self) -> tuple[str, ...]:
        """The sources of the mixture whose weight is above 0."""
        return tuple(name for name, weight in self.mixture.items() if weight > 0)

    @property
    def largest_source(self) -> str:
        """The source with the largest share of the mixture; "" of an empty one."""
        return max(self.mixture, key=lambda name: self.mixture[name], default="")


@dataclass(frozen=True)
class DPOConfig(LoopConfig):
    """[dpo]: preference tuning on pairs of a chosen and a rejected answer, or on answers that were judged (kto)."""

    objective: str = choice(*OBJECTIVE_TRAITS)  # what is minimized; reward: a reward model
    pairs: str | None = None  # a file of prompt, chosen and rejected; kto: or of a label; None: no such stage
    beta: float | None = number(None, above=True)  # strength of the objective; None: 0.1, of simpo 2
    target_margin: float = number(1.0)  # simpo: of beta x log p of a token, between the two answers
    desirable_weight: float = number(1.0, above=True)  # kto: of answers that are desirable
    undesirable_weight: float = number(1.0, above=True)  # kto
    batch_size: int = count(16)  # pairs per step; kto: answers
    warmup_steps: int | None = count(0, 0)
    decay_fraction: float = number(1.0, 0.0, 1.0)

    @property
    def uses_reference(self) -> bool:
        """Whether the objective compares the weights with those that the stage begins with."""
        return OBJECTIVE_TRAITS[self.objective].uses_reference

    @property
    def labels_answers(self) -> bool:
        """Whether each answer has a label of its own; otherwise answers come in pairs."""
        return OBJECTIVE_TRAITS[self.objective].labels_answers

    @property
    def trains_head(self) -> bool:
        """Whether a value head scores answers, instead of the model's log p."""
        return OBJECTIVE_TRAITS[self.objective].trains_head


@dataclass(frozen=True)
class RLConfig(LoopConfig):
    """[rl]: rollouts of the current weights, scored by tasks and rewards."""

    algorithm: str = choice(*ALGORITHM_TRAITS)
    warmup_steps: int | None = count(0, 0)
    decay_fraction: float = number(1.0, 0.0, 1.0)
    tasks: dict[str, float] = field(default_factory=dict, metadata=WEIGHTS)  # task -> weight among the prompts
    rewards: dict[str, float] = field(default_factory=dict, metadata=WEIGHTS)  # weights; {}: task
    reward_timeout: float = number(10.0, above=True)  # seconds that a custom reward may take for one answer
    length_penalty: float = number(0.0)  # subtracted from the reward of an answer of max_new_tokens
    length_penalty_free_tokens: int | None = count(None, 0)  # tokens without penalty; None: half of max_new_tokens
    prompts_per_round: int = count(16)
    group_size: int = count(16, 2)  # answers per prompt; GRPO compares them with each other
    epochs: int = count(1)  # times that the rollouts of one round are trained on
    minibatches: int = count(1)  # optimizer steps of one of these epochs
    stale_rounds: int = count(0, 0, 8)  # rounds by which the weights that sample are older, so that both overlap
    clip_ratio: float = number(0.2, above=True)  # the ratio stays in [1 - clip_ratio, 1 + clip_ratio_high]
    clip_ratio_high: float | None = number(None, above=True)  # None: clip_ratio
    kl_weight: float = number(0.0)  # of the KL divergence from the stage's initial weights
    kl_target: float | None = number(None, above=True)  # nats per token that kl_weight adapts to; None: constant
    entropy_weight: float = number(0.0)  # of the entropy bonus, at `temperature`
    temperature: float = number(1.0, 0.25)
    max_new_tokens: int = count(64)  # longest answer, tool output included
    advantage_normalization: str | None = optional_choice(
        "centered", "zscore", "leave_one_out"
    )  # None: centered; cispo and gspo: zscore
    loss_normalization: str | None = optional_choice(
        "token", "sequence", "constant"
    )  # what has equal weight; None: token; gspo: sequence; dr_grpo: constant
    drop_uniform_groups: bool = (
        True  # GRPO: leaves out groups of equal rewards, unless kl_weight or entropy_weight is set
    )
    gamma: float = number(1.0, 0.0, 1.0)  # PPO: discount of later rewards
    gae_lambda: float = number(0.95, 0.0, 1.0)  # PPO
    value_weight: float = number(0.5)  # PPO: of the critic's loss
    value_clip: float = number(0.2, above=True)  # PPO: largest difference from the old value

    @property
    def uses_critic(self) -> bool:
        """Whether the stage trains a critic next to the policy."""
        return ALGORITHM_TRAITS[self.algorithm].uses_critic

    @property
    def uses_teacher(self) -> bool:
        """Whether the policy learns from `distill.teacher`, on its own answers."""
        return ALGORITHM_TRAITS[self.algorithm].uses_teacher


@dataclass(frozen=True)
class RunConfig:
    """[run]: where a run computes and writes. Only `dtype`, `fp8` and `max_rollbacks` change what is learned."""

    out: str = "runs/quickstart"  # the run directory
    init_from: str | None = None  # a checkpoint or Hugging Face directory: the first stage's weights and tokenizer
    init_context: int | None = count(None)  # longest row of given weights with RoPE, in tokens; None: as they were made
    init_rope: str = choice(*ROPE_TYPES[:-1])  # how RoPE reaches an init_context beyond that
    device: str = choice("auto", "cpu", "cuda", "xpu", "mps")
    dtype: str = choice("auto", "float32", "bfloat16", "float16")
    compile: str = choice("auto", "on", "off")
    fp8: bool = False  # the blocks' products in training, on GPUs that multiply fp8; needs torchao
    recompute: str = choice("auto", "on", "off")  # blocks keep only their inputs for backward; auto: if a row needs it
    threads: int = count(0, 0, 1024)  # 0: as many as there are cores
    max_rollbacks: int = count(0, 0)  # times that a stage returns to its last checkpoint after non-finite gradients
    loggers: tuple[str, ...] = ()  # tensorboard, wandb, trackio: receive every metric, besides the files
    data_dir: str | None = None  # None: FLEDGLING_DATA, or ~/.cache/fledgling
    hardware: str = "cpu"  # that `plan` assumes (fledgling.plan.hardware); training measures its own
    ranks: int = count(1)  # that `plan` assumes


@dataclass(frozen=True)
class Recipe:
    """A whole run: which stages it has, and the settings of each."""

    name: str = "quickstart"
    description: str = ""
    seed: int = count(0, 0)
    stages: tuple[str, ...] = DEFAULT_STAGES
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    pretrain: StageConfig = field(default_factory=StageConfig)
    midtrain: StageConfig = field(default_factory=StageConfig)
    sft: StageConfig = field(default_factory=lambda: StageConfig(train_on="assistant"))
    dpo: DPOConfig = field(default_factory=DPOConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    run: RunConfig = field(default_factory=RunConfig)
    # "table.key" of what a user's file or an override gives: a rule does not fill it again. No key of a file.
    stated: frozenset[str] = field(default=frozenset(), repr=False, compare=False, metadata={"internal": True})

    def stage_config(self, name: str) -> StageConfig | DPOConfig | RLConfig:
        """Returns the table of stage `name`. Raises UserError for an unknown one."""
        if name not in STAGES:
            known = ", ".join(STAGES)
            raise UserError(f'unknown stage "{name}": expected one of {known}{did_you_mean(name, STAGES)}')
        return getattr(self, name)

    def has_teacher(self, stage: str) -> bool:
        """Returns whether a stage learns from `distill.teacher`."""
        if stage == "rl":
            return self.rl.uses_teacher
        return self.distill.teacher is not None and stage in self.distill.stages

    def resolve_model(self) -> ModelConfig:
        """Returns the complete model configuration: [model] with the tokenizer's vocabulary, every field filled in."""
        return self.model.resolve(self.tokenizer.vocab_size)
