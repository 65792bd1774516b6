"""Writes a model as a Hugging Face directory: weights, configuration, tokenizer, chat template, model card.

    config.json  generation_config.json  model.safetensors (or numbered shards and an index)
    tokenizer.json  tokenizer_config.json  README.md  calculator.py (where the model can call it)
    modeling_fledgling.py (where no class of transformers holds the model)

Only the names of tensors change (`hf_mapping.py`), so `read_hf.py` restores bit for bit what was written in float32.
The directory appears complete, in one rename, or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.chat_template import special_token_ids, supports_tools, tokenizer_config
from fledgling.export.compressed_tensors import check_compression, compress_tensors, quantization_config
from fledgling.export.hf_mapping import check_family, tensor_mappings, to_hf_config
from fledgling.export.hf_tensor import to_hf_tensor
from fledgling.export.own_class import MODELING_FILE, needs_own_class
from fledgling.record import make_write_error
from fledgling.record.atomic_directory import atomic_directory
from fledgling.record.tensor_file import write_tensor_file
from fledgling.text import calculator
from fledgling.text.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 4 * 10**9


def write_hf(
    out: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    card: str,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    quantize: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the directory `out`, which must not exist yet or be empty, and returns it.

    Args:
        out: the directory.
        config: the model's configuration.
        state: our state dictionary, float32.
        tokenizer: the tokenizer.
        card: text of README.md.
        dtype: storage type of the weights; float32 is lossless.
        shard_bytes: largest file of weights, in bytes.
        quantize: int8 or int4, in the form of compressed-tensors; None: not quantized.
        more: further keys of config.json, which other programs read.

    Raises UserError if no class of transformers represents this model, or the directory cannot be written.
    """
    check_family(config)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
    if quantize:
        check_compression(config, quantize)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory; choose another directory for the export")
    try:
        with atomic_directory(out) as temporary:
            tensors = _iterate_tensors(config, state, DTYPES[dtype])
            _write_weights(temporary, compress_tensors(config, tensors, quantize) if quantize else tensors, shard_bytes)
            token_ids = special_token_ids(tokenizer)
            config_json = {**to_hf_config(config), "dtype": dtype, "use_cache": True, **token_ids, **(more or {})}
            config_json |= {"quantization_config": quantization_config(config, quantize)} if quantize else {}
            write_hf_json(temporary / "config.json", config_json)
            write_tokenizer(temporary, tokenizer, config.context)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            if needs_own_class(config):
                shutil.copyfile(MODELING_FILE, temporary / MODELING_FILE.name)
            if supports_tools(tokenizer):  # the card's code imports it
                shutil.copyfile(calculator.__file__, temporary / "calculator.py")
    except OSError as problem:
        raise make_write_error(out, problem) from None
    return out


def write_tokenizer(directory: Path, tokenizer: Tokenizer, context: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json with the chat template, and generation_config.json."""
    sampling = tokenizer.sampling_defaults or {"temperature": 0.8, "top_k": 50}
    generation = {**special_token_ids(tokenizer), "do_sample": True, **sampling}
    write_hf_json(directory / "generation_config.json", generation)
    write_hf_json(directory / "tokenizer_config.json", tokenizer_config(tokenizer, context))
    tokenizer.without_layout().save(directory / "tokenizer.json")


def _iterate_tensors(
    config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of the Hugging Face class with their names."""
    for mapping in tensor_mappings(config):
        tensor = to_hf_tensor(mapping, state).detach()
        stored = tensor.to("cpu", dtype).contiguous()
        if dtype == torch.float16 and stored.isinf().any() and tensor.isfinite().all():
            largest = float(tensor.abs().max())
            raise UserError(
                f"tensor {mapping.hf_name} has the value {largest:g}, and float16 holds at most 65,504: choose bfloat16"
            )
        yield mapping.hf_name, stored


def _write_weights(directory: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Writes model.safetensors, or shards of at most `shard_bytes` (or one tensor) and their index."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        write_tensor_file(directory / f"{len(shards):05d}.partial", pending, {"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        pending[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(shards) == 1:
        (directory / "00000.partial").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{index:05d}.partial").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    write_hf_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def write_hf_json(path: Path, value: dict) -> None:
    """Writes a JSON file as transformers does."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
