"""A model of the llama family as one GGUF file, with its tokenizer inside, for llama.cpp and what is built on it.

One idea: the file is the same model under other names. Two things are theirs: queries and keys are rotated in
neighbouring pairs instead of halves, so the rows of those two matrices are reordered; and the text splitter is chosen
by name, so only tokenizers whose splitter llama.cpp knows under some name can go along.

    f32  exact    f16  half precision    q8_0  blocks of 32 in 8 bits    q4_0  in 4 bits, embedding and head in q8_0

`gguf` is the format's own package (an extra: pip install "fledgling[gguf]").
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.chat_template import CHAT_TEMPLATE, supports_chat
from fledgling.export.hf_mapping import check_family
from fledgling.record import make_write_error
from fledgling.text.bpe import split_pattern
from fledgling.text.tokenizer import Tokenizer

TYPES = ("f32", "f16", "q8_0", "q4_0")
LAYER_NAMES = {
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
}
OUTER_NAMES = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "head.weight": "output.weight",
}


def import_gguf() -> Any:
    """The `gguf` package; raises UserError where it is not installed."""
    if find_spec("gguf") is None:
        raise UserError('the gguf package is not installed; pip install "fledgling[gguf]"')
    import gguf

    return gguf


def check_gguf_support(config: ModelConfig) -> None:
    """Raise UserError unless llama.cpp's `llama` architecture can hold this model."""
    if config.family != "llama":
        raise UserError(f"this model is of the {config.family} family; GGUF is written for llama: use export hf")
    check_family(config)
    if config.bias:
        raise UserError("this model has biases, which the llama architecture of GGUF does not: use export hf")


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the tokenizer's text splitter; raises UserError where it has none.

    `dbrx` and not `llama-bpe` for groups of three digits: the same expression, and merges are never passed over.
    """
    before = tokenizer.tokenizer_json["pre_tokenizer"]
    steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if not patterns and steps[0].get("use_regex", True):
        return "gpt-2"
    known = {split_pattern(1): "qwen2", split_pattern(3): "dbrx"}
    if len(patterns) != 1 or patterns[0] not in known:
        raise UserError(
            "llama.cpp has no name for the way this tokenizer splits text (digits in groups of 1 or 3 have one, "
            "groups of 2 have none): use export hf"
        )
    return known[patterns[0]]


def interleave_halves(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows (H x D, C) of queries or keys from halves to neighbouring pairs, head by head."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def deinterleave_halves(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `pairs`."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _names(config: ModelConfig) -> Iterator[tuple[str, str, int]]:
    """(our name, their name, heads of the rotated rows or 0) for every tensor that is stored."""
    for ours, theirs in OUTER_NAMES.items():
        if not (config.tie_embeddings and ours == "head.weight"):
            yield ours, theirs, 0
    rotated = {"attention.q_proj": config.heads, "attention.k_proj": config.kv_heads}
    for layer in range(config.depth):
        for ours, theirs in LAYER_NAMES.items():
            yield f"blocks.{layer}.{ours}.weight", f"blk.{layer}.{theirs}.weight", rotated.get(ours, 0)


def write_gguf(
    path: Path, config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer | None, kind: str, name: str
) -> Path:
    """Write the file, in one rename. kind: one of TYPES; name: what the model calls itself. Raises UserError.

    Without a tokenizer the file's model is one of token ids.
    """
    check_gguf_support(config)
    if kind not in TYPES:
        raise UserError(f"type {kind!r} is not known; expected one of {', '.join(TYPES)}")
    before = pre_tokenizer_name(tokenizer) if tokenizer else ""
    gguf = import_gguf()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(temporary, "llama")
        _describe(writer, config, kind, name, gguf)
        if tokenizer:
            _vocabulary(writer, config, tokenizer, before, gguf)
        else:
            writer.add_tokenizer_model("no_vocab")
        for ours, theirs, heads in _names(config):
            tensor = state[ours].detach().float().cpu()
            tensor = interleave_halves(tensor, heads) if heads else tensor
            stored = _type(kind, theirs, tensor, gguf)
            writer.add_tensor(theirs, gguf.quantize(tensor.contiguous().numpy(), stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, path)
    except OSError as problem:
        raise make_write_error(path, problem) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _type(kind: str, name: str, tensor: Tensor, gguf: Any) -> Any:
    """How one tensor is stored: vectors whole; matrices as asked where their rows are whole blocks, else in f16."""
    types = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or kind == "f32":
        return types.F32
    if kind == "f16" or tensor.shape[1] % 32:
        return types.F16
    outer = name in OUTER_NAMES.values()
    return types.Q8_0 if kind == "q8_0" or outer else types.Q4_0


def _describe(writer: Any, config: ModelConfig, kind: str, name: str, gguf: Any) -> None:
    files = gguf.LlamaFileType
    of = {"f32": files.ALL_F32, "f16": files.MOSTLY_F16, "q8_0": files.MOSTLY_Q8_0, "q4_0": files.MOSTLY_Q4_0}
    writer.add_name(name)
    writer.add_file_type(of[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_width)


def _vocabulary(writer: Any, config: ModelConfig, tokenizer: Tokenizer, before: str, gguf: Any) -> None:
    model = tokenizer.tokenizer_json["model"]
    names = {index: text for text, index in model["vocab"].items()} | {
        i: t for t, i in tokenizer.special_tokens.items()
    }
    control = set(tokenizer.special_tokens.values())
    kinds = gguf.TokenType
    types = [
        kinds.CONTROL if index in control else kinds.NORMAL if index in names else kinds.UNUSED
        for index in range(config.vocab_size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(before)
    writer.add_token_list([names.get(index, f"[unused {index}]") for index in range(config.vocab_size)])
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    if tokenizer.bos_or_none is not None:
        writer.add_bos_token_id(tokenizer.bos_or_none)
        writer.add_eos_token_id(tokenizer.special_tokens.get("<|assistant_end|>", tokenizer.bos_or_none))
    writer.add_add_bos_token(False)  # a text begins with it because whoever renders the text puts it there
    writer.add_add_space_prefix(False)
    if supports_chat(tokenizer):
        writer.add_chat_template(CHAT_TEMPLATE)


def read_gguf_state(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Our state dictionary out of a file that `write` wrote, dequantized to float32: what the weights have become."""
    gguf = import_gguf()
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state = {}
    for ours, theirs, heads in _names(config):
        values = np.array(gguf.dequantize(held[theirs].data, held[theirs].tensor_type), dtype=np.float32)
        tensor = torch.from_numpy(values)
        state[ours] = deinterleave_halves(tensor, heads) if heads else tensor
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state
