"""Which architecture of llama.cpp a model is, and each of its tensors as ours, reordered.

    llama   RMS norm, RoPE in neighbouring pairs, SwiGLU; biases if the model has them
    qwen3   the same with queries and keys normalized, RoPE in halves, no biases
    arcee   as llama, with ReLU^2 instead of SwiGLU, no biases
    gpt2    LayerNorm, learned positions, GELU, biases

What our parts do and an architecture does not is folded into the weights where that is exact: a norm without weights
has ones, a rotation in the other direction is one of exchanged halves, a normalized embedding is stored normalized. The
rest (a soft cap on the logits, windows, ...) no architecture here has, and `choose_architecture` names the setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.config import ModelConfig, UserError

PROJECTIONS = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
FEED_FORWARD = {
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
}
NORMS = {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp, and how it rotates queries and keys: neighbouring pairs, or halves."""

    name: str
    rotates_pairs: bool = False


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the file.

    sources: our tensors, stacked along the first dimension; none: `width` ones.
    heads: of each source, how many heads have rotated rows, or 0.
    is_normalized: whether rows are divided by their root mean square.
    """

    name: str
    sources: tuple[str, ...] = ()
    heads: tuple[int, ...] = (0,)
    width: int = 0
    is_normalized: bool = False


def choose_architecture(config: ModelConfig) -> Architecture:
    """Returns the architecture that computes the same function. Raises UserError, naming what none of them has."""
    unsupported = [name for name in config.enabled_features if name != "flash_norm"]  # computes the same function
    unsupported += ["logit_softcap"] if config.logit_softcap else []
    unsupported += config.list_open_parts()
    if config.tie_embeddings and config.embedding_norm:
        unsupported.append("embedding_norm")  # head and embedding are one matrix in the file too
    if unsupported:
        values = ", ".join(f"model.{name} = {getattr(config, name)!r}" for name in unsupported)
        raise UserError(
            f"this model has {values}, which no architecture of llama.cpp has: use export hf, or train one without, "
            "such as the recipe quickstart-gguf"
        )
    parts = (config.norm, config.positions, config.activation, config.qk_norm, config.bias)
    if parts == ("layer", "learned", "gelu", False, True) and not config.embedding_norm:
        if config.kv_heads == config.heads:
            return Architecture("gpt2")
    elif config.norm != "layer" and config.positions == "rope":
        if config.activation == "swiglu" and not config.qk_norm:
            return Architecture("llama", rotates_pairs=True)
        if config.activation == "swiglu" and not config.bias:
            return Architecture("qwen3")
        if config.activation == "relu2" and not config.qk_norm and not config.bias:
            return Architecture("arcee", rotates_pairs=True)
    names = ("norm", "positions", "activation", "qk_norm", "bias", "kv_heads")
    values = ", ".join(f"{name} {getattr(config, name)!r}" for name in names)
    raise UserError(
        f"no architecture of llama.cpp has these parts together: {values}; use export hf, or train a model like the "
        "recipe quickstart-gguf"
    )


def list_tensors(config: ModelConfig, architecture: Architecture) -> Iterator[GGUFTensor]:
    """Yields every tensor of the file."""
    yield GGUFTensor("token_embd.weight", ("embedding.weight",), is_normalized=config.embedding_norm)
    if architecture.name == "gpt2":
        yield GGUFTensor("position_embd.weight", ("positions.weight",))
    yield from _norm("output_norm", "norm", config)
    if not config.tie_embeddings:
        yield GGUFTensor("output.weight", ("head.weight",))
    rotated = {"q_proj": config.heads, "k_proj": config.kv_heads} if config.positions == "rope" else {}
    kinds = ("weight", "bias") if config.bias else ("weight",)
    feed_forward = ("gate_proj", "up_proj", "down_proj") if config.is_gated else ("fc1", "fc2")
    for layer in range(config.depth):
        block, stored = f"blocks.{layer}", f"blk.{layer}"
        for name, gguf_name in NORMS.items():
            yield from _norm(f"{stored}.{gguf_name}", f"{block}.{name}", config)
        if architecture.name == "qwen3":
            for name in ("attn_q_norm", "attn_k_norm"):
                yield GGUFTensor(f"{stored}.{name}.weight", width=config.head_width)
        for kind in kinds:
            projections = [f"{block}.attention.{name}.{kind}" for name in ("q_proj", "k_proj", "v_proj")]
            if architecture.name == "gpt2":
                yield GGUFTensor(f"{stored}.attn_qkv.{kind}", tuple(projections), (0, 0, 0))
                names = {"o_proj": PROJECTIONS["o_proj"]}
            else:
                names = PROJECTIONS
            for name, gguf_name in names.items():
                source = f"{block}.attention.{name}.{kind}"
                yield GGUFTensor(f"{stored}.{gguf_name}.{kind}", (source,), (rotated.get(name, 0),))
            for name in feed_forward:
                yield GGUFTensor(f"{stored}.{FEED_FORWARD[name]}.{kind}", (f"{block}.mlp.{name}.{kind}",))


def _norm(gguf_name: str, name: str, config: ModelConfig) -> Iterator[GGUFTensor]:
    if config.norm == "rms":
        yield GGUFTensor(f"{gguf_name}.weight", width=config.width)
        return
    for kind in ("weight", "bias") if config.norm == "layer" else ("weight",):
        yield GGUFTensor(f"{gguf_name}.{kind}", (f"{name}.{kind}",))


def to_gguf_tensor(
    tensor: GGUFTensor, state: Mapping[str, Tensor], config: ModelConfig, architecture: Architecture
) -> Tensor:
    """Returns a tensor of the file, in float32, from our state dictionary."""
    if not tensor.sources:
        return torch.ones(tensor.width)
    parts = [state[name].detach().float().cpu() for name in tensor.sources]
    parts = [
        order_rows(part, heads, config.rope_direction < 0, architecture.rotates_pairs) if heads else part
        for part, heads in zip(parts, tensor.heads, strict=True)
    ]
    stacked = torch.cat(parts) if len(parts) > 1 else parts[0]
    return F.rms_norm(stacked, stacked.shape[-1:], eps=config.norm_eps) if tensor.is_normalized else stacked


def from_gguf_tensor(
    tensor: GGUFTensor,
    stored: Tensor,
    shapes: Mapping[str, torch.Size],
    config: ModelConfig,
    architecture: Architecture,
) -> dict[str, Tensor]:
    """Returns our tensors of a tensor of the file; the inverse of `to_gguf_tensor`, but a normalized one stays so."""
    if not tensor.sources:
        return {}
    parts = stored.split([shapes[name][0] for name in tensor.sources])
    return {
        name: restore_rows(part, heads, config.rope_direction < 0, architecture.rotates_pairs) if heads else part
        for name, part, heads in zip(tensor.sources, parts, tensor.heads, strict=True)
    }


def order_rows(rows: Tensor, heads: int, exchanges: bool, interleaves: bool) -> Tensor:
    """Reorders the rows (H x D, ...) of queries or keys, head by head: exchanges halves, then makes pairs of them."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    halves = halves.flip(1) if exchanges else halves
    return (halves.transpose(1, 2) if interleaves else halves).reshape(rows.shape)


def restore_rows(rows: Tensor, heads: int, exchanges: bool, interleaves: bool) -> Tensor:
    """Inverse of `order_rows`."""
    if interleaves:
        rows = rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
    return order_rows(rows, heads, exchanges, False)
