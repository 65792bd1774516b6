"""Writes a directory that mlx-lm loads: our family as its class `nanochat`, all others as their Hugging Face classes.

That class has other names than NanoChatForCausalLM, and its norms always add 1e-5 to the mean square. Where a norm
reads a product of weights, the weights are scaled by sqrt(1e-5 / epsilon), after which the norm is ours exactly: the
embedding, queries and keys. The stream between the blocks has a mean square of about 1 or more, so that the other
epsilon changes its norms by less than 5e-6 of their value.

Source: the module `mlx_lm.models.nanochat` of mlx-lm 0.32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.hf_mapping import check_family
from fledgling.export.hf_rope import write_rope
from fledgling.export.write_hf import write_hf, write_hf_json, write_tokenizer
from fledgling.record import make_write_error
from fledgling.record.atomic_directory import atomic_directory
from fledgling.record.tensor_file import write_tensor_file
from fledgling.text.tokenizer import Tokenizer

NORM_EPS = 1e-5
SOFTCAP = 15.0
LAYER = {
    "attention.q_proj": "attn.c_q",
    "attention.k_proj": "attn.c_k",
    "attention.v_proj": "attn.c_v",
    "attention.o_proj": "attn.c_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
NORMALIZED = ("attention.q_proj", "attention.k_proj")  # whose product a norm reads


def write_mlx(out: Path, config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer) -> Path:
    """Writes the directory `out`, which must not exist yet or be empty, and returns it.

    Raises UserError if mlx-lm has no class for this model, or the directory cannot be written.
    """
    check_family(config)
    if config.family != "fledgling":
        card = "For mlx-lm: `mlx_lm.generate --model .`\n"
        return write_hf(out, config, state, tokenizer, card, more=older_keys(config))
    if config.enabled_features and config.enabled_features != ("flash_norm",):
        raise UserError(
            f"mlx-lm's nanochat has no {config.enabled_features[0]}, and this model does: use export hf, or train one "
            "with model.preset=nanochat-2025, or like the recipe quickstart-gguf"
        )
    settings = {"logit_softcap": SOFTCAP, "tie_embeddings": False, "activation": "relu2"}
    for name, expected in settings.items():
        if getattr(config, name) != expected:
            raise UserError(f"this model's {name} is {getattr(config, name)!r}, and mlx-lm's nanochat has {expected!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory; choose another directory for the export")
    try:
        with atomic_directory(out) as temporary:
            tensors = dict(nanochat_tensors(config, state))
            write_tensor_file(temporary / "model.safetensors", tensors, {"format": "mlx"})
            write_hf_json(temporary / "config.json", nanochat_config(config))
            write_tokenizer(temporary, tokenizer, config.context)
    except OSError as problem:
        raise make_write_error(out, problem) from None
    return out


def older_keys(config: ModelConfig) -> dict[str, object]:
    """Returns the keys of config.json that mlx-lm's classes still read where transformers has `rope_parameters`.

    Raises UserError for windows that its class does not repeat as they are here.
    """
    if config.positions != "rope":
        return {}
    rope = write_rope(config)
    scaled = config.rope_type != "default"
    found: dict[str, object] = {"rope_theta": config.rope_base, "partial_rotary_factor": config.partial_rotary_factor}
    found["rope_scaling"] = {**rope, "type": config.rope_type} if scaled else None
    if config.family == "gpt_neox":
        if config.intermediate_size != 4 * config.width:
            raise UserError("mlx-lm's gpt_neox has a feed-forward of 4 times the width, and this model has another")
        found |= {"rotary_emb_base": config.rope_base, "rotary_pct": config.partial_rotary_factor}
    if config.family == "gemma3":
        every = len(config.window_pattern)
        if config.window_pattern and config.window_pattern != "S" * (every - 1) + "L":
            raise UserError(
                f"mlx-lm's gemma3 has one layer without a window at the end of each {config.window_pattern}"
            )
        if config.logit_softcap:
            raise UserError(f"this model's logit_softcap is {config.logit_softcap}, and mlx-lm's gemma3 has none")
        found |= {"rope_local_base_freq": config.rope_local_base or config.rope_base}
        found |= {"sliding_window_pattern": every or 1}
    return found


def nanochat_config(config: ModelConfig) -> dict[str, object]:
    """Returns the contents of config.json."""
    return {
        "model_type": "nanochat",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "intermediate_size": config.intermediate_size,
        "rope_theta": config.rope_base,
    }


def nanochat_tensors(config: ModelConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of the class, in float32."""
    scale = (NORM_EPS / config.norm_eps) ** 0.5

    def take(name: str, factor: float = 1.0) -> Tensor:
        return (state[name].detach().to("cpu", torch.float32) * factor).contiguous()

    yield "transformer.wte.weight", take("embedding.weight", scale)
    for layer in range(config.depth):
        for name, stored in LAYER.items():
            factor = scale if name in NORMALIZED else 1.0
            yield f"transformer.h.{layer}.{stored}.weight", take(f"blocks.{layer}.{name}.weight", factor)
    yield "lm_head.weight", take("head.weight")
