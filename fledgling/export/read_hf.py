"""Reads a Hugging Face directory from any source, and trusts nothing in it.

Everything is checked against config.json before a model is made: files, tensors and shapes. Weights come from
safetensors alone, never from a pickle; a tensor that is missing, unexpected, or of another shape or type is named in
one line, and nothing is loaded partially.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fledgling.config import ModelConfig, UserError
from fledgling.export.hf_mapping import class_name, from_hf_config, tensor_mappings
from fledgling.export.hf_tensor import from_hf_tensor
from fledgling.export.open_classes import fold_query_scale, head_name
from fledgling.export.own_class import needs_own_class, translate_own_name
from fledgling.export.read_layout import read_added_tokens, read_layout
from fledgling.export.untrusted import open_safetensors, read_json, require_floats
from fledgling.model.transformer import Transformer
from fledgling.text.gpt2 import load_gpt2_tokenizer
from fledgling.text.tokenizer import Tokenizer

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
# Masks and tables that older writers stored, not weights.
_NO_WEIGHTS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class HfModel:
    """The contents of a directory: configuration, our state dictionary in float32, and the tokenizer."""

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer

    def count_parameters(self) -> int:
        """Returns the number of parameters; a tied head and embedding count once."""
        tied = {"embedding.weight"} if self.config.tie_embeddings else set()
        return sum(tensor.numel() for name, tensor in self.state.items() if name not in tied)


def read_hf(directory: Path) -> HfModel:
    """Reads `directory`. Raises UserError naming the invalid file, key or tensor."""
    config, files, tokenizer = _read_parts(directory)
    state = _read_state(config, files)
    fold_query_scale(config, read_json(directory / "config.json"), state)
    return HfModel(config, state, tokenizer)


def read_hf_config(directory: Path) -> ModelConfig:
    """Returns the configuration of `directory`, without its weights. Raises UserError for files that are missing."""
    return _read_parts(directory)[0]


def _read_parts(directory: Path) -> tuple[ModelConfig, dict[str, Path], Tokenizer]:
    """Returns the configuration, the files of the tensors, and the tokenizer."""
    if not directory.is_dir():
        problem = "is a file" if directory.exists() else "does not exist"
        raise UserError(
            f"{directory} {problem}; expected a directory with config.json (hf download NAME --local-dir DIR)"
        )
    config = from_hf_config(read_json(directory / "config.json"))
    files, tokenizer = _locate_tensors(directory), _read_tokenizer(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} entries, config.json has {config.vocab_size}"
        )
    return config, files, tokenizer


def _locate_tensors(directory: Path) -> dict[str, Path]:
    """Returns tensor name -> file, from the index or from the one file. Names in an index stay inside the directory."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        with open_safetensors(single) as file:
            return dict.fromkeys(file.keys(), single)
    if not index.is_file():
        pickles = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise UserError(f"{directory} has only {pickles[0]}, a pickle, which is never read: convert to safetensors")
        raise UserError(f"{directory} has no model.safetensors and no model.safetensors.index.json")
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{index}: weight_map is missing or not a table of names")
    files: dict[str, Path] = {}
    for name, file in listed.items():
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise UserError(f"{index}: {name} is mapped to {str(file)[:80]!r}; expected a plain file name")
        files[name] = directory / file
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise UserError(f"{index} names {path.name}, which does not exist")
        with open_safetensors(path) as file:
            stored = set(file.keys())
        absent = sorted(name for name, shard in files.items() if shard == path and name not in stored)
        if absent:
            raise UserError(f"{index}: tensor {absent[0]} is not in {path.name}")
    return files


def _read_state(config: ModelConfig, files: dict[str, Path]) -> dict[str, Tensor]:
    """Returns our state dictionary, every tensor checked."""
    if config.depth > len(files):
        raise UserError(f"config.json has {config.depth} layers, but there are only {len(files)} tensors")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Transformer(config).state_dict().items()}
    files = {name: path for name, path in files.items() if not _NO_WEIGHTS.fullmatch(name)}
    stored_names = {_name_of_today(name, config, files): name for name in files}
    files = {name: files[stored] for name, stored in stored_names.items()}
    unprefixed = config.family == "gpt2" and "wte.weight" in files  # as in the published files
    mappings = {
        mapping.hf_name.removeprefix("transformer.") if unprefixed else mapping.hf_name: mapping
        for mapping in tensor_mappings(config)
    }
    head = head_name(config)
    tied_head = files.pop(head, None) if config.tie_embeddings else None
    for names, problem in ((set(mappings) - set(files), "is missing"), (set(files) - set(mappings), "is left over")):
        if names:
            raise UserError(f"tensor {min(names)} {problem}: these are not the weights of {class_name(config)}")
    state: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        with open_safetensors(path) as file:
            for name in sorted(name for name, shard in files.items() if shard == path):
                tensor = require_floats(path, stored_names[name], file.get_tensor(stored_names[name]))
                state |= from_hf_tensor(mappings[name], tensor, shapes)
    if config.tie_embeddings:
        state["head.weight"] = state["embedding.weight"]
    if tied_head is not None:
        with open_safetensors(tied_head) as file:
            if not torch.equal(require_floats(tied_head, head, file.get_tensor(head)), state["head.weight"]):
                raise UserError(f"tensor {head} differs from the embedding, but config.json ties them")
    return state


def _name_of_today(name: str, config: ModelConfig, files: Collection[str]) -> str:
    """Returns the name of a tensor, translated where an older version exported it; never to a name of another one."""
    today = translate_own_name(name) if needs_own_class(config) else name
    return name if today in files else today


def _read_tokenizer(directory: Path) -> Tokenizer:
    """Returns the tokenizer of tokenizer.json with the layout of conversations, or of GPT-2's two files."""
    if (directory / "tokenizer.json").is_file():
        stored = Tokenizer.load(directory / "tokenizer.json")
        document = read_added_tokens(directory, stored.tokenizer_json)
        whole = stored if document == stored.tokenizer_json else Tokenizer(document)
        return whole.with_layout(read_layout(directory))
    tokenizer = load_gpt2_tokenizer(directory)
    if tokenizer is None:
        raise UserError(f"{directory} has no tokenizer.json (nor vocab.json and merges.txt)")
    return tokenizer
