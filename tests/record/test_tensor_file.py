"""Tensors are written with the permissions that the umask gives every file."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import fledgling
from fledgling.record.checkpoint import save_checkpoint
from fledgling.record.tensor_file import write_tensor_file


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_tensors_have_the_permissions_of_other_files(tmp_path, umask):
    path = tmp_path / "a.safetensors"
    write_tensor_file(path, {"w": torch.arange(4.0)}, {"format": "pt"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"} and file.get_tensor("w").tolist() == [0, 1, 2, 3]


def test_all_files_of_a_checkpoint_have_the_same_permissions(tmp_path, umask):
    saved = save_checkpoint(tmp_path / "c", 1, {"model": {"w": torch.ones(2)}}, {"step": 1})
    assert {stat.S_IMODE(path.stat().st_mode) for path in saved.iterdir()} == {0o666 & ~umask}


def test_no_other_module_writes_tensors_or_leaves_a_private_temporary_file():
    private = re.compile(r"\b(save_file|serialize_file|mkstemp|mkdtemp|NamedTemporaryFile)\(")
    package = Path(fledgling.__file__).parent
    found = {path.name for path in package.rglob("*.py") if private.search(path.read_text(encoding="utf-8"))}
    assert found == {"tensor_file.py"}
