"""The [adapter] table: low-rank updates of frozen matrices, which some stages train instead of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fledgling.config.errors import UserError, did_you_mean
from fledgling.config.fields import choice, count, number
from fledgling.config.model import ModelConfig

LATER_STAGES = ("midtrain", "sft", "dpo", "rl")  # pretraining has weights to adapt with run.init_from alone


@dataclass(frozen=True)
class AdapterConfig:
    """[adapter]: a table of the run and not of a stage, because one adapter passes through all stages that train it."""

    method: str = choice("none", "lora", "rslora", "dora")  # none: the stages train the weights themselves
    rank: int = count(16)  # r, columns of B and rows of A
    alpha: float = number(32.0, above=True)  # the update is multiplied by alpha / rank, in rslora by alpha / sqrt(rank)
    targets: tuple[str, ...] = ()  # matrices, as q_proj or blocks.3.mlp.fc1; (): all matrices of the blocks
    stages: tuple[str, ...] = field(
        default=LATER_STAGES, metadata={"choices": ("pretrain", *LATER_STAGES)}
    )  # that train the adapter
    init_from: str | None = None  # a directory in peft's format that the first of them starts from
    quantization: str = choice("none", "int8", "int4", "nf4")  # of the blocks' frozen matrices (QLoRA)

    @property
    def scale(self) -> float:
        """The factor of the product B A."""
        return self.alpha / (self.rank**0.5 if self.method == "rslora" else self.rank)

    @property
    def has_magnitude(self) -> bool:
        """Whether a learned vector replaces the lengths of the matrices' rows (DoRA)."""
        return self.method == "dora"

    def trains_in(self, stage: str) -> bool:
        """Returns whether `stage` trains the adapter and not the weights."""
        return self.method != "none" and stage in self.stages

    def compiles_blocks(self, device: str, dtype: str) -> bool:
        """Returns whether blocks with this adapter are compiled, where others are: for the model and for its plan.

        Quantized ones are not, nor those on a CPU in less than fp32: with PyTorch 2.13's vectorized bfloat16 code some
        gradients of adapters in a compiled block are not finite, or wrong by a tenth, where eager ones are right.
        """
        return self.method == "none" or (self.quantization == "none" and (device != "cpu" or dtype == "float32"))

    def has_tensors_of(self, other: AdapterConfig, config: ModelConfig) -> bool:
        """Returns whether the tensors of an adapter `other` of the model are, unchanged, those of this one."""
        names = ("rank", "has_magnitude", "quantization")
        same_update = all(getattr(self, name) == getattr(other, name) for name in names)
        is_scaled = math.isclose(self.scale, other.scale, rel_tol=1e-9)
        return same_update and is_scaled and self.select_matrices(config) == other.select_matrices(config)

    def select_matrices(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        """Returns name -> (out, in) of the matrices that have an adapter, in the model's order.

        Raises:
            UserError: a target is not a matrix of the model's blocks, or the rank is larger than all of them.
        """
        matrices = config.block_matrices()
        known = {name.rpartition(".")[2]: name for name in matrices} | {name: name for name in matrices}
        for target in self.targets:
            if target not in known:
                last_names = sorted(name for name in known if "." not in name)
                raise UserError(
                    f'adapter.targets: "{target[:80]}" is not a matrix of the blocks: expected some of '
                    f"{', '.join(last_names)}{did_you_mean(target, last_names)}"
                )
        selected = set(self.targets or known)
        chosen = {name: shape for name, shape in matrices.items() if {name, name.rpartition(".")[2]} & selected}
        longest = max((max(shape) for shape in chosen.values()), default=1)
        if self.rank > longest:
            raise UserError(f"adapter.rank: got {self.rank:,}, expected at most {longest:,}, a matrix's longest side")
        return chosen
