"""Models that no class of transformers holds: their directory carries `modeling_fledgling.py`, named by auto_map.

They load with `trust_remote_code=True`; the others load without. Start with `needs_own_class`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fledgling.config import ModelConfig, UserError
from fledgling.config.model import PRESETS
from fledgling.export.hf_tensor import TensorMapping
from fledgling.export.untrusted import check_value
from fledgling.model.transformer import Transformer
from fledgling.record.tensor_names import translate_tensor_name

OWN_CLASS, OWN_TYPE = "FledglingForCausalLM", "fledgling"
MODELING_FILE = Path(__file__).with_name("modeling_fledgling.py")
AUTO_MAP = {
    "AutoConfig": f"{MODELING_FILE.stem}.FledglingConfig",
    "AutoModelForCausalLM": f"{MODELING_FILE.stem}.{OWN_CLASS}",
}
SIZES = {  # our name: key of config.json
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "intermediate_size": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "context": "max_position_embeddings",
}
PARTS: dict[str, type] = {  # under our names
    **dict.fromkeys(("value_gates", "residual_scalars", "skip_scalars", "back_out", "smear", "head_gates"), bool),
    **dict.fromkeys(("exclusive_attention", "window_last_layer", "qk_norm", "embedding_norm"), bool),
    **{"value_embeddings": int, "window_pattern": str, "window_size": int, "logit_shift": float},
}
ACTIVATIONS = {"relu2": "relu2", "gelu": "gelu_new", "swiglu": "silu"}
CONFIGURABLE_FIELDS = {
    *PARTS,
    "activation",
    "tie_embeddings",
    "logit_softcap",
    "norm_eps",
}  # the others must be the family's
SHORT_PATTERN = 64  # letters that `window_pattern` may have in a model with fewer layers
_PREFIX = "model."  # of all tensors but the head


def needs_own_class(config: ModelConfig) -> bool:
    """Returns whether this model of our own family has a part that NanoChatForCausalLM lacks."""
    extra = set(config.enabled_features) - {"flash_norm"}  # computes the same function
    lacks = config.activation == "swiglu" or not (config.qk_norm and config.embedding_norm)
    return config.family == "fledgling" and (bool(extra) or lacks)


def check_own_class(config: ModelConfig) -> None:
    """Raises UserError, naming the setting, for a part that our modelling file lacks too."""
    others = [name for name, value in PRESETS["fledgling"].items() if getattr(config, name) != value]
    wrong = [name for name in (*others, *config.list_open_parts()) if name not in CONFIGURABLE_FIELDS]
    if config.activation not in ACTIVATIONS:
        wrong.append("activation")
    if wrong:
        value = getattr(config, wrong[0])
        raise UserError(f"this model's {wrong[0]} is {value!r}, which {OWN_CLASS} does not support either")


def own_tensors(config: ModelConfig) -> Iterator[TensorMapping]:
    """Yields the tensors of our class, except the head."""
    with torch.device("meta"):
        names = [name for name, _ in Transformer(config).named_parameters()]
    renamed = {"embedding": "embed_tokens", "blocks": "layers", "attention": "self_attn"}
    for name in ["embedding.weight", *(name for name in names if not name.startswith(("embedding.", "head.")))]:
        yield TensorMapping(_PREFIX + ".".join(renamed.get(word, word) for word in name.split(".")), (name,))


def translate_own_name(name: str) -> str:
    """Returns the name in a directory that a tensor of an older export of our class has today."""
    is_inner = name.startswith(_PREFIX)
    return _PREFIX + translate_tensor_name(name.removeprefix(_PREFIX)) if is_inner else name


def write_own_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the keys of config.json; the inverse of `read_own_config`."""
    return {
        "architectures": [OWN_CLASS],
        "model_type": OWN_TYPE,
        "auto_map": AUTO_MAP,
        **{key: getattr(config, name) for name, key in SIZES.items()},
        **{name: getattr(config, name) for name in PARTS},
        "preset": config.preset,  # its features are all above
        "hidden_act": ACTIVATIONS[config.activation],
        "final_logit_softcapping": config.logit_softcap or None,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tie_embeddings,
    }


def read_own_config(config_json: Mapping[str, Any], largest: Mapping[str, int]) -> ModelConfig:
    """Returns the model of a config.json. Raises UserError that names the key; largest: bounds of sizes, by our names.

    The modelling file next to it is never read: our own model is the reference.
    """
    values: dict[str, Any] = {}
    for name, key in SIZES.items():
        if key not in config_json:
            raise UserError(f"config.json: {key} is missing")
        values[name] = check_value(key, config_json[key], int)
        if values[name] > largest.get(name, 1 << 20):
            raise UserError(f"config.json: {key} is {values[name]}; expected at most {largest.get(name, 1 << 20)}")
    defaults = {"qk_norm": True, "embedding_norm": True}
    for name, kind in PARTS.items():
        value = config_json.get(name, defaults.get(name, kind()))
        if type(value) is not kind:
            raise UserError(f"config.json: {name} is {str(value)[:60]!r}; expected a value like {kind()!r}")
        longest = max(values["depth"], SHORT_PATTERN)
        if isinstance(value, str) and len(value) > longest:
            raise UserError(f"config.json: {name} has {len(value):,} letters; expected at most {longest:,}")
        values[name] = value
    activations = {key: name for name, key in ACTIVATIONS.items()}
    activation = config_json.get("hidden_act", "relu2")
    if not isinstance(activation, str) or activation not in activations:
        raise UserError(
            f"config.json: hidden_act is {str(activation)[:80]!r}; expected one of {', '.join(activations)}"
        )
    softcap = config_json.get("final_logit_softcapping")
    config = ModelConfig(
        family="fledgling",
        preset=str(config_json.get("preset", "nanochat-2025"))[:60],  # an older file has none
        **values,
        activation=activations[activation],
        logit_softcap=0.0 if softcap is None else check_value("final_logit_softcapping", softcap, float),
        norm_eps=check_value("rms_norm_eps", config_json.get("rms_norm_eps", 1e-6), float),
        rope_base=check_value("rope_theta", config_json.get("rope_theta", 10_000.0), float),
        tie_embeddings=check_value("tie_word_embeddings", config_json.get("tie_word_embeddings", False), bool),
    )
    check_own_class(config)
    return config
