"""A model's configuration as the values of a GGUF file, in both directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.gguf_architectures import BY_NAME, Architecture, check_gemma_scale, has_window
from fledgling.export.hf_mapping import MAX_VALUES
from fledgling.model.rope import make_frequencies, plain_frequencies

SIZES = {  # our name: key after the architecture's name, whether it must be there
    "context": ("context_length", True),
    "width": ("embedding_length", True),
    "depth": ("block_count", True),
    "intermediate_size": ("feed_forward_length", True),
    "heads": ("attention.head_count", True),
    "kv_heads": ("attention.head_count_kv", False),
    "head_dim": ("attention.key_length", False),
}
FAMILIES = {  # architecture: our family, and what its preset has not
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "smollm3": ("smollm3", {}),
    "phi3": ("phi3", {}),
    "olmo2": ("olmo2", {}),
    "gemma3": ("gemma3", {}),
    "arcee": ("llama", {"activation": "relu2"}),
    "gpt2": ("gpt2", {}),
    "gptneox": ("gpt_neox", {}),
}
LOCAL_BASE = 10_000.0  # theta of gemma3's layers with a window, where the file does not say
SCALED_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.2, whose file holds only what frequencies are divided by


def write_values(writer: Any, config: ModelConfig, architecture: Architecture, gguf: Any) -> None:
    """Writes the model's configuration to a `gguf.GGUFWriter`."""
    writer.add_vocab_size(config.vocab_size)
    for name, (key, _) in SIZES.items():
        if name != "head_dim":
            writer.add_uint32(f"{architecture.name}.{key}", getattr(config, name))
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if architecture.name == "gptneox":
        writer.add_parallel_residual(config.parallel_residual)
    if config.logit_softcap:
        writer.add_final_logit_softcapping(config.logit_softcap)
    if any(has_window(config, layer) for layer in range(config.depth)):
        writer.add_sliding_window(config.window_size)
        if config.rope_local_base:
            writer.add_rope_freq_base_swa(config.rope_local_base)
    if config.positions == "rope":
        _write_rope(writer, config, gguf)


def _write_rope(writer: Any, config: ModelConfig, gguf: Any) -> None:
    """Writes theta, the widths of heads, and how RoPE reaches beyond the context that it was trained for."""
    base, factor, width = config.rope_base, config.rope_factor, config.rotary_width
    if config.rope_type == "ntk" and width > 2:  # is another theta
        base *= factor ** (width / (width - 2))
    writer.add_rope_freq_base(base)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    if config.rope_type not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope_type))
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(config.trained_context)
    if config.rope_type == "yarn":
        writer.add_rope_scaling_yarn_beta_fast(config.rope_beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(config.rope_beta_slow)
        if config.rope_attention_factor:  # llama.cpp multiplies this by YaRN's own
            writer.add_rope_scaling_attn_factors(config.rope_attention_factor / (0.1 * math.log(factor) + 1.0))


def read_gguf_config(values: Mapping[str, Any], names: set[str]) -> ModelConfig:
    """Returns the model of a file's values and the names of its tensors. Raises UserError naming the key."""
    kind = values.get("general.architecture")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UserError(f"the GGUF file's architecture is {str(kind)[:40]!r}; expected one of {', '.join(FAMILIES)}")
    fields: dict[str, Any] = {}
    for name, (key, needed) in SIZES.items():
        value = values.get(f"{kind}.{key}")
        if value is None and not needed:
            continue
        largest = MAX_VALUES.get(name, 1 << 20)
        if type(value) is not int or not 0 < value <= largest:
            raise UserError(f"{kind}.{key} is {str(value)[:40]!r}; expected a whole number up to {largest}")
        fields[name] = value
    tokens = values.get("tokenizer.ggml.tokens")
    vocab_size = values.get(f"{kind}.vocab_size", len(tokens) if isinstance(tokens, list) else None)
    if type(vocab_size) is not int or not 0 < vocab_size <= MAX_VALUES["vocab_size"]:
        raise UserError(f"{kind}.vocab_size is {str(vocab_size)[:40]!r}, and there are no tokens to count")
    if fields.get("head_dim", 0) * fields["heads"] == fields["width"]:
        del fields["head_dim"]
    if values.get(f"{kind}.expert_count"):
        raise UserError(f"{kind}.expert_count is {str(values[f'{kind}.expert_count'])[:40]}: no experts are read here")
    family, parts = FAMILIES[kind]
    fields |= {**parts, **_read_windows(kind, values, fields), **_read_scaling(kind, values)}
    base = _read_number(values, f"{kind}.rope.freq_base", 10_000.0)
    if family == "olmo2" and "window_pattern" in fields:
        family = "olmo3"
        if "rope_type" in fields:  # only layers that see everything are scaled
            fields["rope_local_base"] = base
    if family == "gpt_neox":
        fields["parallel_residual"] = bool(values.get(f"{kind}.use_parallel_residual", True))
    if BY_NAME[kind].no_rope_every:
        pattern = "".join("RN"[(layer + 1) % 4 == 0] for layer in range(min(fields["depth"], 4)))
        fields["rope_pattern"] = pattern if "N" in pattern else ""
    eps = "layer_norm_epsilon" if family in ("gpt2", "gpt_neox") else "layer_norm_rms_epsilon"
    heads = fields["heads"]
    head_width = fields.get("head_dim") or fields["width"] // heads
    rotated = values.get(f"{kind}.rope.dimension_count", head_width)
    if type(rotated) is not int or not 0 < rotated <= head_width:
        raise UserError(f"{kind}.rope.dimension_count is {str(rotated)[:40]!r}; expected at most {head_width}")
    if rotated != head_width:
        fields["partial_rotary_factor"] = rotated / head_width
    config = ModelConfig(
        family=family,
        vocab_size=vocab_size,
        **{"kv_heads": heads, **fields},
        norm_eps=_read_number(values, f"{kind}.attention.{eps}", 1e-5),
        rope_base=base,
        logit_softcap=_read_number(values, f"{kind}.final_logit_softcapping", 0.0),
        tie_embeddings="output.weight" not in names,
        **_read_biases(names, family),
    )
    check_gemma_scale(config)
    return config


def _read_number(values: Mapping[str, Any], key: str, default: float) -> float:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{key} is {str(value)[:40]!r}; expected a number of at least 0")
    return float(value)


def _read_biases(names: set[str], family: str) -> dict[str, Any]:
    if family in ("gpt2", "gpt_neox"):
        return {}
    joined = {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & names
    has = {
        name: f"blk.0.{stored}.bias" in names for name, stored in (("bias", "attn_output"), ("mlp_bias", "ffn_down"))
    }
    return {"qkv_bias": bool(joined), **has}


def _read_windows(kind: str, values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    window = values.get(f"{kind}.attention.sliding_window")
    if window is None or window == 0:
        return {}
    if type(window) is not int or not 0 < window <= 1 << 31:
        raise UserError(f"{kind}.attention.sliding_window is {str(window)[:40]!r}; expected a whole number")
    every = BY_NAME[kind].full_every
    if not every and window >= fields["context"]:
        return {}
    if not every:
        raise UserError(f"{kind}.attention.sliding_window is {window}, which is not read for this architecture")
    count = min(every, fields["depth"])
    pattern = "".join("SL"[(layer + 1) % every == 0] for layer in range(count))
    found = {"window_pattern": pattern, "window_size": min(window, 1 << 30), "window_last_layer": True}
    if kind == "gemma3":
        found["rope_local_base"] = _read_number(values, f"{kind}.rope.freq_base_swa", LOCAL_BASE)
    return found


def _read_scaling(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    scaling = values.get(f"{kind}.rope.scaling.type", "none")
    if scaling == "none":
        return {}
    if scaling not in ("linear", "yarn"):
        raise UserError(f"{kind}.rope.scaling.type is {str(scaling)[:40]!r}; expected none, linear or yarn")
    factor = _read_number(values, f"{kind}.rope.scaling.factor", 1.0)
    trained = values.get(f"{kind}.rope.scaling.original_context_length", 0)
    if type(trained) is not int or not 0 <= trained <= MAX_VALUES["context"]:
        raise UserError(f"{kind}.rope.scaling.original_context_length is {str(trained)[:40]!r}; expected tokens")
    found = {"rope_type": scaling, "rope_factor": factor, "rope_original_context": trained}
    if scaling == "yarn":
        share = _read_number(values, f"{kind}.rope.scaling.attn_factor", 0.0)
        found["rope_attention_factor"] = share * (0.1 * math.log(max(factor, 1.0)) + 1.0)
        for name, default in (("fast", 32.0), ("slow", 1.0)):
            found[f"rope_beta_{name}"] = _read_number(values, f"{kind}.rope.scaling.yarn_beta_{name}", default)
    return found


def find_scaling(config: ModelConfig, divisors: Tensor) -> ModelConfig:
    """Returns the configuration whose RoPE frequencies are divided by `divisors`.

    Args:
        config: of the model, without scaling.
        divisors: (R / 2,), of the frequencies of the R rotated dimensions.

    Raises:
        UserError: they are none of Llama 3's.
    """
    plain = plain_frequencies(config.rope_base, config.rotary_width)
    contexts = {8192, *(1 << power for power in range(4, 18))}
    for factor in (*SCALED_FACTORS, 2.0, 4.0, 16.0):
        for context in sorted(contexts, key=lambda tokens: tokens != 8192):
            scaled = replace(config, rope_type="llama3", rope_factor=factor, rope_original_context=context)
            expected = plain / make_frequencies(scaled)[0]
            if divisors.shape == expected.shape and torch.allclose(divisors, expected, rtol=1e-3):
                return scaled
    raise UserError("rope_freqs.weight divides RoPE's frequencies in another way than Llama 3: not supported")
