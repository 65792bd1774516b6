"""Writes a model as one GGUF file, with its tokenizer, for llama.cpp and programs based on it.

The file is the same model under other names (gguf_mapping.py). The pre-tokenizer is chosen by name, so only tokenizers
whose pre-tokenizer has a name in llama.cpp can be included.

    f32  exact    f16  half precision    q8_0  blocks of 32 in 8 bits    q4_0  in 4 bits, embedding and head in q8_0

`gguf` is the format's own package (an extra: pip install "fledgling[gguf]").
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.chat_template import CHAT_TEMPLATE, supports_chat
from fledgling.export.gguf_mapping import choose_architecture, from_gguf_tensor, list_tensors, to_gguf_tensor
from fledgling.model.transformer import Transformer
from fledgling.record import make_write_error
from fledgling.record.durable import make_directory, replace_file
from fledgling.text.bpe import split_pattern
from fledgling.text.tokenizer import Tokenizer

TYPES = ("f32", "f16", "q8_0", "q4_0")
ALWAYS_F32 = ("position_embd.weight",)  # as llama.cpp's own converter keeps it
OUTER_NAMES = ("token_embd.weight", "output.weight")


def import_gguf() -> Any:
    """Returns the `gguf` package; raises UserError if it is not installed."""
    if find_spec("gguf") is None:
        raise UserError('the gguf package is not installed; pip install "fledgling[gguf]"')
    import gguf

    return gguf


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """Returns llama.cpp's name of the tokenizer's pre-tokenizer; raises UserError if it has none.

    `dbrx` and not `llama-bpe` for groups of three digits: the same expression, but merges are never skipped.
    """
    if not tokenizer.is_byte_level:
        raise UserError("a tokenizer of SentencePiece is not written to GGUF here: use export hf")
    pre_tokenizer = tokenizer.tokenizer_json["pre_tokenizer"]
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if not patterns and steps[0].get("use_regex", True):
        return "gpt-2"
    names = {split_pattern(1): "qwen2", split_pattern(3): "dbrx"}
    if len(patterns) != 1 or patterns[0] not in names:
        raise UserError(
            "llama.cpp has no name for this tokenizer's pre-tokenizer (digits in groups of 1 or 3 have one, "
            "groups of 2 have none): use export hf"
        )
    return names[patterns[0]]


def write_gguf(
    path: Path, config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer | None, kind: str, name: str
) -> Path:
    """Writes the file in one rename and returns its path.

    Args:
        path: the file to write.
        config: the model's configuration.
        state: our state dictionary.
        tokenizer: None for a model of token ids.
        kind: one of TYPES.
        name: the model's name in the file.

    Raises UserError for an unsupported model, an unknown type and a write error.
    """
    architecture = choose_architecture(config)
    if kind not in TYPES:
        raise UserError(f"type {kind!r} is unknown; expected one of {', '.join(TYPES)}")
    pre_tokenizer = pre_tokenizer_name(tokenizer) if tokenizer else ""
    gguf = import_gguf()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        make_directory(path.parent)
        writer = gguf.GGUFWriter(temporary, architecture.name)
        _describe(writer, config, kind, name, gguf)
        if tokenizer:
            _vocabulary(writer, config, tokenizer, pre_tokenizer, gguf)
        else:
            writer.add_tokenizer_model("no_vocab")
        for entry in list_tensors(config, architecture):
            tensor = to_gguf_tensor(entry, state, config, architecture)
            storage_type = _type(kind, entry.name, tensor, gguf)
            stored = gguf.quantize(tensor.contiguous().numpy(), storage_type)
            writer.add_tensor(entry.name, stored, raw_dtype=storage_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        replace_file(temporary, path)
    except OSError as problem:
        raise make_write_error(path, problem) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _type(kind: str, name: str, tensor: Tensor, gguf: Any) -> Any:
    """Returns a tensor's storage type: vectors in f32; matrices as requested if rows are whole blocks, else f16."""
    types = gguf.GGMLQuantizationType
    if tensor.ndim == 1 or kind == "f32" or name in ALWAYS_F32:
        return types.F32
    if kind == "f16" or tensor.shape[1] % 32:
        return types.F16
    return types.Q8_0 if kind == "q8_0" or name in OUTER_NAMES else types.Q4_0


def _describe(writer: Any, config: ModelConfig, kind: str, name: str, gguf: Any) -> None:
    """Writes the model's hyperparameters."""
    files = gguf.LlamaFileType
    file_types = {"f32": files.ALL_F32, "f16": files.MOSTLY_F16, "q8_0": files.MOSTLY_Q8_0, "q4_0": files.MOSTLY_Q4_0}
    writer.add_name(name)
    writer.add_file_type(file_types[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.positions == "rope":
        writer.add_rope_freq_base(config.rope_base)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)


def _vocabulary(writer: Any, config: ModelConfig, tokenizer: Tokenizer, pre_tokenizer: str, gguf: Any) -> None:
    """Writes the tokenizer: tokens, their types, merges, special tokens and chat template."""
    model = tokenizer.tokenizer_json["model"]
    names = {index: text for text, index in model["vocab"].items()} | {
        i: t for t, i in tokenizer.special_tokens.items()
    }
    control_ids = set(tokenizer.special_tokens.values())
    token_types = gguf.TokenType
    types = [
        token_types.CONTROL if index in control_ids else token_types.NORMAL if index in names else token_types.UNUSED
        for index in range(config.vocab_size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list([names.get(index, f"[unused {index}]") for index in range(config.vocab_size)])
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    if tokenizer.bos_or_none is not None:
        writer.add_bos_token_id(tokenizer.bos_or_none)
        writer.add_eos_token_id(tokenizer.special_tokens.get("<|assistant_end|>", tokenizer.bos_or_none))
    writer.add_add_bos_token(False)  # the chat template renders it, so the tokenizer must not add it again
    writer.add_add_space_prefix(False)
    if supports_chat(tokenizer):
        writer.add_chat_template(CHAT_TEMPLATE)


def read_gguf_state(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Returns our state dictionary from a file that `write_gguf` wrote, dequantized to float32."""
    gguf = import_gguf()
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Transformer(config).state_dict().items()}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    architecture = choose_architecture(config)
    state: dict[str, Tensor] = {}
    for entry in list_tensors(config, architecture):
        tensor = stored[entry.name]
        values = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        state |= from_gguf_tensor(entry, values, shapes, config, architecture)
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    return state
