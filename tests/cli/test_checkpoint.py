"""`fledgling checkpoint verify`: checks every file of every checkpoint, names corrupt ones and then exits with 1."""

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


def run_verify(capsys, *words) -> tuple[int, str]:
    code = main(["checkpoint", "verify", *map(str, words)])
    return code, capsys.readouterr().out


def test_a_valid_run_has_only_valid_checkpoints(run_dir, capsys):
    code, out = run_verify(capsys, run_dir)
    assert code == 0 and out.count("valid, 3 files") == 3 and out.endswith("3 checkpoints, all valid\n")
    report = json.loads(run_verify(capsys, run_dir, "--json")[1])
    assert [(one["step"], one["valid"]) for one in report["checkpoints"]] == [(2, True), (4, True), (4, True)]
    assert report["corrupt"] == 0 and all(one["bytes"] > 100 for one in report["checkpoints"])
    for part, count in (("sft", 1), ("pretrain/checkpoints", 2), ("pretrain/checkpoints/step-00000004", 1)):
        assert len(json.loads(run_verify(capsys, run_dir / part, "--json")[1])["checkpoints"]) == count


def test_every_corrupt_file_is_named(run_dir, capsys):
    directory = run_dir / "pretrain/checkpoints/step-00000004"
    content = bytearray((directory / "optimizer.safetensors").read_bytes())
    content[-1] ^= 4
    (directory / "optimizer.safetensors").write_bytes(content)
    (directory / "model.safetensors").write_bytes(b"short")
    (run_dir / "sft/checkpoints/step-00000004/manifest.json").unlink()
    code, out = run_verify(capsys, run_dir)
    assert code == 1 and "2 corrupt" in out
    assert "  optimizer.safetensors: does not match its SHA-256 in manifest.json" in out
    assert "  model.safetensors: has 5 bytes, manifest.json says " in out
    assert "  manifest.json: " in out and "sft/checkpoints/step-00000004 has no manifest.json" in out
    report = json.loads(run_verify(capsys, directory, "--json")[1])
    assert {name for name, corruption in report["checkpoints"][0]["files"].items() if corruption} == {
        "model.safetensors",
        "optimizer.safetensors",
    }
    (directory / "state.json").unlink()
    assert "state.json: of manifest.json is missing" in run_verify(capsys, directory)[1]


def test_a_checkpoint_that_cannot_be_read_is_not_called_corrupt(run_dir, capsys, monkeypatch):
    """A permission that is missing, and a manifest of another version: an error each, and nothing is known of them."""

    def fail(path):
        raise PermissionError(13, "Permission denied", str(path))

    older = run_dir / "sft/checkpoints/step-00000004/manifest.json"
    older.write_text(older.read_text().replace(checkpoint.CHECKPOINT_FORMAT, "fledgling checkpoint 9"))
    code, out = run_verify(capsys, run_dir)
    assert code == 1 and "CORRUPT" not in out and out.endswith("3 checkpoints, 1 cannot be read\n")
    monkeypatch.setattr("fledgling.record.atomic_directory.hash_file", fail)
    code, out = run_verify(capsys, run_dir)
    assert code == 1 and "CORRUPT" not in out and out.count("CANNOT BE READ, may be whole") == 3
    assert "  model.safetensors: cannot be read (Permission denied)" in out
    report = json.loads(run_verify(capsys, run_dir, "--json")[1])
    assert (report["corrupt"], report["unreadable"]) == (0, 3)


def test_a_directory_without_checkpoints_is_one_error_line(tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path):
        assert main(["checkpoint", "verify", str(path)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
