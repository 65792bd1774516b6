"""Converts a Hugging Face directory or a GGUF file to a checkpoint: `fledgling import`, runs that start from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fledgling.config import ModelConfig
from fledgling.export.read_gguf import read_gguf
from fledgling.export.read_hf import HfModel, read_hf
from fledgling.record.checkpoint import save_checkpoint


def read_model(source: Path) -> HfModel:
    """Reads a Hugging Face directory, or a GGUF file. Raises UserError naming the invalid file, key or tensor."""
    return read_gguf(source) if source.is_file() and source.suffix.lower() == ".gguf" else read_hf(source)


def import_hf(
    directory: Path, out: Path, adapt: Callable[[ModelConfig], ModelConfig] = lambda config: config
) -> tuple[Path, HfModel]:
    """Reads `directory` and saves it as OUT/step-00000000; returns that path and the model.

    adapt: returns the configuration to save, with the same tensors.

    Raises UserError naming the invalid file, key or tensor; nothing is written in that case.
    """
    model = read_model(directory)
    state = {
        "name": directory.resolve().name,
        "step": 0,
        "model": adapt(model.config).to_dict(),
        "tokenizer": model.tokenizer.fingerprint(),
    }
    with TemporaryDirectory() as folder:
        files = {"tokenizer.json": model.tokenizer.save(folder)}
        return save_checkpoint(out, 0, {"model": model.state}, state, files), model
