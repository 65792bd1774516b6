"""`fledgling import`: a Hugging Face directory as a checkpoint that every verb takes."""

from __future__ import annotations

import json
from pathlib import Path

from fledgling.cli.options import Json


def import_(source: Path, out: Path, /, *, as_json: Json = False) -> None:
    """Make a checkpoint of a model that transformers can load: NanoChat, GPT-2 or Llama, from safetensors.

    Parameters
    ----------
    source
        A directory with config.json, model.safetensors (or shards and their index) and tokenizer.json.
    out
        The directory that the checkpoint is put in, as OUT/step-00000000.
    """
    from fledgling.export.import_hf import import_hf

    place, found = import_hf(source, out)
    count = sum(tensor.numel() for name, tensor in found.state.items() if not _twice(name, found.config.tie_embeddings))
    if as_json:
        print(json.dumps({"path": str(place), "parameters": count, "model": found.config.to_dict()}, indent=2))
        return
    print(place)
    print(f"{count:,} parameters of the {found.config.family} family, {found.tokenizer.vocab_size:,} tokens")


def _twice(name: str, tied: bool) -> bool:
    return tied and name == "embedding.weight"
