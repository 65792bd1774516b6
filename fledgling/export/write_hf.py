"""Write a model as a Hugging Face directory: weights, configuration, tokenizer, chat template, model card.

    config.json  generation_config.json  model.safetensors (or numbered shards and an index)
    tokenizer.json  tokenizer_config.json  README.md

The one idea: the values are ours and only the names are theirs (`layout.py`), so `read.py` gives back bit for bit what
was written in float32. The directory appears whole, in one rename, or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.chat_template import special_token_ids, tokenizer_config
from fledgling.export.hf_mapping import check_family, tensor_mappings, to_hf_config, to_hf_tensor
from fledgling.record import make_write_error
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
) -> Path:
    """Write the directory `out`, which must not exist yet or be empty, and return it.

    state: our state dictionary, float32; dtype: what the weights are stored in, float32 without loss; card: README.md.
    Raises UserError when no class of transformers holds this model, or the disk does not take it.
    """
    check_family(config)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not known; expected one of {', '.join(DTYPES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty directory; choose another place for the export")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        temporary.mkdir(parents=True)
        _weights(temporary, _tensors(config, state, DTYPES[dtype]), shard_bytes)
        tokens = special_token_ids(tokenizer)
        said = {**to_hf_config(config), "dtype": dtype, "use_cache": True, **tokens}
        _json(temporary / "config.json", said)
        _json(temporary / "generation_config.json", {**tokens, "do_sample": True, "temperature": 0.8, "top_k": 50})
        _json(temporary / "tokenizer_config.json", tokenizer_config(tokenizer, config.context))
        tokenizer.save(temporary / "tokenizer.json")
        (temporary / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    except OSError as problem:
        raise make_write_error(out, problem) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _tensors(config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for entry in tensor_mappings(config):
        yield entry.hf_name, to_hf_tensor(entry, state).detach().to("cpu", dtype).contiguous()


def _weights(directory: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` (or one tensor) and their index."""
    shards: list[list[str]] = []
    total, waiting, size = 0, {}, 0

    def flush() -> None:
        save_file(waiting, directory / f"{len(shards):05d}.partial", metadata={"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        waiting[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(shards) == 1:
        (directory / "00000.partial").rename(directory / "model.safetensors")
        return
    where = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"{index:05d}.partial").rename(directory / file)
        where |= dict.fromkeys(names, file)
    _json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
