"""Reads a model from a GGUF file of any source, and trusts nothing in it.

The architectures are llama (Llama, Mistral, SmolLM2), qwen2 and qwen3; the types are those that the `gguf` package
dequantizes: F32, F16, BF16, Q8_0, Q4_K and kin. A tensor's shape is compared with the model's before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.gguf import import_gguf
from fledgling.export.gguf_tokenizer import read_gguf_tokenizer
from fledgling.export.hf_mapping import MAX_VALUES
from fledgling.export.read_hf import HfModel
from fledgling.model.rope import make_frequencies, plain_frequencies
from fledgling.model.transformer import Transformer

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # architecture: our family
SIZES = {  # our name: key behind the architecture's name, whether it must be there
    "context": ("context_length", True),
    "width": ("embedding_length", True),
    "depth": ("block_count", True),
    "intermediate_size": ("feed_forward_length", True),
    "heads": ("attention.head_count", True),
    "kv_heads": ("attention.head_count_kv", False),
    "head_dim": ("attention.key_length", False),
}
SCALED_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.2, whose file holds only what frequencies are divided by
LAYER = {
    "attention_norm.weight": "attn_norm.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "attention.query_key.q_norm.weight": "attn_q_norm.weight",
    "attention.query_key.k_norm.weight": "attn_k_norm.weight",
    **{f"attention.{name}_proj.{kind}": f"attn_{name}.{kind}" for name in "qkv" for kind in ("weight", "bias")},
    "attention.o_proj.weight": "attn_output.weight",
    **{f"mlp.{name}_proj.weight": f"ffn_{name}.weight" for name in ("gate", "up", "down")},
}
OUTER = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "head.weight": "output.weight"}
UNREADABLE = (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, MemoryError, UnicodeDecodeError)


def read_gguf(path: Path) -> HfModel:
    """Reads configuration, weights in float32 and tokenizer of a file. Raises UserError for what is not supported."""
    gguf = import_gguf()
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        stored = {tensor.name: tensor for tensor in reader.tensors}
    except UNREADABLE as problem:
        reason = " ".join(str(problem).split())[:120] or type(problem).__name__
        raise UserError(f"{path} is not a readable GGUF file: {reason}") from None
    config = read_gguf_config(values, set(stored))
    if "rope_freqs.weight" in stored:
        config = _find_scaling(config, _dequantize(gguf, stored.pop("rope_freqs.weight")))
    state = _read_state(gguf, config, stored, values["general.architecture"] == "llama")
    tokenizer = read_gguf_tokenizer(values)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path}: the tokenizer has {tokenizer.vocab_size} entries, the model {config.vocab_size}")
    return HfModel(config, state, tokenizer)


def read_gguf_config(values: dict[str, Any], names: set[str]) -> ModelConfig:
    """Returns the model of a file's values and the names of its tensors. Raises UserError naming the key."""
    kind = values.get("general.architecture")
    if kind not in FAMILIES:
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
    for key in ("expert_count", "attention.sliding_window"):
        if values.get(f"{kind}.{key}"):
            raise UserError(f"{kind}.{key} is {str(values[f'{kind}.{key}'])[:40]}, which is not read from GGUF")
    scaling = values.get(f"{kind}.rope.scaling.type", "none")
    if scaling in ("linear", "yarn"):
        fields |= {"rope_type": scaling, "rope_factor": float(values.get(f"{kind}.rope.scaling.factor", 1.0))}
        fields["rope_original_context"] = int(values.get(f"{kind}.rope.scaling.original_context_length", 0))
    elif scaling != "none":
        raise UserError(f"{kind}.rope.scaling.type is {str(scaling)[:40]!r}; expected none, linear or yarn")
    return ModelConfig(
        family=FAMILIES[kind],
        vocab_size=vocab_size,
        **{"kv_heads": fields["heads"], **fields},
        norm_eps=float(values.get(f"{kind}.attention.layer_norm_rms_epsilon", 1e-5)),
        rope_base=float(values.get(f"{kind}.rope.freq_base", 10_000.0)),
        tie_embeddings="output.weight" not in names,
        qkv_bias="blk.0.attn_q.bias" in names,
    )


def _find_scaling(config: ModelConfig, divisors: Tensor) -> ModelConfig:
    """Returns the configuration whose frequencies are divided by these; raises UserError if it is none of Llama 3's."""
    plain = plain_frequencies(config.rope_base, config.rotary_width)
    for factor in SCALED_FACTORS:
        scaled = replace(config, rope_type="llama3", rope_factor=factor, rope_original_context=8192)
        expected = plain / make_frequencies(scaled)[0]
        if divisors.shape == expected.shape and torch.allclose(divisors, expected, rtol=1e-3):
            return scaled
    raise UserError("rope_freqs.weight divides RoPE's frequencies in another way than Llama 3: not supported")


def _read_state(gguf: Any, config: ModelConfig, stored: dict[str, Any], pairs: bool) -> dict[str, Tensor]:
    """Returns our state dictionary; pairs: queries and keys are rotated in neighbouring pairs."""
    if config.depth > len(stored):
        raise UserError(f"the GGUF file says {config.depth} layers, but there are only {len(stored)} tensors")
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    names = dict(_names(config, shapes))
    for missing, problem in (
        (set(names.values()) - set(stored), "is missing"),
        (set(stored) - set(names.values()), "is left over"),
    ):
        if missing:
            raise UserError(f"tensor {min(missing)[:120]} {problem} in the GGUF file")
    state: dict[str, Tensor] = {}
    for name, gguf_name in names.items():
        tensor = stored[gguf_name]
        shape = tuple(int(size) for size in reversed(tensor.shape))
        if shape != shapes[name]:
            raise UserError(
                f"tensor {gguf_name} has the shape {list(shape)}; the file's values imply {list(shapes[name])}"
            )
        value = _dequantize(gguf, tensor).view(shape)
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2]) if pairs else None
        if heads:  # from pairs to halves, head by head
            value = value.view(heads, -1, 2, *shape[1:]).transpose(1, 2).reshape(shape)
        state[name] = value
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state


def _names(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Yields our name and that in the file of every tensor of the model."""
    for name in shapes:
        if name in OUTER:
            if not (config.tie_embeddings and name == "head.weight"):
                yield name, OUTER[name]
        else:
            _, layer, inner = name.split(".", 2)
            yield name, f"blk.{layer}.{LAYER[inner]}"


def _dequantize(gguf: Any, tensor: Any) -> Tensor:
    """Returns a tensor in float32."""
    try:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    except (NotImplementedError, *UNREADABLE) as problem:
        reason = " ".join(str(problem).split())[:100]
        raise UserError(f"tensor {tensor.name[:120]} of type {tensor.tensor_type!r} cannot be read: {reason}") from None
    return torch.from_numpy(values)
