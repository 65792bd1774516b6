"""A hostile checkpoint is rejected in one line: nothing of it is executed, and no file outside of it is read."""

import hashlib
import json
import os
import pickle
import shutil
import struct

import pytest

from fledgling.config import UserError
from fledgling.record import checkpoint
from tests.record.saved_checkpoints import assert_rejected, rewrite_manifest, write_checkpoint


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["FLEDGLING_BOMB"],)


def test_a_pickle_is_rejected_and_never_run(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_BOMB", str(tmp_path / "exploded"))
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb()))
    for function in (checkpoint.load_checkpoint, checkpoint.resolve_checkpoint, checkpoint.verify_checkpoint):
        with pytest.raises(UserError, match="is a file"):
            function(tmp_path / "model.pt")
    path = write_checkpoint(tmp_path / "c")
    (path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    rewrite_manifest(path)
    assert_rejected(path, "model.safetensors: not a safetensors file")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{x",
        struct.pack("<Q", 71) + b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}     ' + b"\0" * 4,
        struct.pack("<Q", 71) + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}                ' + b"\0" * 4,
        struct.pack("<Q", 71) + b'{"w":{"dtype":"XYZ","shape":[1],"data_offsets":[0,4]}}                 ' + b"\0" * 4,
        struct.pack("<Q", 71) + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}               ' + b"\0" * 4,
    ],
)
def test_a_hostile_safetensors_header_is_rejected(tmp_path, header):
    path = write_checkpoint(tmp_path / "c")
    (path / "model.safetensors").write_bytes(header)
    rewrite_manifest(path)
    assert_rejected(path, r"model\.safetensors")


@pytest.mark.parametrize(
    "name",
    ["../secret.json", "/etc/hostname", "a/b", "..", ".hidden", "", "a\\b", "a\nb", "manifest.json/../x"],
)
def test_a_manifest_cannot_point_outside(tmp_path, name):
    (tmp_path / "c").mkdir()
    (tmp_path / "c/secret.json").write_text("secret")
    path = write_checkpoint(tmp_path / "c")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert_rejected(path, "manifest.json is corrupt")


def test_a_link_to_elsewhere_is_rejected(tmp_path):
    path = write_checkpoint(tmp_path / "c")
    shutil.move(path / "model.safetensors", tmp_path / "elsewhere")
    (path / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert_rejected(path, "not a plain file")


@pytest.mark.parametrize("content", [b"[]", b"null", b"[" * 100_000, b"\xff", b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_state_or_manifest_of_another_kind_is_rejected(tmp_path, content):
    path = write_checkpoint(tmp_path / "c")
    (path / "state.json").write_bytes(content)
    rewrite_manifest(path)
    assert_rejected(path, "state.json")
    (path / "manifest.json").write_bytes(content)
    assert_rejected(path, "manifest.json")


# ---- full disk -------------------------------------------------------------------------------------
