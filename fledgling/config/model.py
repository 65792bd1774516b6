"""The model configuration: sizes and parts of one decoder, as a value.

A family is a preset of parts (norm, positions, feed-forward, head), and a depth determines the sizes. Fields that are
None are derived from both by `resolve`; any of them can be pinned. The model itself is `fledgling.model.transformer`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fledgling.config.errors import UserError, did_you_mean
from fledgling.config.feature_presets import FEATURE_PRESETS, FEATURES_OFF, name_preset
from fledgling.config.fields import choice, count, internal, number, optional, optional_choice
from fledgling.config.open_families import LLAMA, OPEN_FAMILIES

WIDTH_PER_LAYER = 64
HEAD_WIDTH = {"fledgling": 128, "gpt2": 64}  # of a model whose recipe pins no heads; 128 for the others
NORMS = ("rms", "rms_weighted", "layer")
POSITIONS = ("rope", "learned")
ACTIVATIONS = ("relu2", "gelu", "gelu_exact", "swiglu", "geglu")
FIRST_ACTIVATIONS = ("relu2", "gelu", "swiglu")
GATED_ACTIVATIONS = ("swiglu", "geglu")
QK_NORM_WEIGHTS = ("none", "head", "layer")
NORM_PLACEMENTS = ("pre", "post", "both")
ROPE_TYPES = ("default", "linear", "ntk", "yarn", "llama3")
GATE_WIDTH = 32  # values of the normalized input that a gate reads
OPTIONAL_FEATURES = (
    *("flash_norm", "value_embeddings", "window_pattern", "residual_scalars", "skip_scalars", "back_out", "smear"),
    *("head_gates", "exclusive_attention", "logit_shift"),
)
LEGACY_FIELDS = {
    "hidden": "intermediate_size",
    "softcap": "logit_softcap",
    "tied": "tie_embeddings",
    "window": "window_size",
}

# What the first families have of the parts that open models added.
PLAIN = {
    "qk_norm_weights": "none",
    "norm_placement": "pre",
    "parallel_residual": False,
    "partial_rotary_factor": 1.0,
    "embedding_multiplier": 1.0,
    "window_last_layer": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "fledgling": {
        **PLAIN,
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
        **PLAIN,
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
    "llama": LLAMA,
}
PRESETS = {**FAMILIES, **OPEN_FAMILIES}  # FAMILIES are those that this package trains from the seed


def choose_heads(width: int, head_width: float) -> int:
    """Returns the number of heads of about `head_width` into which a width divides: the larger of two equally near.

    A head has an even width, since RoPE rotates pairs; one head where no number of heads gives that.
    """
    wanted = width / head_width
    fitting = [heads for heads in range(1, 2 * math.ceil(wanted) + 1) if not width % (2 * heads)]
    return min(fitting, key=lambda heads: (abs(heads - wanted), -heads), default=1)


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
    family: str = choice(*PRESETS)  # the preset of parts, and the Hugging Face class of an export
    preset: str = choice(*FEATURE_PRESETS)  # of the optional features of our own family; each can be pinned
    norm: str = optional_choice(*NORMS)  # RMS without weights, RMS with weights, or LayerNorm with weight and bias
    positions: str = optional_choice(*POSITIONS)  # RoPE, or a learned vector per position added to the embedding
    rope_direction: int = optional()  # -1 rotates the first half against the second by -angle; Llama's is 1
    activation: str = optional_choice(*ACTIVATIONS)  # relu2, gelu (tanh form), gelu_exact, swiglu, geglu
    bias: bool = optional()  # of every linear layer but the head, unless the next fields say otherwise
    tie_embeddings: bool = optional()  # embedding and head are one matrix
    qk_norm: bool = optional()  # queries and keys are divided by their root mean square
    embedding_norm: bool = optional()  # the embedding is divided by its root mean square
    flash_norm: bool = False  # the norms before attention and feed-forward divide after the product (flash_norm.py)
    value_embeddings: int = count(None, 0)  # every n-th layer, from the last, adds an embedding to its values; 0: none
    window_pattern: str = (
        optional()
    )  # S and L, repeated over the layers: S sees window_size tokens; the last layer sees all
    window_size: int = count(None)  # tokens that S sees, itself included; None: the preset's share of the context
    head_dim: int = count(0, 0)  # D, width of a head; 0: width / heads
    qkv_bias: bool = optional()  # of queries, keys and values; None: as bias
    mlp_bias: bool = optional()  # of the feed-forward; None: as bias
    qk_norm_weights: str = optional_choice(*QK_NORM_WEIGHTS)  # of qk_norm, before RoPE: for a head, or for all
    norm_placement: str = optional_choice(*NORM_PLACEMENTS)  # of attention and feed-forward: before, after, or both
    parallel_residual: bool = optional()  # attention and feed-forward read the same stream
    embedding_multiplier: float = number(None, above=True)  # of the embedded tokens
    partial_rotary_factor: float = number(None, 0.0, 1.0, above=True)  # the share of a head that RoPE rotates
    rope_pattern: str = ""  # R and N, repeated over the layers: N has no positions; "": all have
    rope_local_base: float = number(0.0)  # theta of layers with a window, without rope_type; 0: rope_base
    rope_type: str = choice(*ROPE_TYPES)  # how RoPE reaches beyond the context that it was trained for
    rope_factor: float = number(1.0, 1.0)  # that the trained context is multiplied by
    rope_original_context: int = count(0, 0)  # tokens of the trained context; 0: context / rope_factor
    rope_low_freq_factor: float = number(1.0, above=True)  # of llama3
    rope_high_freq_factor: float = number(4.0, above=True)  # of llama3
    rope_beta_fast: float = number(32.0, above=True)  # of yarn
    rope_beta_slow: float = number(1.0, above=True)  # of yarn
    rope_attention_factor: float = number(0.0)  # of yarn, times cosines and sines; 0: 0.1 ln(rope_factor) + 1
    window_last_layer: bool = optional()  # whether the last layer may have a window
    residual_scalars: bool = optional()  # each block reads a x + b x0: x0 the embedded token, a and b learned
    value_gates: bool = optional()  # of value_embeddings: each head decides how much of it a token takes
    head_gates: bool = optional()  # each head's result is multiplied by 2 sigmoid(W x)
    exclusive_attention: bool = optional()  # each head's result without its part along the token's own value
    skip_scalars: bool = optional()  # blocks of the second half also read outputs of the first, times learned scalars
    back_out: bool = optional()  # the last norm reads the stream less a learned share of its state in the middle
    smear: bool = optional()  # the first block reads the embedded token and a gated share of the one before
    logit_shift: float = number(0.0, -1000.0, 1000.0)  # softcap * tanh((logits + logit_shift) / softcap)

    def __post_init__(self) -> None:
        if self.vocab_size is not None:
            for name, value in self._derive_fields().items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
            self._check()

    def _derive_fields(self) -> dict[str, Any]:
        """Returns the value of every field that family, depth and the given fields determine."""
        if self.preset not in FEATURE_PRESETS:
            hint = did_you_mean(self.preset, FEATURE_PRESETS)
            names = ", ".join(FEATURE_PRESETS)
            raise UserError(f"model.preset {self.preset!r} is not known; expected one of {names}{hint}")
        if self.family not in PRESETS:
            hint = did_you_mean(self.family, PRESETS)
            raise UserError(f"model.family {self.family!r} is not known; expected one of {', '.join(PRESETS)}{hint}")
        parts = PRESETS[self.family]
        width = WIDTH_PER_LAYER * self.depth if self.width is None else self.width
        heads = choose_heads(width, HEAD_WIDTH.get(self.family, 128)) if self.heads is None else self.heads
        activation = self.activation or parts["activation"]
        bias = parts["bias"] if self.bias is None else self.bias
        multiplier = parts["embedding_multiplier"]
        features = dict(FEATURE_PRESETS[self.preset] if self.family == "fledgling" else FEATURES_OFF)
        pattern, share = features["window_pattern"], features.pop("window_share")
        pattern = pattern if self.window_pattern is None else self.window_pattern
        if self.value_embeddings == 0:
            features["value_gates"] = False
        return {
            **parts,
            **features,
            "qkv_bias": bias or bool(parts.get("qkv_bias")),
            "mlp_bias": bias,
            "embedding_multiplier": width**0.5 if multiplier is None else multiplier,
            "width": width,
            "heads": heads,
            "kv_heads": heads,
            "intermediate_size": derive_intermediate_size(width, activation),
            "window_size": max(1, int(self.context * share)) if "S" in pattern else 0,
        }

    def _check(self) -> None:
        """Raises UserError where sizes or parts do not fit together."""
        for name in ("vocab_size", "depth", "width", "heads", "kv_heads", "context", "intermediate_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected at least 1")
        choices_of = {"norm": NORMS, "positions": POSITIONS, "activation": ACTIVATIONS, "rope_type": ROPE_TYPES}
        choices_of |= {"qk_norm_weights": QK_NORM_WEIGHTS, "norm_placement": NORM_PLACEMENTS}
        for name, choices in choices_of.items():
            value = getattr(self, name)
            if value not in choices:
                hint = did_you_mean(str(value), choices)
                raise UserError(f"model.{name} {value!r} is not known; expected one of {', '.join(choices)}{hint}")
        if not self.head_dim and self.width % self.heads:
            fit = choose_heads(self.width, self.width / self.heads)
            raise UserError(f"model.width {self.width} is not divisible by model.heads {self.heads}; try heads = {fit}")
        if self.rotary_width % 2 and self.positions == "rope":
            raise UserError(
                f"RoPE rotates pairs, and {self.rotary_width} values of a head: choose an even width / heads"
            )
        if self.heads % self.kv_heads:
            raise UserError(f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}")
        if self.rope_direction not in (-1, 1):
            raise UserError(f"model.rope_direction is {self.rope_direction}; expected 1 or -1")
        if not self.logit_softcap >= 0:
            raise UserError(f"model.logit_softcap is {self.logit_softcap}; expected a positive number, or 0 for none")
        if not abs(self.logit_shift) <= 1000:
            raise UserError(f"model.logit_shift is {self.logit_shift}; expected a number from -1000 to 1000")
        if self.logit_shift and not self.logit_softcap:
            raise UserError(
                "model.logit_shift needs model.logit_softcap, such as 11.5: without a cap it changes nothing"
            )
        if set(self.rope_pattern) - set("RN"):
            raise UserError(f'model.rope_pattern is "{self.rope_pattern}"; expected letters R and N, such as RRRN')
        if self.flash_norm and self.norm_placement == "post":
            raise UserError("model.flash_norm needs norms before attention and feed-forward; norm_placement is post")
        if self.flash_norm and self.norm == "layer":
            raise UserError('model.flash_norm needs a norm by the root mean square; model.norm is "layer"')
        if set(self.window_pattern) - set("SL"):
            raise UserError(f'model.window_pattern is "{self.window_pattern}"; expected letters S and L, such as SSSL')
        if self.value_gates and not self.value_embeddings:
            raise UserError("model.value_gates needs model.value_embeddings, such as 2: without them nothing is gated")
        for name in ("value_embeddings", "window_size"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected at least 0")

    def resolve(self, vocab_size: int) -> ModelConfig:
        """Returns the complete configuration for a vocabulary of `vocab_size` entries."""
        return replace(self, vocab_size=vocab_size)

    def with_context(self, context: int, rope_type: str = "default") -> ModelConfig:
        """Returns the same model with rows of at most `context` tokens.

        Args:
            rope_type: how RoPE reaches beyond the present context; "default" rotates on with the same frequencies.

        Raises:
            UserError: its positions are learned, or already scaled and the context is longer.
        """
        if context == self.context:
            return self
        if self.positions != "rope":
            raise UserError(f"the model has {self.context} learned positions: its context can only stay as it is")
        pinned = replace(self, rope_original_context=0 if self.rope_type == "default" else self.trained_context)
        if context < self.context or rope_type == "default":
            return replace(pinned, context=context)
        if self.rope_type != "default":
            raise UserError(f"the model's RoPE is scaled already ({self.rope_type}); lengthen what it was made from")
        factor = context / self.context
        scaled = replace(self, rope_type=rope_type, rope_factor=factor, rope_original_context=self.context)
        return replace(scaled, context=context)

    def unpin(self, *names: str) -> ModelConfig:
        """Returns a recipe's table in which the fields `names` are open, so that they are derived."""
        opened: dict[str, Any] = dict.fromkeys(names)
        return replace(self, **opened)

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.head_dim or self.width // self.heads

    @property
    def attention_width(self) -> int:
        """The width of all query heads, which is C unless head_dim is set."""
        return self.heads * self.head_width

    @property
    def rotary_width(self) -> int:
        """How many values of a head RoPE rotates."""
        return int(self.head_width * self.partial_rotary_factor)

    @property
    def trained_context(self) -> int:
        """Tokens of the context that RoPE was trained for."""
        return self.rope_original_context or max(1, round(self.context / self.rope_factor))

    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """Returns name -> (out, in) of the matrices of one block, in the model's order."""
        E, F, Q, K = self.width, self.intermediate_size, self.attention_width, self.kv_heads * self.head_width
        inputs = ("gate_proj", "up_proj") if self.is_gated else ("fc1",)
        shapes = {f"attention.{n}_proj": (out, E) for n, out in (("q", Q), ("k", K), ("v", K))}
        shapes["attention.o_proj"] = (E, Q)
        shapes |= {f"mlp.{name}": (F, E) for name in inputs}
        return shapes | {f"mlp.{'down_proj' if self.is_gated else 'fc2'}": (E, F)}

    def block_matrices(self) -> dict[str, tuple[int, int]]:
        """Returns name -> (out, in) of the matrices of all blocks, in the model's order."""
        matrices = self.layer_matrices()
        return {f"blocks.{layer}.{name}": shape for layer in range(self.depth) for name, shape in matrices.items()}

    def layer_window_size(self, layer: int) -> int | None:
        """Returns how many tokens a query of that layer sees, itself included; None: all before it."""
        pattern = self.window_pattern
        may = self.window_last_layer or layer < self.depth - 1
        is_short = pattern and may and pattern[layer % len(pattern)] == "S"
        return self.window_size if is_short and self.window_size < self.context else None

    def has_rope(self, layer: int) -> bool:
        """Returns whether RoPE rotates the queries and keys of that layer."""
        pattern = self.rope_pattern
        return self.positions == "rope" and (not pattern or pattern[layer % len(pattern)] == "R")

    def has_local_rope(self, layer: int) -> bool:
        """Returns whether that layer has the rotation of `rope_local_base`."""
        windowed = bool(self.window_pattern) and self.window_pattern[layer % len(self.window_pattern)] == "S"
        return self.rope_local_base > 0 and windowed

    def has_value_embedding(self, layer: int) -> bool:
        """Returns whether that layer adds an embedding of the token to its values."""
        return self.value_embeddings > 0 and (self.depth - 1 - layer) % self.value_embeddings == 0

    @property
    def num_skips(self) -> int:
        """How many blocks read the output of one before the one before them (`skip_scalars`)."""
        return max(0, (self.depth - 2) // 2) if self.skip_scalars else 0

    @property
    def enabled_features(self) -> tuple[str, ...]:
        """The optional features that are on, which no family has and which other programs cannot load."""
        return tuple(name for name in OPTIONAL_FEATURES if getattr(self, name))

    def list_open_parts(self) -> list[str]:
        """Returns the fields of open models' parts in which this model differs from the first families."""
        plain = {**PLAIN, "head_dim": 0, "rope_pattern": "", "rope_local_base": 0.0, "rope_type": "default"}
        plain |= dict.fromkeys(("qkv_bias", "mlp_bias"), self.bias)
        return [name for name, value in plain.items() if getattr(self, name) != value]

    @property
    def has_plain_blocks(self) -> bool:
        """Whether the blocks have only parts of the first families, for which other code has shortcuts."""
        plain = all(getattr(self, name) == value for name, value in PLAIN.items() if name.startswith(("qk_", "norm_")))
        no_other = not (self.parallel_residual or self.rope_pattern or self.rope_local_base or self.head_dim)
        return plain and no_other and self.partial_rotary_factor == 1.0 and self.activation in FIRST_ACTIVATIONS

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward has a third matrix, the gate."""
        return self.activation in GATED_ACTIVATIONS

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`, which also reads the field names of older checkpoints.

        The oldest have `mlp_ratio`, the feed-forward's width over C. Raises UserError for an unknown field.
        """
        values = {LEGACY_FIELDS.get(name, name): value for name, value in values.items()}
        name_preset(values)
        if "mlp_ratio" in values:
            values["intermediate_size"] = values.pop("mlp_ratio") * values["width"]
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"model description has unknown fields {unknown}; known: {sorted(known)}")
        return cls(**values)


def derive_intermediate_size(width: int, activation: str) -> int:
    """Returns the default width of the feed-forward: 4 C, or 8/3 C rounded up for the three matrices of a gate.

    Rounds to the largest power of two up to C / 4, at most 256: 11,008 for 4,096 (Llama 2), 704 for 256. The ratio
    stays between 2.66 and 2.92.
    """
    if activation not in GATED_ACTIVATIONS:
        return 4 * width
    multiple = min(256, 1 << max(0, (width // 4).bit_length() - 1))
    return -(-8 * width // (3 * multiple)) * multiple
