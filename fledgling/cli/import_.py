"""`fledgling import`: converts a Hugging Face directory to a checkpoint that every command accepts."""

from __future__ import annotations

import json
from pathlib import Path

from fledgling.cli.options import Json


def import_(source: Path, out: Path, /, *, as_json: Json = False) -> None:
    """Make a checkpoint of a model that transformers can load, of a class in docs/families.md: safetensors or GGUF.

    Parameters
    ----------
    source
        A directory with config.json, model.safetensors (or shards and their index) and tokenizer.json; or a GGUF file.
    out
        The directory for the checkpoint, which is saved as OUT/step-00000000.
    """
    from fledgling.export.import_hf import import_hf
    from fledgling.record.outside import require_outside_run

    require_outside_run(out, step=0)
    path, model = import_hf(source, out)
    count = model.count_parameters()
    if as_json:
        print(json.dumps({"path": str(path), "parameters": count, "model": model.config.to_dict()}, indent=2))
        return
    print(path)
    print(f"{count:,} parameters of the {model.config.family} family, {model.tokenizer.vocab_size:,} tokens")
