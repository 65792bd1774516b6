"""The architectures of llama.cpp that a model can be, each as the parts that it computes.

llama    RMS norm, RoPE in neighbouring pairs, SwiGLU; biases if the model has them; Llama 3's scaled RoPE
qwen2    the same with RoPE in halves and biases of queries, keys and values
qwen3    queries and keys normalized, RoPE in halves, no biases
smollm3  as llama, every fourth layer without positions
phi3     as llama, with RoPE on a part of each head, in halves
olmo2    norms after attention and feed-forward, queries and keys normalized over all heads; windows (OLMo 3)
gemma3   norms before and after, scaled embedding, GELU gate, windows
arcee    as llama, with ReLU^2 instead of SwiGLU, no biases
gpt2     LayerNorm, learned positions, GELU, biases
gptneox  LayerNorm, RoPE on a part of each head, GELU, biases; attention and feed-forward side by side or in turn
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fledgling.config import ModelConfig, UserError

RMS_NORMS = ("rms", "rms_weighted")
ROPE_TYPES = ("default", "linear", "ntk", "yarn")
DEFAULT_VALUES: dict[str, tuple[Any, ...]] = {  # what an architecture computes unless it says otherwise
    "norm": RMS_NORMS,
    "positions": ("rope",),
    "activation": ("swiglu",),
    "bias": (False,),
    "qkv_bias": (False,),
    "mlp_bias": (False,),
    "qk_norm": (False,),
    "qk_norm_weights": ("none",),
    "norm_placement": ("pre",),
    "parallel_residual": (False,),
    "partial_rotary_factor": (1.0,),
    "embedding_multiplier": (1.0,),
    "logit_softcap": (0.0,),
    "rope_type": ROPE_TYPES,
}
GEMMA_27B_LAYERS = 62
SAME_FUNCTION = ("flash_norm", "window_pattern")  # optional features that change nothing, or are looked at by layer
VALUE_CHECKS: dict[str, Callable[[float], bool]] = {  # instead of a list of values
    "partial_rotary_factor": lambda value: 0 < value <= 1,
    "logit_softcap": lambda value: value >= 0,
    "embedding_multiplier": lambda value: value > 0,
}


@dataclass(frozen=True)
class Architecture:
    """An architecture, the values of a model's settings that it computes, and how its tensors are stored.

    rotates_pairs: RoPE turns neighbouring pairs, and not the halves of a head.
    joint_qkv, joint_gate: queries, keys and values are one tensor; gate and up are one.
    any_value: settings of VALUE_CHECKS that it takes.
    full_every: every n-th layer sees everything and the others have a window; 0: no windows.
    no_rope_every: every n-th layer has no positions; 0: all have.
    """

    name: str
    parts: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    rotates_pairs: bool = False
    joint_qkv: bool = False
    joint_gate: bool = False
    any_value: tuple[str, ...] = ()
    full_every: int = 0
    no_rope_every: int = 0

    def list_differences(self, config: ModelConfig) -> list[str]:
        """Returns the settings of a model that this architecture does not compute."""
        found = []
        for name, values in (DEFAULT_VALUES | self.parts).items():
            value = getattr(config, name)
            if not (VALUE_CHECKS[name](value) if name in self.any_value else value in values):
                found.append(name)
        found += [name for name in config.enabled_features if name not in SAME_FUNCTION]
        layers = range(config.depth)
        windows = [has_window(config, layer) for layer in layers]
        if any(windows) and windows != [bool(self.full_every and (n + 1) % self.full_every) for n in layers]:
            found.append("window_pattern")
        turning = [not self.no_rope_every or (n + 1) % self.no_rope_every > 0 for n in layers]
        if config.positions == "rope" and [config.has_rope(layer) for layer in layers] != turning:
            found.append("rope_pattern")
        if any(windows) and self.name != "gemma3":  # with a window, RoPE has the same theta and is not scaled
            scaled = config.rope_type != "default" and not config.rope_local_base
            found += ["rope_local_base"] if scaled or config.rope_local_base not in (0, config.rope_base) else []
        if config.embedding_norm and (config.tie_embeddings or self.name in ("gpt2", "gptneox")):
            found.append("embedding_norm")  # head and embedding are one matrix in the file too
        if self.name in ("gpt2", "gptneox"):
            found += ["kv_heads"] if config.kv_heads != config.heads else []
            found += ["head_dim"] if config.head_dim else []
        if self.name == "gemma3" and abs(config.embedding_multiplier - config.width**0.5) > 1e-6:
            found.append("embedding_multiplier")
        if config.rope_direction < 0 and config.partial_rotary_factor < 1:
            found.append("rope_direction")  # exchanging halves turns what is not rotated too
        return found


def has_window(config: ModelConfig, layer: int) -> bool:
    """Returns whether a layer is one of those with a window, though the window may be as long as the context."""
    pattern = config.window_pattern
    may = config.window_last_layer or layer < config.depth - 1
    short = bool(pattern) and may and pattern[layer % len(pattern)] == "S"
    return short and (config.window_size < config.context or config.rope_local_base > 0)


GPT: dict[str, tuple[Any, ...]] = {
    "norm": ("layer",),
    **dict.fromkeys(("bias", "qkv_bias", "mlp_bias"), (True,)),
}
ARCHITECTURES = (
    Architecture(
        "llama",
        {**dict.fromkeys(("bias", "qkv_bias", "mlp_bias"), (False, True)), "rope_type": (*ROPE_TYPES, "llama3")},
        True,
    ),
    Architecture("qwen2", {"qkv_bias": (True,)}),
    Architecture("qwen3", {"qk_norm": (True,), "qk_norm_weights": ("none", "head")}),
    Architecture("arcee", {"activation": ("relu2",)}, True),
    Architecture("smollm3", {}, True, no_rope_every=4),
    Architecture("phi3", joint_qkv=True, joint_gate=True, any_value=("partial_rotary_factor",)),
    Architecture(
        "olmo2",
        {"qk_norm": (True,), "qk_norm_weights": ("layer",), "norm_placement": ("post",)},
        full_every=4,
    ),
    Architecture(
        "gemma3",
        {
            "qk_norm": (True,),
            "qk_norm_weights": ("head",),
            "norm_placement": ("both",),
            "activation": ("geglu",),
            "rope_type": ("default", "linear"),
        },
        any_value=("logit_softcap", "embedding_multiplier"),
        full_every=6,
    ),
    Architecture("gpt2", {**GPT, "positions": ("learned",), "activation": ("gelu",)}, joint_qkv=True),
    Architecture(
        "gptneox",
        {**GPT, "activation": ("gelu", "gelu_exact"), "parallel_residual": (False, True)},
        joint_qkv=True,
        any_value=("partial_rotary_factor",),
    ),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def check_gemma_scale(config: ModelConfig) -> None:
    """Raises UserError for Gemma 3's 27B, which llama.cpp recognizes by its layers and gives a scale of its own."""
    if config.family == "gemma3" and config.depth == GEMMA_27B_LAYERS:
        raise UserError(
            f"llama.cpp scales the scores of a gemma3 model of {config.depth} layers as those of Gemma 3 27B, by "
            "sqrt(width / heads), which is not supported; use a Hugging Face directory"
        )


def choose_architecture(config: ModelConfig) -> Architecture:
    """Returns the architecture that computes the same function. Raises UserError, naming what the closest lacks."""
    check_gemma_scale(config)
    qwen2 = BY_NAME["qwen2"]
    if config.qkv_bias and not qwen2.list_differences(config):
        return qwen2  # llama computes it too, but this is the name that other programs expect
    differences = {architecture.name: architecture.list_differences(config) for architecture in ARCHITECTURES}
    closest = min(differences, key=lambda name: len(differences[name]))
    if differences[closest]:
        values = ", ".join(f"model.{name} = {getattr(config, name)!r}" for name in differences[closest])
        raise UserError(
            f"no architecture of llama.cpp computes this model: the closest is {closest}, and it differs in {values}; "
            "use export hf, or train one like the recipe quickstart-gguf"
        )
    return BY_NAME[closest]
