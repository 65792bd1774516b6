"""A Hugging Face directory becomes a checkpoint: what `fledgling import` does, and a run that starts from one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from fledgling.export.read_hf import HfModel, read_hf
from fledgling.record.checkpoint import save_checkpoint


def import_hf(directory: Path, out: Path) -> tuple[Path, HfModel]:
    """Read `directory`, save it as OUT/step-00000000 and return that and what was read.

    Raises UserError naming the file, key or tensor that does not hold; nothing is written then.
    """
    found = read_hf(directory)
    state = {
        "name": directory.resolve().name,
        "step": 0,
        "model": found.config.to_dict(),
        "tokenizer": found.tokenizer.fingerprint(),
    }
    with TemporaryDirectory() as folder:
        files = {"tokenizer.json": found.tokenizer.save(folder)}
        return save_checkpoint(out, 0, {"model": found.state}, state, files), found
