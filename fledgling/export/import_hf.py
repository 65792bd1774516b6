"""Converts a Hugging Face directory to a checkpoint, for `fledgling import` and for runs that start from one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from fledgling.export.read_hf import HfModel, read_hf
from fledgling.record.checkpoint import save_checkpoint


def import_hf(directory: Path, out: Path) -> tuple[Path, HfModel]:
    """Reads `directory` and saves it as OUT/step-00000000; returns that path and the model.

    Raises UserError naming the invalid file, key or tensor; nothing is written in that case.
    """
    model = read_hf(directory)
    state = {
        "name": directory.resolve().name,
        "step": 0,
        "model": model.config.to_dict(),
        "tokenizer": model.tokenizer.fingerprint(),
    }
    with TemporaryDirectory() as folder:
        files = {"tokenizer.json": model.tokenizer.save(folder)}
        return save_checkpoint(out, 0, {"model": model.state}, state, files), model
