"""Classes of open models in transformers: their tensors and their config.json, for every family of OPEN_FAMILIES.

A class is a value of `OpenClass`. Tensors follow from the model's configuration, since most classes name them as Llama
does; what a class names or stores otherwise are fields of its value. Nothing here is computed: the parts are those of
`fledgling.model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.config.model import PRESETS
from fledgling.config.open_families import OPEN_FAMILIES
from fledgling.export.hf_layers import QUERY_SCALAR, read_layers, write_layers
from fledgling.export.hf_rope import read_rope, write_rope
from fledgling.export.hf_tensor import TensorMapping
from fledgling.export.untrusted import check_value

SIZES = {  # our name: key of config.json, in all classes but GPT-2
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "intermediate_size": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
REQUIRED = ("vocab_size", "width", "intermediate_size", "depth", "heads", "context")
TYPES = {"norm_eps": float, "tie_embeddings": bool}
SAME_ACTIVATIONS = {"swish": "silu"}
ATTENTION = ("attention_bias",)
LLAMA_BIASES = (*ATTENTION, "mlp_bias")
BIASES = {"attention_bias": "bias", "mlp_bias": "mlp_bias"}  # keys -> our settings; of the attention's four matrices


@dataclass(frozen=True)
class OpenClass:
    """How a class differs from Llama's in names and defaults.

    joint: queries, keys and values are one tensor, and so are gate and up.
    norm_offset: our weight of a norm less the stored one.
    theta: default of rope_theta; local_theta: see `read_rope`.
    biases: the keys that give it biases in matrices.
    head_dim: its default; 0 is width / heads.
    window: how layers have windows where config.json has no layer_types: "all", "from" a layer, "every" n-th not, those
        that are "unrotated", "no".
    """

    name: str
    model_type: str
    joint: bool = False
    norm_offset: float = 0.0
    theta: float = 10_000.0
    local_theta: float | None = None
    biases: tuple[str, ...] = ()
    head_dim: int = 0
    window: str = "no"
    activation_key: str = "hidden_act"
    activation: str = "silu"
    norm_eps: float = 1e-6


CLASSES = {
    "mistral": OpenClass("MistralForCausalLM", "mistral", window="all"),
    "phi3": OpenClass("Phi3ForCausalLM", "phi3", joint=True, window="all", norm_eps=1e-5),
    "qwen2": OpenClass("Qwen2ForCausalLM", "qwen2", window="from"),
    "qwen3": OpenClass("Qwen3ForCausalLM", "qwen3", window="from", head_dim=128, biases=ATTENTION),
    "smollm3": OpenClass("SmolLM3ForCausalLM", "smollm3", theta=2_000_000.0, window="unrotated", biases=LLAMA_BIASES),
    "olmo2": OpenClass("Olmo2ForCausalLM", "olmo2", norm_eps=1e-5, biases=ATTENTION),
    "olmo3": OpenClass(
        "Olmo3ForCausalLM",
        "olmo3",
        theta=500_000.0,
        local_theta=0.0,
        biases=ATTENTION,
        norm_eps=1e-5,
        window="every",
    ),
    "gemma3": OpenClass(
        "Gemma3ForCausalLM",
        "gemma3_text",
        norm_offset=1.0,
        theta=1_000_000.0,
        local_theta=10_000.0,
        biases=ATTENTION,
        head_dim=256,
        window="every",
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
    ),
    "gpt_neox": OpenClass("GPTNeoXForCausalLM", "gpt_neox", biases=ATTENTION, activation="gelu", norm_eps=1e-5),
}
NORM_NAMES = {  # by norm_placement: our norm of a block: its name
    "pre": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "post": {
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
    "both": {
        "attention_norm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
}


# ---- tensors -------------------------------------------------------------------------------------


def open_tensors(config: ModelConfig) -> Iterator[TensorMapping]:
    """Yields the tensors of the family's class, without the head."""
    yield from _neox_tensors(config) if config.family == "gpt_neox" else _llama_like_tensors(config)


def check_biases(config: ModelConfig) -> None:
    """Raises UserError for biases in matrices in which the family's class in transformers has none, or needs them."""
    keys = CLASSES[config.family].biases if config.family in CLASSES else LLAMA_BIASES * (config.family == "llama")
    preset = PRESETS[config.family]
    attention = (preset["bias"], preset.get("qkv_bias", preset["bias"]))
    expected = (config.bias, config.bias) if "attention_bias" in keys else attention
    mlp = config.mlp_bias if "mlp_bias" in keys else preset["bias"]
    if (config.bias, config.qkv_bias, config.mlp_bias) != (*expected, mlp):
        raise UserError(
            f"this model's bias is {config.bias}, its qkv_bias {config.qkv_bias}, its mlp_bias {config.mlp_bias}, and "
            "the class of transformers has no such biases: no class represents it"
        )


def _llama_like_tensors(config: ModelConfig) -> Iterator[TensorMapping]:
    kind = CLASSES[config.family]
    yield TensorMapping("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.depth):
        block, prefix = f"blocks.{layer}", f"model.layers.{layer}"
        qkv = tuple(f"{block}.attention.{name}_proj" for name in "qkv")
        gates = tuple(f"{block}.mlp.{name}_proj" for name in ("gate", "up"))
        modules: dict[str, tuple[str, ...]] = {
            f"self_attn.{name}_proj": (one,) for name, one in zip("qkv", qkv, strict=True)
        }
        modules |= {f"mlp.{name}_proj": (one,) for name, one in zip(("gate", "up"), gates, strict=True)}
        if kind.joint:
            modules = {"self_attn.qkv_proj": qkv, "mlp.gate_up_proj": gates}
        modules |= {"self_attn.o_proj": (f"{block}.attention.o_proj",), "mlp.down_proj": (f"{block}.mlp.down_proj",)}
        for module, names in modules.items():
            yield TensorMapping(f"{prefix}.{module}.weight", tuple(f"{name}.weight" for name in names))
            attention_bias = config.qkv_bias if set(names) <= set(qkv) else config.bias
            if attention_bias if module.startswith("self_attn") else config.mlp_bias:
                yield TensorMapping(f"{prefix}.{module}.bias", tuple(f"{name}.bias" for name in names))
        if config.qk_norm_weights != "none":
            for name in ("q_norm", "k_norm"):
                names = (f"{block}.attention.query_key.{name}.weight",)
                yield TensorMapping(f"{prefix}.self_attn.{name}.weight", names, offset=kind.norm_offset)
        for part, name in NORM_NAMES[config.norm_placement].items():
            yield TensorMapping(f"{prefix}.{name}.weight", (f"{block}.{part}.weight",), offset=kind.norm_offset)
    yield TensorMapping("model.norm.weight", ("norm.weight",), offset=kind.norm_offset)


def _neox_tensors(config: ModelConfig) -> Iterator[TensorMapping]:
    yield TensorMapping("gpt_neox.embed_in.weight", ("embedding.weight",))
    for layer in range(config.depth):
        block, prefix = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        for kind in ("weight", "bias"):
            yield TensorMapping(f"{prefix}.input_layernorm.{kind}", (f"{block}.attention_norm.{kind}",))
            yield TensorMapping(f"{prefix}.post_attention_layernorm.{kind}", (f"{block}.mlp_norm.{kind}",))
            qkv = tuple(f"{block}.attention.{name}_proj.{kind}" for name in "qkv")
            if kind == "weight" or config.bias:
                yield TensorMapping(f"{prefix}.attention.query_key_value.{kind}", qkv, heads=config.heads)
                yield TensorMapping(f"{prefix}.attention.dense.{kind}", (f"{block}.attention.o_proj.{kind}",))
            yield TensorMapping(f"{prefix}.mlp.dense_h_to_4h.{kind}", (f"{block}.mlp.fc1.{kind}",))
            yield TensorMapping(f"{prefix}.mlp.dense_4h_to_h.{kind}", (f"{block}.mlp.fc2.{kind}",))
    for kind in ("weight", "bias"):
        yield TensorMapping(f"gpt_neox.final_layer_norm.{kind}", (f"norm.{kind}",))


def head_name(config: ModelConfig) -> str:
    """Returns the name of the head's tensor."""
    return "embed_out.weight" if config.family == "gpt_neox" else "lm_head.weight"


# ---- config.json ---------------------------------------------------------------------------------


def size_keys(family: str) -> dict[str, str]:
    """Returns our names of sizes -> keys of config.json."""
    if family != "gpt_neox":
        return SIZES
    return {name: key for name, key in SIZES.items() if name != "kv_heads"} | {"norm_eps": "layer_norm_eps"}


def read_open_config(family: str, config_json: Mapping[str, Any], largest: Mapping[str, int]) -> ModelConfig:
    """Returns the model of a config.json. Raises UserError that names the unsupported key.

    largest: bounds of sizes, by our names.
    """
    kind, preset = CLASSES[family], OPEN_FAMILIES[family]
    values: dict[str, Any] = {"norm_eps": kind.norm_eps}
    for name, key in size_keys(family).items():
        if config_json.get(key) is not None:
            values[name] = check_value(key, config_json[key], TYPES.get(name, int))
            if values[name] > largest.get(name, 1 << 20):
                raise UserError(f"config.json: {key} is {values[name]}; expected at most {largest.get(name, 1 << 20)}")
    if missing := [size_keys(family)[name] for name in REQUIRED if name not in values]:
        raise UserError(f"config.json: {missing[0]} is missing")
    values.setdefault("kv_heads", values["heads"])
    values["head_dim"] = check_value(
        "head_dim", config_json.get("head_dim") or kind.head_dim or _compute_head_dim(values), int
    )
    if values["head_dim"] > 1 << 14:
        raise UserError(f"config.json: head_dim is {values['head_dim']}; expected at most {1 << 14}")
    if values["head_dim"] * values["heads"] == values["width"]:
        values["head_dim"] = 0
    activation = config_json.get(kind.activation_key, kind.activation)
    if SAME_ACTIVATIONS.get(str(activation), activation) != kind.activation:
        raise UserError(
            f"config.json: the activation {str(activation)[:60]!r} is not supported; expected {kind.activation}"
        )
    theta_key = "rotary_emb_base" if family == "gpt_neox" else "rope_theta"
    values |= read_rope(config_json, kind.theta, theta_key, kind.local_theta)
    values |= read_layers(family, kind.window, config_json, values)
    if family == "gpt_neox":
        share = config_json.get("rotary_pct", 0.25)
        values.setdefault("partial_rotary_factor", check_value("rotary_pct", share, float))
        parallel = check_value("use_parallel_residual", config_json.get("use_parallel_residual", True), bool)
        values["parallel_residual"] = parallel
    for key in kind.biases:  # other classes do not look at these keys
        values[BIASES[key]] = check_value(key, config_json.get(key, family == "gpt_neox"), bool)
    values |= {"qkv_bias": values["bias"], "mlp_bias": values.get("mlp_bias", preset["bias"])} if kind.biases else {}
    if family == "gemma3":
        softcap = config_json.get("final_logit_softcapping")
        values["logit_softcap"] = 0.0 if softcap is None else check_value("final_logit_softcapping", softcap, float)
    return ModelConfig(family=family, activation=preset["activation"], **values)


def _compute_head_dim(values: Mapping[str, Any]) -> int:
    width, heads = values["width"], values["heads"]
    if width % heads:
        raise UserError(f"config.json: hidden_size {width} is not divisible by num_attention_heads {heads}")
    return width // heads


def fold_query_scale(config: ModelConfig, config_json: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Multiplies the weights of Gemma 3's norms of queries, in place, where its scores are not q k / sqrt(head_dim).

    That of 27B has sqrt(168) with heads of 128. The model computes the same, and is exported with sqrt(head_dim).
    """
    if config.family != "gemma3":
        return
    scalar = check_value(QUERY_SCALAR, config_json.get(QUERY_SCALAR, 256), float)
    for layer in range(config.depth if scalar != config.head_width else 0):
        state[f"blocks.{layer}.attention.query_key.q_norm.weight"].mul_((config.head_width / scalar) ** 0.5)


def write_open_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys of config.json that describe the model; the inverse of `read_open_config`."""
    family, kind = config.family, CLASSES[config.family]
    values: dict[str, Any] = {"architectures": [kind.name], "model_type": kind.model_type}
    values |= {key: getattr(config, name) for name, key in size_keys(family).items()}
    values |= {kind.activation_key: kind.activation, "head_dim": config.head_width}
    rope = write_rope(config)
    values["rope_parameters"] = rope
    if config.rope_local_base:
        local = {"rope_type": "default", "rope_theta": config.rope_local_base}
        values["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    if family == "gpt_neox":
        del values["head_dim"]
        values |= {"use_parallel_residual": config.parallel_residual, "attention_bias": config.bias}
        return values
    return values | {key: getattr(config, BIASES[key]) for key in kind.biases} | write_layers(config)
