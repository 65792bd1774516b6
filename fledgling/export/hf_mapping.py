"""Our tensors and those of Hugging Face's classes: one table of names, read in both directions.

One idea: a tensor of theirs is one or several of ours, stacked along the first dimension (GPT-2 keeps queries, keys and
values in one), perhaps transposed (GPT-2 stores (in, out)). A list of such entries is the whole difference, so export
and import cannot disagree. No value is ever changed.

    fledgling  NanoChatForCausalLM      gpt2  GPT2LMHeadModel      llama  LlamaForCausalLM
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.config.model import FAMILIES

CLASSES = {"fledgling": "NanoChatForCausalLM", "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}
# What a class of theirs can be told; the other parts must be those of the family.
CONFIGURABLE = {
    "fledgling": {"activation", "tie_embeddings", "logit_softcap", "norm_eps"},
    "gpt2": {"tie_embeddings", "norm_eps"},
    "llama": {"tie_embeddings", "bias", "norm_eps"},
}


@dataclass(frozen=True)
class TensorMapping:
    """One tensor of theirs: our tensors that it is made of, stacked along dimension 0, then perhaps transposed."""

    hf_name: str
    names: tuple[str, ...]
    transposed: bool = False


def check_family(config: ModelConfig) -> None:
    """Raise UserError, naming the part, unless the family's class in transformers can hold this model."""
    for part, expected in FAMILIES[config.family].items():
        given = getattr(config, part)
        if given != expected and part not in CONFIGURABLE[config.family]:
            raise UserError(
                f"this model's {part} is {given!r} and {CLASSES[config.family]} has {expected!r}: "
                "it is of no class that transformers ships"
            )
    for idea in config.enabled_features:
        if idea != "flash_norm":  # which computes the same function
            raise UserError(f"this model's {idea} is {getattr(config, idea)!r}, and no class of transformers has that")
    if config.activation == "swiglu" and config.family == "fledgling":
        raise UserError("this model's activation is 'swiglu' and NanoChatForCausalLM has two matrices, not three")
    if config.family == "gpt2" and config.kv_heads != config.heads:
        raise UserError(f"this model has {config.kv_heads} key/value heads of {config.heads}; GPT2LMHeadModel has all")


def tensor_mappings(config: ModelConfig) -> list[TensorMapping]:
    """The tensors of the family's class in transformers, in its own order, each stored tensor once."""
    found = list({"fledgling": _nanochat, "gpt2": _gpt2, "llama": _llama}[config.family](config))
    if not config.tie_embeddings:
        found.append(TensorMapping("lm_head.weight", ("head.weight",)))
    return found


def _nanochat(config: ModelConfig) -> Iterator[TensorMapping]:
    yield TensorMapping("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield TensorMapping(f"{theirs}.self_attn.{name}.weight", (f"{ours}.attention.{name}.weight",))
        for name in ("fc1", "fc2"):
            yield TensorMapping(f"{theirs}.mlp.{name}.weight", (f"{ours}.mlp.{name}.weight",))


def _llama(config: ModelConfig) -> Iterator[TensorMapping]:
    kinds = ("weight", "bias") if config.bias else ("weight",)
    yield TensorMapping("model.embed_tokens.weight", ("embedding.weight",))
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for kind in kinds:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield TensorMapping(f"{theirs}.self_attn.{name}.{kind}", (f"{ours}.attention.{name}.{kind}",))
            for name in ("gate_proj", "up_proj", "down_proj"):
                yield TensorMapping(f"{theirs}.mlp.{name}.{kind}", (f"{ours}.mlp.{name}.{kind}",))
        yield TensorMapping(f"{theirs}.input_layernorm.weight", (f"{ours}.attention_norm.weight",))
        yield TensorMapping(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.mlp_norm.weight",))
    yield TensorMapping("model.norm.weight", ("norm.weight",))


def _gpt2(config: ModelConfig) -> Iterator[TensorMapping]:
    yield TensorMapping("transformer.wte.weight", ("embedding.weight",))
    yield TensorMapping("transformer.wpe.weight", ("positions.weight",))
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            yield TensorMapping(f"{theirs}.ln_1.{kind}", (f"{ours}.attention_norm.{kind}",))
            yield TensorMapping(f"{theirs}.ln_2.{kind}", (f"{ours}.mlp_norm.{kind}",))
            turned = kind == "weight"  # theirs are (in, out)
            stacked = tuple(f"{ours}.attention.{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj"))
            yield TensorMapping(f"{theirs}.attn.c_attn.{kind}", stacked, turned)
            yield TensorMapping(f"{theirs}.attn.c_proj.{kind}", (f"{ours}.attention.o_proj.{kind}",), turned)
            yield TensorMapping(f"{theirs}.mlp.c_fc.{kind}", (f"{ours}.mlp.fc1.{kind}",), turned)
            yield TensorMapping(f"{theirs}.mlp.c_proj.{kind}", (f"{ours}.mlp.fc2.{kind}",), turned)
    for kind in ("weight", "bias"):
        yield TensorMapping(f"transformer.ln_f.{kind}", (f"norm.{kind}",))


def to_hf_tensor(entry: TensorMapping, state: Mapping[str, Tensor]) -> Tensor:
    """Their tensor out of our state dictionary."""
    parts = [state[name] for name in entry.names]
    tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
    return tensor.T.contiguous() if entry.transposed else tensor


def from_hf_tensor(entry: TensorMapping, tensor: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Our tensors, of the shapes given by name, out of theirs; the inverse of `join`.

    Raises UserError naming the tensor when its shape is not the one expected.
    """
    rows = [shapes[name][0] for name in entry.names]
    expected = [sum(rows), *shapes[entry.names[0]][1:]]
    if entry.transposed:
        expected.reverse()
    if list(tensor.shape) != expected:
        raise UserError(f"tensor {entry.hf_name} has the shape {list(tensor.shape)}; config.json means {expected}")
    upright = tensor.T if entry.transposed else tensor
    return {name: piece.contiguous() for name, piece in zip(entry.names, upright.split(rows), strict=True)}


# ---- config.json -----------------------------------------------------------------------------------

ACTIVATIONS = {"relu2": "relu2", "gelu": "gelu_new", "swiglu": "silu"}
CONFIG_NAMES = {  # ours: theirs
    "fledgling": {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "intermediate_size": "intermediate_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "context": "max_position_embeddings",
        "norm_eps": "rms_norm_eps",
        "tie_embeddings": "tie_word_embeddings",
    },
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
CONFIG_NAMES["llama"] = CONFIG_NAMES["fledgling"]
MODEL_TYPES = {"nanochat": "fledgling", "gpt2": "gpt2", "llama": "llama"}
# What would change the result and is not ours to compute: key, and the values that mean it is off.
SUPPORTED_VALUES = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "rope_scaling": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, 1.0),
    "head_dim": (None,),
}
MAX_VALUES = {
    "context": 1 << 20,
    "depth": 1 << 12,
    "width": 1 << 17,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 22,
}


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that say what the model is; the inverse of `understand`."""
    kind = next(name for name, family in MODEL_TYPES.items() if family == config.family)
    said: dict[str, Any] = {"architectures": [CLASSES[config.family]], "model_type": kind}
    said |= {theirs: getattr(config, ours) for ours, theirs in CONFIG_NAMES[config.family].items()}
    if config.family == "gpt2":
        dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        return {**said, "activation_function": ACTIVATIONS[config.activation], **dropouts}
    said["hidden_act"] = ACTIVATIONS[config.activation]
    said["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_base}
    said["rope_theta"] = config.rope_base  # where readers from before rope_parameters look
    said["attention_bias"] = config.bias
    if config.family == "llama":
        return {**said, "mlp_bias": config.bias, "head_dim": config.head_width}
    return {**said, "final_logit_softcapping": config.logit_softcap or None}


def from_hf_config(said: Mapping[str, Any]) -> ModelConfig:
    """The model that somebody's config.json means. Raises UserError that names the key it cannot follow."""
    kind = said.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise UserError(f"config.json: model_type is {kind!r}; expected one of {', '.join(MODEL_TYPES)}")
    family = MODEL_TYPES[kind]
    values: dict[str, Any] = {}
    for ours, theirs in CONFIG_NAMES[family].items():
        if said.get(theirs) is not None:
            values[ours] = _checked(theirs, said[theirs], {"norm_eps": float, "tie_embeddings": bool}.get(ours, int))
            if values[ours] > MAX_VALUES.get(ours, 1 << 20):
                raise UserError(f"config.json: {theirs} is {values[ours]}; at most {MAX_VALUES[ours]} is read")
    needed = [theirs for ours, theirs in CONFIG_NAMES[family].items() if ours not in values and ours in _NEEDED]
    if needed:
        raise UserError(f"config.json: {needed[0]} is missing")
    values.setdefault("kv_heads", values["heads"])
    activation = said.get("activation_function" if family == "gpt2" else "hidden_act", _USUAL[family])
    known = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    if (
        not isinstance(activation, str)
        or activation not in known
        or (known[activation] == "swiglu") != (family == "llama")
    ):
        raise UserError(f"config.json: the activation {activation!r} is not built; expected {_USUAL[family]}")
    config = ModelConfig(family=family, **values, activation=known[activation], **_rest(family, said))
    allowed = {**SUPPORTED_VALUES, "head_dim": (None, config.head_width)}
    for key, off in allowed.items():
        if key in said and said[key] not in off:
            raise UserError(f"config.json: {key} is {said[key]!r}, which is not built; expected {off[-1]!r}")
    check_family(config)
    return config


_NEEDED = ("vocab_size", "width", "depth", "heads", "context")
_USUAL = {"fledgling": "relu2", "gpt2": "gelu_new", "llama": "silu"}


def _rest(family: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary base, biases and soft cap, where the family has them."""
    if family == "gpt2":
        return {}
    rope = said.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise UserError(f"config.json: rope_parameters is {rope!r}; only the default rope_type is built")
    base = rope.get("rope_theta", said.get("rope_theta", 10_000.0))
    rest = {"rope_base": _checked("rope_theta", base, float)}
    biases = {key: _checked(key, said.get(key, False), bool) for key in ("attention_bias", "mlp_bias")}
    if family == "llama":
        if len(set(biases.values())) > 1:
            raise UserError(f"config.json: {biases} differ; biases are built in all matrices or in none")
        return {**rest, "bias": biases["attention_bias"]}
    if any(biases.values()):
        raise UserError("config.json: attention_bias is true, which NanoChat models here do not have")
    cap = said.get("final_logit_softcapping", 15.0)
    return {**rest, "logit_softcap": 0.0 if cap is None else _checked("final_logit_softcapping", cap, float)}


def _checked(key: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    sound = type(value) is kind and (kind is bool or (value > 0 and value < float("inf")))
    if not sound:
        what = {int: "a whole number above 0", float: "a number above 0", bool: "true or false"}[kind]
        raise UserError(f"config.json: {key} is {str(value)[:60]!r}; expected {what}")
    return value
