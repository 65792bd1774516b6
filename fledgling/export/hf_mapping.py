"""Maps our tensors and configuration to those of Hugging Face's classes: one table of names, read in both directions.

A list of mappings (`hf_tensor.py`) is the whole difference between two state dictionaries, so export and import cannot
disagree. The classes of open models are in `open_classes.py`.

    fledgling  NanoChatForCausalLM, or FledglingForCausalLM with its own code (own_class.py)
    gpt2  GPT2LMHeadModel      llama  LlamaForCausalLM
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fledgling.config import ModelConfig, UserError
from fledgling.config.model import PRESETS
from fledgling.export import open_classes
from fledgling.export.hf_rope import read_rope, write_rope
from fledgling.export.hf_tensor import TensorMapping
from fledgling.export.own_class import (
    OWN_CLASS,
    OWN_TYPE,
    check_own_class,
    needs_own_class,
    own_tensors,
    read_own_config,
    write_own_config,
)
from fledgling.export.untrusted import check_value

CLASSES = {"fledgling": "NanoChatForCausalLM", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
CLASSES |= {family: kind.name for family, kind in open_classes.CLASSES.items()}
# Settings that the class can represent; the others must be those of the family.
CONFIGURABLE = {
    "fledgling": {"activation", "tie_embeddings", "logit_softcap", "norm_eps"},
    "gpt2": {"tie_embeddings", "norm_eps"},
    "llama": {"tie_embeddings", "norm_eps"},
    **{family: {"tie_embeddings", "norm_eps", "window_last_layer"} for family in open_classes.CLASSES},
}
CONFIGURABLE["gemma3"] |= {"embedding_multiplier", "logit_softcap"}
CONFIGURABLE["gpt_neox"] |= {"parallel_residual", "partial_rotary_factor"}
CONFIGURABLE["phi3"] |= {"partial_rotary_factor"}


def check_family(config: ModelConfig) -> None:
    """Raises UserError, naming the setting, unless a class in transformers, or our own, can represent this model."""
    if needs_own_class(config):
        check_own_class(config)
        return
    for setting, expected in PRESETS[config.family].items():
        value = getattr(config, setting)
        if value != expected and setting not in {"bias", "qkv_bias", *CONFIGURABLE[config.family]}:
            raise UserError(
                f"this model's {setting} is {value!r} and {CLASSES[config.family]} has {expected!r}: "
                "no class of transformers represents it"
            )
    open_classes.check_biases(config)
    for feature in config.enabled_features:
        if feature != "flash_norm" and not (feature == "window_pattern" and config.window_last_layer):
            raise UserError(
                f"this model's {feature} is {getattr(config, feature)!r}, and no class of transformers supports it"
            )
    if config.family == "gpt2" and config.kv_heads != config.heads:
        raise UserError(
            f"this model has {config.kv_heads} key/value heads of {config.heads}; GPT2LMHeadModel needs all"
        )


def class_name(config: ModelConfig) -> str:
    """Returns the class that loads an export of this model."""
    return OWN_CLASS if needs_own_class(config) else CLASSES[config.family]


def tensor_mappings(config: ModelConfig) -> list[TensorMapping]:
    """Returns the tensors of the family's class in transformers, in its own order, each stored tensor once."""
    first = {
        "fledgling": own_tensors if needs_own_class(config) else _list_nanochat_tensors,
        "gpt2": _list_gpt2_tensors,
        "llama": _list_llama_tensors,
    }
    mappings = list(first.get(config.family, open_classes.open_tensors)(config))
    if not config.tie_embeddings:
        mappings.append(TensorMapping(open_classes.head_name(config), ("head.weight",)))
    return mappings


def _list_nanochat_tensors(config: ModelConfig) -> Iterator[TensorMapping]:
    yield TensorMapping("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.depth):
        block, layer_name = f"blocks.{layer}", f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield TensorMapping(f"{layer_name}.self_attn.{name}.weight", (f"{block}.attention.{name}.weight",))
        for name in ("fc1", "fc2"):
            yield TensorMapping(f"{layer_name}.mlp.{name}.weight", (f"{block}.mlp.{name}.weight",))


def _list_llama_tensors(config: ModelConfig) -> Iterator[TensorMapping]:
    yield TensorMapping("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.depth):
        block, layer_name = f"blocks.{layer}", f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            for kind in ("weight", "bias") if config.bias else ("weight",):
                yield TensorMapping(f"{layer_name}.self_attn.{name}.{kind}", (f"{block}.attention.{name}.{kind}",))
        for name in ("gate_proj", "up_proj", "down_proj"):
            for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
                yield TensorMapping(f"{layer_name}.mlp.{name}.{kind}", (f"{block}.mlp.{name}.{kind}",))
        yield TensorMapping(f"{layer_name}.input_layernorm.weight", (f"{block}.attention_norm.weight",))
        yield TensorMapping(f"{layer_name}.post_attention_layernorm.weight", (f"{block}.mlp_norm.weight",))
    yield TensorMapping("model.norm.weight", ("norm.weight",))


def _list_gpt2_tensors(config: ModelConfig) -> Iterator[TensorMapping]:
    yield TensorMapping("transformer.wte.weight", ("embedding.weight",))
    yield TensorMapping("transformer.wpe.weight", ("positions.weight",))
    for layer in range(config.depth):
        block, layer_name = f"blocks.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            yield TensorMapping(f"{layer_name}.ln_1.{kind}", (f"{block}.attention_norm.{kind}",))
            yield TensorMapping(f"{layer_name}.ln_2.{kind}", (f"{block}.mlp_norm.{kind}",))
            transposed = kind == "weight"  # Hugging Face stores (in, out)
            stacked = tuple(f"{block}.attention.{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj"))
            yield TensorMapping(f"{layer_name}.attn.c_attn.{kind}", stacked, transposed)
            yield TensorMapping(f"{layer_name}.attn.c_proj.{kind}", (f"{block}.attention.o_proj.{kind}",), transposed)
            yield TensorMapping(f"{layer_name}.mlp.c_fc.{kind}", (f"{block}.mlp.fc1.{kind}",), transposed)
            yield TensorMapping(f"{layer_name}.mlp.c_proj.{kind}", (f"{block}.mlp.fc2.{kind}",), transposed)
    for kind in ("weight", "bias"):
        yield TensorMapping(f"transformer.ln_f.{kind}", (f"norm.{kind}",))


# ---- config.json ----

ACTIVATIONS = {"relu2": "relu2", "gelu": "gelu_new", "swiglu": "silu"}
CONFIG_NAMES = {  # our name: Hugging Face name
    "fledgling": open_classes.SIZES,
    "llama": open_classes.SIZES,
    "gpt2": {
        "vocab_size": "vocab_size",
        "width": "n_embd",
        "intermediate_size": "n_inner",
        "depth": "n_layer",
        "heads": "n_head",
        "context": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
    },
}
MODEL_TYPES = {"nanochat": "fledgling", "gpt2": "gpt2", "llama": "llama"}
MODEL_TYPES |= {kind.model_type: family for family, kind in open_classes.CLASSES.items()}
# Keys of unsupported features, with the values that disable them.
SUPPORTED_VALUES = {
    "attn_logit_softcapping": (None,),
    "use_bidirectional_attention": (False, None),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "quantization_config": (None,),
}
MAX_VALUES = {
    "context": 1 << 20,
    "depth": 1 << 12,
    "width": 1 << 17,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 22,
}


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys of config.json that describe the model; the inverse of `from_hf_config`."""
    if needs_own_class(config):
        return write_own_config(config)
    if config.family in open_classes.CLASSES:
        return open_classes.write_open_config(config)
    model_type = next(name for name, family in MODEL_TYPES.items() if family == config.family)
    values: dict[str, Any] = {"architectures": [CLASSES[config.family]], "model_type": model_type}
    values |= {hf_name: getattr(config, name) for name, hf_name in CONFIG_NAMES[config.family].items()}
    if config.family == "gpt2":
        dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        return {**values, "activation_function": ACTIVATIONS[config.activation], **dropouts}
    values["hidden_act"] = ACTIVATIONS[config.activation]
    values["rope_parameters"] = write_rope(config)
    values["rope_theta"] = config.rope_base  # for readers older than rope_parameters
    values["attention_bias"] = config.bias
    if config.family == "llama":
        return {**values, "mlp_bias": config.mlp_bias, "head_dim": config.head_width}
    return {**values, "final_logit_softcapping": config.logit_softcap or None}


def from_hf_config(config_json: Mapping[str, Any]) -> ModelConfig:
    """Returns the model of a config.json. Raises UserError that names the unsupported key."""
    model_type = config_json.get("model_type")
    if model_type == OWN_TYPE:
        return read_own_config(config_json, MAX_VALUES)
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise UserError(f"config.json: model_type is {model_type!r}; expected one of {', '.join(MODEL_TYPES)}")
    family = MODEL_TYPES[model_type]
    for key, supported in SUPPORTED_VALUES.items():
        if key in config_json and config_json[key] not in supported:
            raise UserError(
                f"config.json: {key} is {config_json[key]!r}, which is not supported; expected {supported[-1]!r}"
            )
    if family in open_classes.CLASSES:
        config = open_classes.read_open_config(family, config_json, MAX_VALUES)
        check_family(config)
        return config
    values: dict[str, Any] = {}
    for name, hf_name in CONFIG_NAMES[family].items():
        if config_json.get(hf_name) is not None:
            values[name] = check_value(
                hf_name, config_json[hf_name], {"norm_eps": float, "tie_embeddings": bool}.get(name, int)
            )
            largest = MAX_VALUES.get(name, 1 << 20)
            if values[name] > largest:
                raise UserError(f"config.json: {hf_name} is {values[name]}; expected at most {largest}")
    missing = [hf for name, hf in CONFIG_NAMES[family].items() if name not in values and name in _REQUIRED]
    if missing:
        raise UserError(f"config.json: {missing[0]} is missing")
    values.setdefault("kv_heads", values["heads"])
    activation = config_json.get("activation_function" if family == "gpt2" else "hidden_act", _ACTIVATION[family])
    activations = {hf_name: name for name, hf_name in ACTIVATIONS.items()}
    if (
        not isinstance(activation, str)
        or activation not in activations
        or (activations[activation] == "swiglu") != (family == "llama")
    ):
        raise UserError(f"config.json: the activation {activation!r} is not supported; expected {_ACTIVATION[family]}")
    options = _family_options(family, config_json)
    if family == "fledgling":
        values["preset"] = "nanochat-2025"  # a NanoChat has no optional features
    config = ModelConfig(family=family, **values, activation=activations[activation], **options)
    check_family(config)
    return config


_REQUIRED = ("vocab_size", "width", "depth", "heads", "context")
_ACTIVATION = {"fledgling": "relu2", "gpt2": "gelu_new", "llama": "silu"}


def _family_options(family: str, config_json: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rotary base, biases and soft cap, where the family has them."""
    if family == "gpt2":
        return {}
    options = read_rope(config_json, 10_000.0)
    if family == "fledgling" and options["rope_type"] != "default":
        raise UserError(f"config.json: rope_parameters has the type {options['rope_type']}; NanoChat has the default")
    biases = {key: check_value(key, config_json.get(key, False), bool) for key in ("attention_bias", "mlp_bias")}
    if family == "llama":
        if config_json.get("head_dim") is not None:
            head_dim = check_value("head_dim", config_json["head_dim"], int)
            if head_dim * config_json["num_attention_heads"] != config_json["hidden_size"]:
                options["head_dim"] = head_dim
        return {**options, "bias": biases["attention_bias"], "mlp_bias": biases["mlp_bias"]}
    if any(biases.values()):
        raise UserError("config.json: attention_bias is true, which is not supported for NanoChat models")
    softcap = config_json.get("final_logit_softcapping", 15.0)
    return {
        **options,
        "logit_softcap": 0.0 if softcap is None else check_value("final_logit_softcapping", softcap, float),
    }
