"""`--gpus N`: N ranks, their exit code, and one line where it cannot be."""

import pytest
import torch

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.runtime.launch import launch_ranks


@pytest.mark.parametrize("words", [["train", "pretrain"], ["speedrun"], ["bench", "train"]])
def test_fewer_than_one_is_one_line(words, capsys):
    assert main([*words, "--gpus", "0"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err == "error: --gpus 0: expected at least 1\n"


def test_more_than_there_are_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--gpus 3: this machine has 2"):
        launch_ranks(3, "cuda", [])


RANK = """
import os, pathlib, sys
name = "-".join(os.environ[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
pathlib.Path(sys.argv[1], name).touch()
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("code", [0, 3])
def test_ranks_are_started_and_their_exit_code_is_ours(tmp_path, monkeypatch, code):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch_ranks(2, "cpu", ["-c", RANK, str(tmp_path), str(code)]) == code
    started = {path.name for path in tmp_path.iterdir()}
    assert started == {"0-2-2", "1-2-2"} if code == 0 else started <= {"0-2-2", "1-2-2"}
