"""The sizes of a model, as a value: no torch, so that the planner answers at once.

One idea: a depth determines the rest (width 64 x depth, heads of 128), and every derived value can be pinned.
This is not where a model is made (`transformer.py`) nor where its parameters are counted (`plan/size.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from fledgling.config import ModelTable, UserError

HEAD_WIDTH = 128
WIDTH_PER_LAYER = 64


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one decoder.

    vocab_size: entries of the tokenizer; depth: blocks; width: C, the residual stream; heads, kv_heads: query and
    key/value heads; context: longest row in tokens; mlp_ratio: hidden width of the feed-forward over C; softcap:
    logits become softcap * tanh(logits / softcap); rope_base: RoPE's theta; norm_eps: RMSNorm's epsilon.
    """

    vocab_size: int  # 65,536 for d20
    depth: int  # 20
    width: int  # 1,280
    heads: int  # 10
    kv_heads: int  # 10
    context: int  # 2,048
    mlp_ratio: int = 4
    softcap: float = 15.0
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    family: str = "fledgling"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "depth", "width", "heads", "kv_heads", "context", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected at least 1")
        if self.width % self.heads:
            near = [h for h in range(1, self.width + 1) if self.width % h == 0]
            fit = min(near, key=lambda h: abs(h - self.heads))
            raise UserError(f"model.width {self.width} is not divisible by model.heads {self.heads}; try heads = {fit}")
        if self.head_width % 2:
            raise UserError(
                f"model head width {self.head_width} is odd; RoPE rotates pairs: choose an even width / heads"
            )
        if self.heads % self.kv_heads:
            raise UserError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.family != "fledgling":
            raise UserError(f"model.family {self.family!r} is not known; expected 'fledgling'")
        if self.softcap <= 0:
            raise UserError(f"model.softcap is {self.softcap}; expected a positive number")

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads

    def to_dict(self) -> dict:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """The inverse of `to_dict`; raises UserError for a field this version does not know."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"model description has unknown fields {unknown}; known: {sorted(known)}")
        return cls(**values)


def from_table(table: ModelTable, vocab_size: int) -> ModelConfig:
    """The model that a recipe's [model] table describes: depth gives what the table leaves open."""
    width = table.width or WIDTH_PER_LAYER * table.depth
    heads = table.heads or max(1, width // HEAD_WIDTH)
    return ModelConfig(
        vocab_size=vocab_size,
        depth=table.depth,
        width=width,
        heads=heads,
        kv_heads=table.kv_heads or heads,
        context=table.context,
        softcap=table.softcap,
        family=table.family,
    )
