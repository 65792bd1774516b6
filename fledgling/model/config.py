"""The sizes and parts of a model, as a value: no torch, so that the planner answers at once.

One idea: the configuration says which part stands in each place of the decoder (norm, positions, feed-forward, head);
a family is a preset of these, and a depth determines the sizes (width 64 x depth). Every derived value can be pinned.
This is not where a model is made (`transformer.py`) nor where its parameters are counted (`plan/parameters.py`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from fledgling.config import ModelTable, UserError, did_you_mean

WIDTH_PER_LAYER = 64
HEAD_WIDTH = {"fledgling": 128, "gpt2": 64, "llama": 128}  # what a depth alone gives

NORMS = ("rms", "rms_weighted", "layer")
POSITIONS = ("rope", "learned")
ACTIVATIONS = ("relu2", "gelu", "swiglu")

OPTIONAL_FEATURES = ("flash_norm", "value_embeddings", "window_pattern", "residual_scalars")

# The parts of each family; the fields left out are those that every family can choose: sizes, rope_base.
FAMILIES: dict[str, dict[str, Any]] = {
    "fledgling": {
        "norm": "rms",
        "positions": "rope",
        "rope_direction": -1,
        "activation": "relu2",
        "bias": False,
        "tie_embeddings": False,
        "qk_norm": True,
        "embedding_norm": True,
        "logit_softcap": 15.0,
        "norm_eps": 1e-6,
    },
    "gpt2": {  # Radford et al. 2019
        "norm": "layer",
        "positions": "learned",
        "activation": "gelu",
        "bias": True,
        "tie_embeddings": True,
        "qk_norm": False,
        "embedding_norm": False,
        "logit_softcap": 0.0,
        "norm_eps": 1e-5,
    },
    "llama": {  # Touvron et al. 2023, arXiv 2307.09288
        "norm": "rms_weighted",
        "positions": "rope",
        "rope_direction": 1,
        "activation": "swiglu",
        "bias": False,
        "tie_embeddings": False,
        "qk_norm": False,
        "embedding_norm": False,
        "logit_softcap": 0.0,
        "norm_eps": 1e-5,
    },
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and parts of one decoder. The defaults are the parts of the fledgling family; `preset` gives the others'.

    vocab_size: entries of the tokenizer; depth: blocks; width: C, the residual stream; heads, kv_heads: query and
    key/value heads; context: longest row in tokens; hidden: width of the feed-forward (0 on the way in: derived).
    softcap: logits become softcap * tanh(logits / softcap), 0 leaves them as they are; rope_base: RoPE's theta.
    """

    vocab_size: int  # 65,536 for d20
    depth: int  # 20
    width: int  # 1,280
    heads: int  # 10
    kv_heads: int  # 10
    context: int  # 2,048
    intermediate_size: int = 0  # 5,120
    logit_softcap: float = 15.0
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    family: str = "fledgling"  # the preset it began with; Hugging Face's class of that name is what it is exported to
    norm: str = "rms"  # without weights, "rms_weighted", or "layer" with weight and bias
    positions: str = "rope"  # or "learned": a vector a position, added to the embedding
    rope_direction: int = -1  # first half against second by -angle; Llama's rotate by +angle
    activation: str = "relu2"  # or "gelu" (tanh form), two matrices; or "swiglu", three
    bias: bool = False  # of every linear layer but the head
    tie_embeddings: bool = False  # embedding and head are one matrix
    qk_norm: bool = True  # queries and keys divided by their root mean square
    embedding_norm: bool = True  # the embedding divided by its root mean square
    flash_norm: bool = False  # the norms before attention and feed-forward divide behind the product (flash_norm.py)
    value_embeddings: int = 0  # every n-th layer, from the last, adds a vector by token to its values
    window_pattern: str = ""  # of S and L, repeated over the layers; the last layer sees all
    window_size: int = 0  # tokens that a layer S sees, itself included (0 on the way in: derived)
    residual_scalars: bool = False  # a block reads a x + b x0

    def __post_init__(self) -> None:
        if self.intermediate_size == 0:
            object.__setattr__(self, "intermediate_size", derive_intermediate_size(self.width, self.activation))
        for name in ("vocab_size", "depth", "width", "heads", "kv_heads", "context", "intermediate_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected at least 1")
        known = {"family": tuple(FAMILIES), "norm": NORMS, "positions": POSITIONS, "activation": ACTIVATIONS}
        for name, choices in known.items():
            given = getattr(self, name)
            if given not in choices:
                hint = did_you_mean(str(given), choices)
                raise UserError(f"model.{name} {given!r} is not known; expected one of {', '.join(choices)}{hint}")
        if self.width % self.heads:
            near = [h for h in range(1, self.width + 1) if self.width % h == 0]
            fit = min(near, key=lambda h: abs(h - self.heads))
            raise UserError(f"model.width {self.width} is not divisible by model.heads {self.heads}; try heads = {fit}")
        if self.head_width % 2 and self.positions == "rope":
            raise UserError(
                f"model head width {self.head_width} is odd; RoPE rotates pairs: choose an even width / heads"
            )
        if self.heads % self.kv_heads:
            raise UserError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.rope_direction not in (-1, 1):
            raise UserError(f"model.rope_direction is {self.rope_direction}; expected 1 or -1")
        if not self.logit_softcap >= 0:
            raise UserError(f"model.logit_softcap is {self.logit_softcap}; expected a positive number, or 0 for none")
        if self.flash_norm and self.norm == "layer":
            raise UserError('model.flash_norm needs a norm by the root mean square; model.norm is "layer"')
        if set(self.window_pattern) - set("SL"):
            raise UserError(f'model.window_pattern is "{self.window_pattern}"; expected letters S and L, such as SSSL')
        if self.window_size == 0 and "S" in self.window_pattern:
            object.__setattr__(self, "window_size", max(1, self.context // 4))
        if self.value_embeddings < 0 or self.window_size < 0:
            raise UserError(
                f"model.value_embeddings is {self.value_embeddings}, model.window_size is {self.window_size}; "
                "expected at least 0"
            )

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads

    def layer_window_size(self, layer: int) -> int | None:
        """How many tokens a query of that layer sees, itself included; None: all before it."""
        pattern = self.window_pattern
        short = pattern and layer < self.depth - 1 and pattern[layer % len(pattern)] == "S"
        return self.window_size if short and self.window_size < self.context else None

    def has_value_embedding(self, layer: int) -> bool:
        """Whether that layer adds a vector by token to its values."""
        return self.value_embeddings > 0 and (self.depth - 1 - layer) % self.value_embeddings == 0

    @property
    def enabled_features(self) -> tuple[str, ...]:
        """The fields that are on and that no family has: what other programs, and kernels of blocks, do not know."""
        return tuple(name for name in OPTIONAL_FEATURES if getattr(self, name))

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a third matrix, the gate."""
        return self.activation == "swiglu"

    def to_dict(self) -> dict:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> ModelConfig:
        """The inverse of `to_dict`; raises UserError for a field this version does not know.

        A field that is missing has its default: descriptions from before there were families say `mlp_ratio`, the
        hidden width over C, and mean the fledgling family.
        """
        values = dict(values)
        if "mlp_ratio" in values:
            values["intermediate_size"] = values.pop("mlp_ratio") * values["width"]
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"model description has unknown fields {unknown}; known: {sorted(known)}")
        return cls(**values)


def derive_intermediate_size(width: int, activation: str) -> int:
    """The feed-forward's width when none is given: 4 C, or 8/3 C rounded up where a gate makes it three matrices.

    Rounded to the largest power of two up to C / 4, 256 at most: 11,008 for 4,096 (Llama 2), 704 for 256. The ratio
    stays between 2.66 and 2.92.
    """
    if activation != "swiglu":
        return 4 * width
    multiple = min(256, 1 << max(0, (width // 4).bit_length() - 1))
    return -(-8 * width // (3 * multiple)) * multiple


def config_from_preset(family: str, **fields_given: Any) -> ModelConfig:
    """A model of that family: its parts, and the fields given, which go before them."""
    if family not in FAMILIES:
        hint = did_you_mean(family, FAMILIES)
        raise UserError(f"model.family {family!r} is not known; expected one of {', '.join(FAMILIES)}{hint}")
    return ModelConfig(family=family, **(FAMILIES[family] | fields_given))


def config_from_table(table: ModelTable, vocab_size: int) -> ModelConfig:
    """The model that a recipe's [model] table describes: depth and family give what the table leaves open."""
    width = table.width or WIDTH_PER_LAYER * table.depth
    heads = table.heads or max(1, width // HEAD_WIDTH[table.family])
    open_parts = {
        name: getattr(table, name)
        for name in ("intermediate_size", "norm", "activation", "tie_embeddings", "qk_norm", "logit_softcap")
    }
    return config_from_preset(
        table.family,
        vocab_size=vocab_size,
        depth=table.depth,
        width=width,
        heads=heads,
        kv_heads=table.kv_heads or heads,
        context=table.context,
        **{name: value for name, value in open_parts.items() if value is not None},
        **{name: getattr(table, name) for name in OPTIONAL_FEATURES},
        window_size=table.window_size or 0,
    )
