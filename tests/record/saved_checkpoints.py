"""Small checkpoints for tests, and what a rejected one looks like."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from fledgling.config import UserError
from fledgling.record import checkpoint


def write_checkpoint(directory, step=100, size=64, **groups):
    torch.manual_seed(step)
    groups = groups or {
        "model": {"w": torch.randn(size, size)},
        "optimizer": {"w.momentum": torch.randn(size)},
    }
    extra = directory.parent / "tokenizer.json"
    extra.parent.mkdir(parents=True, exist_ok=True)
    extra.write_text('{"vocab": {}}')
    return checkpoint.save_checkpoint(directory, step, groups, {"step": step, "loss": 0.1}, {"tokenizer.json": extra})


def rewrite_manifest(path: Path) -> None:
    """Makes the manifest match the files, as an attacker would."""
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in path.iterdir()
        if p.is_file() and p.name != "manifest.json"
    }
    (path / "manifest.json").write_text(json.dumps({"format": checkpoint.CHECKPOINT_FORMAT, "files": files}))


def assert_rejected(path, match):
    with pytest.raises(UserError, match=match) as error:
        checkpoint.load_checkpoint(path)
    assert "\n" not in str(error.value)
