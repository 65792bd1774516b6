"""`fledgling checkpoint verify`: every file of every checkpoint, the bad ones named, 1 when there are any."""

import json

import pytest
import torch

from fledgling.cli import main
from fledgling.record import checkpoint


@pytest.fixture
def run_dir(tmp_path):
    for stage, steps in (("pretrain", (2, 4)), ("sft", (4,))):
        for step in steps:
            tensors = {"model": {"w": torch.ones(4)}, "optimizer": {"m": torch.ones(4)}}
            checkpoint.save_checkpoint(tmp_path / "run" / stage / "checkpoints", step, tensors, {"step": step})
    return tmp_path / "run"


def verify(capsys, *words) -> tuple[int, str]:
    code = main(["checkpoint", "verify", *map(str, words)])
    return code, capsys.readouterr().out


def test_a_run_that_is_whole(run_dir, capsys):
    code, out = verify(capsys, run_dir)
    assert code == 0 and out.count("whole, 3 files") == 3 and out.endswith("3 checkpoints, all whole\n")
    found = json.loads(verify(capsys, run_dir, "--json")[1])
    assert [(told["step"], told["whole"]) for told in found["checkpoints"]] == [(2, True), (4, True), (4, True)]
    assert found["damaged"] == 0 and all(told["bytes"] > 100 for told in found["checkpoints"])
    for part, count in (("sft", 1), ("pretrain/checkpoints", 2), ("pretrain/checkpoints/step-00000004", 1)):
        assert len(json.loads(verify(capsys, run_dir / part, "--json")[1])["checkpoints"]) == count


def test_every_bad_file_is_named(run_dir, capsys):
    here = run_dir / "pretrain/checkpoints/step-00000004"
    content = bytearray((here / "optimizer.safetensors").read_bytes())
    content[-1] ^= 4
    (here / "optimizer.safetensors").write_bytes(content)
    (here / "model.safetensors").write_bytes(b"short")
    (run_dir / "sft/checkpoints/step-00000004/manifest.json").unlink()
    code, out = verify(capsys, run_dir)
    assert code == 1 and "2 damaged" in out
    assert "  optimizer.safetensors: does not match its SHA-256 in manifest.json" in out
    assert "  model.safetensors: has 5 bytes, manifest.json says " in out
    assert "  manifest.json: " in out and "sft/checkpoints/step-00000004 has no manifest.json" in out
    found = json.loads(verify(capsys, here, "--json")[1])
    assert {name for name, problem in found["checkpoints"][0]["files"].items() if problem} == {
        "model.safetensors",
        "optimizer.safetensors",
    }
    (here / "state.json").unlink()
    assert "state.json: of manifest.json is missing" in verify(capsys, here)[1]


def test_where_there_is_none_is_one_line(tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path):
        assert main(["checkpoint", "verify", str(path)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
