"""Each tensor of a GGUF file as ours, reordered.

What our parts do and an architecture does not is folded into the weights where that is exact: a norm without weights
has ones, a rotation in the other direction is one of exchanged halves, a normalized embedding is stored normalized. The
rest no architecture has, and `choose_architecture` (gguf_architectures.py) names the setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fledgling.config import ModelConfig
from fledgling.export.gguf_architectures import Architecture
from fledgling.model.rope import make_frequencies, plain_frequencies

ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v"}
FEED_FORWARD = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
FEED_FORWARD |= {"fc1": "ffn_up", "fc2": "ffn_down"}
NORMS = {  # by norm_placement: our norm of a block: its name
    "pre": {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"},
    "post": {"attention_output_norm": "post_attention_norm", "mlp_output_norm": "post_ffw_norm"},
    "both": {
        "attention_norm": "attn_norm",
        "attention_output_norm": "post_attention_norm",
        "mlp_norm": "ffn_norm",
        "mlp_output_norm": "post_ffw_norm",
    },
}


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


def list_tensors(config: ModelConfig, architecture: Architecture) -> Iterator[GGUFTensor]:
    """Yields every tensor of the file that holds weights."""
    yield GGUFTensor("token_embd.weight", ("embedding.weight",), is_normalized=config.embedding_norm)
    if config.positions == "learned":
        yield GGUFTensor("position_embd.weight", ("positions.weight",))
    yield from _list_norm_tensors("output_norm", "norm", config)
    if not config.tie_embeddings:
        yield GGUFTensor("output.weight", ("head.weight",))
    for layer in range(config.depth):
        yield from _list_layer(config, architecture, f"blocks.{layer}", f"blk.{layer}")


def _list_layer(config: ModelConfig, architecture: Architecture, block: str, stored: str) -> Iterator[GGUFTensor]:
    rotated = {"q": config.heads, "k": config.kv_heads, "v": 0} if config.positions == "rope" else {}
    for name, gguf_name in NORMS[config.norm_placement].items():
        yield from _list_norm_tensors(f"{stored}.{gguf_name}", f"{block}.{name}", config)
    for part, heads in (("q", config.heads), ("k", config.kv_heads)) if config.qk_norm else ():
        source = f"{block}.attention.query_key.{part}_norm.weight"
        all_heads = config.qk_norm_weights == "layer"
        if config.qk_norm_weights == "none":
            yield GGUFTensor(f"{stored}.attn_{part}_norm.weight", width=config.head_width)
        else:
            yield GGUFTensor(f"{stored}.attn_{part}_norm.weight", (source,), (heads if all_heads else 1,))
    for kind in ("weight", "bias"):
        if kind == "weight" or config.qkv_bias:
            sources = tuple(f"{block}.attention.{name}.{kind}" for name in ATTENTION)
            heads_of = tuple(rotated.get(part, 0) for part in "qkv")
            if architecture.joint_qkv:
                yield GGUFTensor(f"{stored}.attn_qkv.{kind}", sources, heads_of)
            else:
                for source, name, heads in zip(sources, ATTENTION.values(), heads_of, strict=True):
                    yield GGUFTensor(f"{stored}.{name}.{kind}", (source,), (heads,))
        if kind == "weight" or config.bias:
            yield GGUFTensor(f"{stored}.attn_output.{kind}", (f"{block}.attention.o_proj.{kind}",))
        if kind == "bias" and not config.mlp_bias:
            continue
        names = ["gate_proj", "up_proj", "down_proj"] if config.is_gated else ["fc1", "fc2"]
        if architecture.joint_gate:
            joined = tuple(f"{block}.mlp.{name}.{kind}" for name in names[:2])
            yield GGUFTensor(f"{stored}.ffn_up.{kind}", joined, (0, 0))
            names = names[2:]
        for name in names:
            yield GGUFTensor(f"{stored}.{FEED_FORWARD[name]}.{kind}", (f"{block}.mlp.{name}.{kind}",))


def list_divisors(config: ModelConfig) -> Tensor | None:
    """Returns what each frequency of RoPE is divided by (d / 2,), where a file holds that: Llama 3's scaling."""
    if config.rope_type != "llama3":
        return None
    return plain_frequencies(config.rope_base, config.rotary_width) / make_frequencies(config)[0]


def _list_norm_tensors(gguf_name: str, name: str, config: ModelConfig) -> Iterator[GGUFTensor]:
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
    """Returns our tensors of a tensor of the file; the inverse of `to_gguf_tensor`, but a normalized one stays so.

    Args:
        tensor: names the parts of ours that it holds.
        stored: the file's, (rows of all parts, columns) or (rows,), dequantized.
        shapes: of our tensors by name.
        config: of our model.
        architecture: of the file.
    """
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
    """Returns rows in our order, (H x D, ...): the inverse of `order_rows`.

    Args:
        rows: (H x D, ...), of queries or keys.
        heads: H.
        exchanges: whether the halves of a head were exchanged.
        interleaves: whether halves became pairs.
    """
    if interleaves:
        rows = rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
    return order_rows(rows, heads, exchanges, False)
