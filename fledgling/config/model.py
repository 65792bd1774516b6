"""The model configuration: sizes and parts of one decoder, as a value.

A family is a preset of parts (norm, positions, feed-forward, head), and a depth determines the sizes. Fields that are
None are derived from both by `resolve`; any of them can be pinned. The model itself is `fledgling.model.transformer`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fledgling.config.errors import UserError, did_you_mean
from fledgling.config.fields import (
    choice,
    count,
    internal,
    number,
    optional,
    optional_choice,
)

WIDTH_PER_LAYER = 64
HEAD_WIDTH = {"fledgling": 128, "gpt2": 64, "llama": 128}  # of a model whose recipe pins no heads
NORMS = ("rms", "rms_weighted", "layer")
POSITIONS = ("rope", "learned")
ACTIVATIONS = ("relu2", "gelu", "swiglu")
OPTIONAL_FEATURES = ("flash_norm", "value_embeddings", "window_pattern", "residual_scalars")
LEGACY_FIELDS = {
    "hidden": "intermediate_size",
    "softcap": "logit_softcap",
    "tied": "tie_embeddings",
    "window": "window_size",
}

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
        "rope_direction": -1,  # not used
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
    """[model]: sizes and parts of one decoder.

    Without `vocab_size` it is a recipe's table: fields that are None are open. With it, it is complete: the constructor
    fills every open field from family and depth, and raises UserError where sizes do not fit together. The annotations
    are those of a complete configuration, the only one that a model is built from.
    """

    vocab_size: int = internal()  # entries of the tokenizer
    depth: int = count(4)  # layers
    width: int = count(None)  # C, the residual stream; None: 64 x depth
    heads: int = count(None)  # H, query heads; None: width over the family's head width
    kv_heads: int = count(None)  # key/value heads; None: as many as heads
    context: int = count(256)  # T, tokens of the longest row
    intermediate_size: int = count(None)  # width of the feed-forward; None: see derive_intermediate_size
    logit_softcap: float = number(None)  # logits become softcap * tanh(logits / softcap); 0: unchanged
    rope_base: float = number(10_000.0, above=True)  # theta of RoPE
    norm_eps: float = number(None, above=True)
    family: str = choice("fledgling", "gpt2", "llama")  # the preset, and the Hugging Face class of an export
    norm: str = optional_choice(*NORMS)  # RMS without weights, RMS with weights, or LayerNorm with weight and bias
    positions: str = optional_choice(*POSITIONS)  # RoPE, or a learned vector per position added to the embedding
    rope_direction: int = optional()  # -1 rotates the first half against the second by -angle; Llama's is 1
    activation: str = optional_choice(*ACTIVATIONS)  # relu2, gelu (tanh form): two matrices; swiglu: three
    bias: bool = optional()  # of every linear layer but the head
    tie_embeddings: bool = optional()  # embedding and head are one matrix
    qk_norm: bool = optional()  # queries and keys are divided by their root mean square
    embedding_norm: bool = optional()  # the embedding is divided by its root mean square
    flash_norm: bool = False  # the norms before attention and feed-forward divide after the product (flash_norm.py)
    value_embeddings: int = count(0, 0)  # every n-th layer, from the last, adds an embedding to its values; 0: none
    window_pattern: str = ""  # S and L, repeated over the layers: S sees window_size tokens; the last layer sees all
    window_size: int = count(None)  # tokens that S sees, itself included; None: a quarter of the context
    residual_scalars: bool = False  # each block reads a x + b x0: x0 the embedded token, a and b learned

    def __post_init__(self) -> None:
        if self.vocab_size is not None:
            for name, value in self._derived().items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
            self._check()

    def _derived(self) -> dict[str, Any]:
        """Returns the value of every field that family, depth and the given fields determine."""
        if self.family not in FAMILIES:
            hint = did_you_mean(self.family, FAMILIES)
            raise UserError(f"model.family {self.family!r} is not known; expected one of {', '.join(FAMILIES)}{hint}")
        parts = FAMILIES[self.family]
        width = WIDTH_PER_LAYER * self.depth if self.width is None else self.width
        heads = max(1, width // HEAD_WIDTH[self.family]) if self.heads is None else self.heads
        activation = self.activation or parts["activation"]
        return {
            **parts,
            "width": width,
            "heads": heads,
            "kv_heads": heads,
            "intermediate_size": derive_intermediate_size(width, activation),
            "window_size": max(1, self.context // 4) if "S" in self.window_pattern else 0,
        }

    def _check(self) -> None:
        """Raises UserError where sizes or parts do not fit together."""
        for name in ("vocab_size", "depth", "width", "heads", "kv_heads", "context", "intermediate_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected at least 1")
        for name, choices in {"norm": NORMS, "positions": POSITIONS, "activation": ACTIVATIONS}.items():
            value = getattr(self, name)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise UserError(f"model.{name} {value!r} is not known; expected one of {', '.join(choices)}{hint}")
        if self.width % self.heads:
            divisors = [h for h in range(1, self.width + 1) if self.width % h == 0]
            fit = min(divisors, key=lambda h: abs(h - self.heads))
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
        for name in ("value_embeddings", "window_size"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected at least 0")

    def resolve(self, vocab_size: int) -> ModelConfig:
        """Returns the complete configuration for a vocabulary of `vocab_size` entries."""
        return replace(self, vocab_size=vocab_size)

    def unpin(self, *names: str) -> ModelConfig:
        """Returns a recipe's table in which the fields `names` are open, so that they are derived."""
        opened: dict[str, Any] = dict.fromkeys(names)
        return replace(self, **opened)

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """Returns name -> (out, in) of the matrices of one block, in the model's order."""
        E, F, K = self.width, self.intermediate_size, self.kv_heads * self.head_width
        inputs = ("gate_proj", "up_proj") if self.is_gated else ("fc1",)
        shapes = {f"attention.{n}_proj": (out, E) for n, out in (("q", E), ("k", K), ("v", K), ("o", E))}
        shapes |= {f"mlp.{name}": (F, E) for name in inputs}
        return shapes | {f"mlp.{'down_proj' if self.is_gated else 'fc2'}": (E, F)}

    def block_matrices(self) -> dict[str, tuple[int, int]]:
        """Returns name -> (out, in) of the matrices of all blocks, in the model's order."""
        matrices = self.layer_matrices()
        return {f"blocks.{layer}.{name}": shape for layer in range(self.depth) for name, shape in matrices.items()}

    def layer_window_size(self, layer: int) -> int | None:
        """Returns how many tokens a query of that layer sees, itself included; None: all before it."""
        pattern = self.window_pattern
        is_short = pattern and layer < self.depth - 1 and pattern[layer % len(pattern)] == "S"
        return self.window_size if is_short and self.window_size < self.context else None

    def has_value_embedding(self, layer: int) -> bool:
        """Returns whether that layer adds an embedding of the token to its values."""
        return self.value_embeddings > 0 and (self.depth - 1 - layer) % self.value_embeddings == 0

    @property
    def enabled_features(self) -> tuple[str, ...]:
        """The optional features that are on, which no family has and which other programs cannot load."""
        return tuple(name for name in OPTIONAL_FEATURES if getattr(self, name))

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a third matrix, the gate."""
        return self.activation == "swiglu"

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`, which also reads the field names of older checkpoints.

        The oldest have `mlp_ratio`, the feed-forward's width over C. Raises UserError for an unknown field.
        """
        values = {LEGACY_FIELDS.get(name, name): value for name, value in values.items()}
        if "mlp_ratio" in values:
            values["intermediate_size"] = values.pop("mlp_ratio") * values["width"]
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"model description has unknown fields {unknown}; known: {sorted(known)}")
        return cls(**values)


def derive_intermediate_size(width: int, activation: str) -> int:
    """Returns the default width of the feed-forward: 4 C, or 8/3 C rounded up for SwiGLU's three matrices.

    Rounds to the largest power of two up to C / 4, at most 256: 11,008 for 4,096 (Llama 2), 704 for 256. The ratio
    stays between 2.66 and 2.92.
    """
    if activation != "swiglu":
        return 4 * width
    multiple = min(256, 1 << max(0, (width // 4).bit_length() - 1))
    return -(-8 * width // (3 * multiple)) * multiple
