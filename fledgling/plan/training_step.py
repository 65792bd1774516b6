"""One training step as the planner counts it: its sizes and settings, on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from fledgling.config import AdapterConfig
from fledgling.plan.teacher import PlannedTeacher

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class TrainingStep:
    """The sizes and settings of one training step on one rank.

    Attributes:
        rows: rows of `context` tokens in one forward/backward.
        context: tokens per row.
        dtype: of the products (weights and states are fp32).
        micro_batches: forward/backward passes per step on this rank.
        ranks, zero_stage: number of ranks, and what they shard.
        device: "cpu" or "cuda".
        compiled: blocks and update rules run under torch.compile.
        deterministic: gradients are added in a binary tree (None: on a CPU with a power of two of ranks).
        packed_documents: a row holds several documents.
        copies_weights_for_eval: evaluations keep a copy of the weights in `answer_dtype`, where that is not float32.
        answer_dtype: of the engine's products; "": `dtype`.
        keeps_scores: attention keeps its weights of all (query, key) pairs for backward, in fp32: on an Apple GPU, for
            which PyTorch has no fused kernel with gradients.
        saves_checkpoints: checkpoints are written during training, from a copy in host memory.
        has_reference_model: RL keeps the initial weights in addition to the trained ones.
        layout: one of `memory.LAYOUTS`.
        matrix_optimizer: the update rule of the matrices.
        adapter: what is trained while the weights are frozen; None: the weights are trained.
        recompute: a block keeps only its input for backward, and its activations are recomputed.
        teacher: from whose predictions the model learns; None: there is none.
        is_quantization_aware: the matrices and the head are multiplied with the values that they have once quantized.
        optimizer_state: its format, of those of `optimizer.state` (`optimizer_state.py`).
    """

    rows: int
    context: int
    dtype: str = "bfloat16"
    micro_batches: int = 1
    ranks: int = 1
    zero_stage: int = 1
    device: str = "cuda"
    compiled: bool = True
    deterministic: bool | None = None
    packed_documents: bool = True
    copies_weights_for_eval: bool = False
    saves_checkpoints: bool = False
    has_reference_model: bool = False
    layout: str = "fledgling"
    matrix_optimizer: str = "muon"
    adapter: AdapterConfig | None = None
    recompute: bool = False
    teacher: PlannedTeacher | None = None
    is_quantization_aware: bool = False
    optimizer_state: str = "float32"
    answer_dtype: str = ""
    keeps_scores: bool = False

    @property
    def answer_value_bytes(self) -> int:
        """Bytes of a value in the engine's dtype."""
        return DTYPE_BYTES[self.answer_dtype or self.dtype]

    @property
    def tokens(self) -> int:
        """Tokens of one forward/backward."""
        return self.rows * self.context

    @property
    def value_bytes(self) -> int:
        """Bytes of a value in the compute dtype."""
        return DTYPE_BYTES[self.dtype]

    @property
    def reduces_in_tree(self) -> bool:
        """Whether gradients are added in a binary tree."""
        paired = self.ranks & (self.ranks - 1) == 0
        return paired and (self.device == "cpu" if self.deterministic is None else self.deterministic)

    @property
    def shards_gradients(self) -> bool:
        """Whether a rank keeps only its own part of the gradients (ZeRO-2 and 3)."""
        return self.zero_stage >= 2 and self.ranks > 1

    @property
    def shards_parameters(self) -> bool:
        """Whether a rank keeps only its rows of the parameters and gathers the rest when needed (ZeRO-3)."""
        return self.zero_stage == 3 and self.ranks > 1
