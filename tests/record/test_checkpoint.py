"""Checkpoints: complete or absent, whatever happens during a save; every flipped bit is found."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fledgling.config import UserError
from fledgling.record import checkpoint, rng_state, tensor_names
from tests.record.saved_checkpoints import assert_rejected, write_checkpoint


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    w = torch.randn(6, 4)
    model = {
        "w": w,
        "tied": w,
        "transposed": w.T,
        "view": w[1:3],
        "half": torch.randn(3).bfloat16(),
        "step": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }
    state = {"step": 3, "loss": 0.1 + 0.2, "best": float("inf"), "words": ["火", "\x00", "é"], "none": None}
    path = checkpoint.save_checkpoint(
        tmp_path / "checkpoints", 3, {"model": model, "random": rng_state.get_rng_state()}, state
    )
    assert path == tmp_path / "checkpoints/step-00000003"
    loaded = checkpoint.load_checkpoint(path)
    assert loaded.state == state and loaded.path == path
    assert set(loaded.tensors) == {"model", "random"}
    for name, tensor in model.items():
        back = loaded.tensors["model"][name]
        assert back.dtype == tensor.dtype and torch.equal(back, tensor), name
    assert set(checkpoint.load_checkpoint(path, groups=("model",)).tensors) == {"model"}
    with pytest.raises(UserError, match=r"no critic\.safetensors; it has model, random"):
        checkpoint.load_checkpoint(path, groups=("critic",))


def test_tensors_are_read_under_the_names_that_they_have_today(tmp_path):
    for old, new in tensor_names.RENAMED_TENSORS.items():
        groups = {
            "model": {f"{old}x": torch.ones(2), f"a.{old}x": torch.ones(1)},
            "optimizer": {f"{old}x.m": torch.ones(3)},
        }
        read = checkpoint.load_checkpoint(write_checkpoint(tmp_path / "c", **groups)).tensors
        assert {name: sorted(group) for name, group in read.items()} == {
            "model": [f"a.{old}x", f"{new}x"],
            "optimizer": [f"{new}x.m"],
        }
    moments = {f"w{old}": torch.ones(1) for old in tensor_names.RENAMED_MOMENTS}
    read = checkpoint.load_checkpoint(write_checkpoint(tmp_path / "c", model={"w": torch.ones(1)}, optimizer=moments))
    assert sorted(read.tensors["optimizer"]) == sorted(f"w{new}" for new in tensor_names.RENAMED_MOMENTS.values())


def test_the_random_state_continues(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, 1, {"random": rng_state.get_rng_state()}, {})
    expected = torch.randn(5)
    rng_state.set_rng_state(checkpoint.load_checkpoint(path).tensors["random"])
    assert torch.equal(torch.randn(5), expected)


def test_saving_a_step_again_replaces_it(tmp_path):
    write_checkpoint(tmp_path / "c", model={"w": torch.zeros(2)})
    path = write_checkpoint(tmp_path / "c", model={"w": torch.ones(2)})
    assert checkpoint.load_checkpoint(path).tensors["model"]["w"].tolist() == [1, 1]
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["step-00000100"]


KILLED_WHILE_SAVING = """if True:
    import os, signal, sys, time, torch
    from pathlib import Path
    from fledgling.record import checkpoint
    torch.set_num_threads(1)
    root = Path(sys.argv[1])

    def save(directory, step):
        model = {"w": torch.full((300, 300), float(step))}
        checkpoint.save_checkpoint(directory, step, {"model": model, "optimizer": {"m": model["w"]}}, {"step": step})

    def count_calls(limit):
        left = [limit]
        def counted(real):
            def call(*args, **more):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return real(*args, **more)
            return call
        for name in ("fsync", "replace", "open", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        checkpoint.write_tensor_file = counted(checkpoint.write_tensor_file)
        checkpoint.shutil.rmtree = counted(checkpoint.shutil.rmtree)

    limit, code = 0, 1
    while code:  # each moment between two effects of a save, until one save succeeds
        directory = root / f"at-{limit:03}"
        save(directory, 1)
        save(directory, 2)
        child = os.fork()
        if not child:
            count_calls(limit)
            save(directory, 2 if limit % 2 else 3)
            os._exit(0)
        code = os.waitpid(child, 0)[1]
        limit += 1

    for moment in range(12):  # and twelve moments on the clock, during one save after another
        directory = root / f"clock-{moment:03}"
        save(directory, 1)
        child = os.fork()
        if not child:
            step = 2
            while True:
                save(directory, step)
                checkpoint.prune_checkpoints(directory, 2)
                step += 1
        time.sleep(0.02 + 0.011 * moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""


def test_after_a_kill_at_any_moment_a_valid_checkpoint_remains(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], check=True, timeout=290)
    directories = sorted(tmp_path.iterdir())
    assert len([d for d in directories if d.name.startswith("at-")]) > 15
    for directory in directories:
        torn = []
        newest = checkpoint.find_latest_checkpoint(directory, warn=torn.append)
        assert newest is not None and torn == [], (directory, torn)
        loaded = checkpoint.load_checkpoint(newest)
        step = loaded.state["step"]
        assert newest.name.startswith(f"step-{step:08d}")
        assert loaded.tensors["model"]["w"].eq(step).all()
        if directory.name.startswith("at-"):
            assert step >= 2, "what was saved before is still there"
        write_checkpoint(directory, step=0, size=4)
        checkpoint.prune_checkpoints(directory, 1)
        assert [p.name for p in directory.iterdir()] == [newest.name], "leftovers of the kill are deleted"


def test_every_flipped_bit_is_found(tmp_path):
    path = write_checkpoint(tmp_path / "c", size=4)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for at in range(0, len(content), max(1, len(content) // 40)):
            changed = bytearray(content)
            changed[at] ^= 1 << (at % 8)
            file.write_bytes(changed)
            with pytest.raises(UserError) as error:
                checkpoint.load_checkpoint(path)
            assert file.name in str(error.value) or file.name == "manifest.json", (at, str(error.value))
            assert checkpoint.find_latest_checkpoint(path.parent, warn=lambda _: None) is None
        file.write_bytes(content)
    checkpoint.verify_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "tokenizer.json", "manifest.json"])
def test_a_missing_or_short_file_is_named(tmp_path, name):
    path = write_checkpoint(tmp_path / "c")
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-1] if name != "manifest.json" else content[:40])
    assert_rejected(path, name)
    (path / name).unlink()
    assert_rejected(path, name)


def test_the_newest_valid_checkpoint_is_found_and_torn_ones_are_warned_about(tmp_path):
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path / "c", step)
    (tmp_path / "c/step-00000004/manifest.json").unlink()
    (tmp_path / "c/step-00000003/model.safetensors").write_bytes(b"short")
    warned = []
    assert checkpoint.find_latest_checkpoint(tmp_path / "c", warn=warned.append).name == "step-00000002"
    assert len(warned) == 2 and "step-00000004" in warned[0] and "step-00000003" in warned[1]
    with pytest.warns(UserWarning, match="skipped"):
        checkpoint.find_latest_checkpoint(tmp_path / "c")
    assert checkpoint.find_latest_checkpoint(tmp_path / "nowhere") is None


def test_pruning_never_deletes_the_last_valid_checkpoint(tmp_path):
    c = tmp_path / "c"
    for step in (1, 2, 3, 4):
        write_checkpoint(c, step)
    (c / ".tmp-step-00000009-1").mkdir()
    (c / "notes.txt").write_text("mine")
    assert [p.name for p in checkpoint.prune_checkpoints(c, 2)] == ["step-00000004", "step-00000003"]
    assert sorted(p.name for p in c.iterdir()) == ["notes.txt", "step-00000003", "step-00000004"]
    weights = c / "step-00000004/model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    assert [p.name for p in checkpoint.prune_checkpoints(c, 1)] == ["step-00000003"], "the corrupt one does not count"
    assert [p.name for p in checkpoint.prune_checkpoints(c, 0)] == ["step-00000003"], "one always remains"
    (c / "step-00000003/state.json").unlink()
    assert checkpoint.prune_checkpoints(c, 1) == [] and (c / "step-00000003").is_dir(), (
        "with none valid, nothing is deleted"
    )


# ---- corrupt and hostile -------------------------------------------------------------------------


def test_a_checkpoint_of_another_versions_format_is_an_error_and_never_skipped(tmp_path):
    older, newest = (write_checkpoint(tmp_path / "sft/checkpoints", step) for step in (1, 2))
    manifest = newest / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace("fledgling checkpoint 1", "fledgling checkpoint 2"))
    for function in (checkpoint.find_latest_checkpoint, checkpoint.resolve_checkpoint):
        with pytest.raises(checkpoint.UnreadableCheckpoint, match="'fledgling checkpoint 2' of another version"):
            function(tmp_path / "sft/checkpoints")
    assert checkpoint.prune_checkpoints(tmp_path / "sft/checkpoints", 1) == [older] and newest.is_dir()
    assert not checkpoint.inspect_checkpoint(newest)["valid"]
    manifest.write_text(whole.replace("fledgling checkpoint 1", "fledglinh checkpoint 1"))
    assert checkpoint.find_latest_checkpoint(tmp_path / "sft/checkpoints", warn=print) == older, "that is a flipped bit"


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors"])
def test_a_file_that_cannot_be_read_for_a_moment_is_not_corrupt(tmp_path, monkeypatch, name):
    older, newest = (write_checkpoint(tmp_path / "c", step) for step in (1, 2))
    file, lstat, read_bytes = newest / name, os.lstat, Path.read_bytes

    def fail(path, *, real, error):
        if Path(path) == file:
            raise error(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    for error, is_corrupt in ((OSError, False), (FileNotFoundError, True)):  # the latter: deleted at this moment
        with monkeypatch.context() as patch:
            if name == "manifest.json":
                patch.setattr(Path, "read_bytes", lambda path, e=error: fail(path, real=read_bytes, error=e))
            else:
                patch.setattr(Path, "lstat", lambda path, e=error: fail(path, real=lstat, error=e))
            if is_corrupt:
                assert checkpoint.find_latest_checkpoint(tmp_path / "c", warn=lambda line: None) == older
                continue
            with pytest.raises(checkpoint.UnreadableCheckpoint, match=rf"cannot read .*{name} .*it may be whole"):
                checkpoint.find_latest_checkpoint(tmp_path / "c")
            assert not checkpoint.inspect_checkpoint(newest)["valid"]
    assert checkpoint.find_latest_checkpoint(tmp_path / "c") == newest


def assert_unchanged(directory, before):
    assert sorted(p.name for p in directory.iterdir()) == before
    checkpoint.load_checkpoint(checkpoint.find_latest_checkpoint(directory))


LIMITED = """if True:
    import resource, sys, torch
    from pathlib import Path
    from fledgling.config import UserError
    from fledgling.record import checkpoint
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    large, small = {"w": torch.zeros(1000, 10)}, {"w": torch.zeros(2)}
    for tensors, state in (({"model": large}, {}), ({"model": small}, {"text": "x" * 30_000})):
        try:
            checkpoint.save_checkpoint(Path(sys.argv[1]), 2, tensors, state)
        except UserError as error:
            print(error)
"""


def test_a_failed_write_is_one_error_line_and_leaves_no_files(tmp_path):
    write_checkpoint(tmp_path / "c", 1)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "c")], capture_output=True, text=True, check=True
    )
    for line, needed in zip(done.stdout.splitlines(), ("40.0 kB needed", "30.0 kB needed"), strict=True):
        assert "cannot write" in line and "step-00000002" in line and needed in line and "free" in line
    assert_unchanged(tmp_path / "c", ["step-00000001"])


def test_a_full_file_system_is_one_clear_error(tmp_path):
    """Uses its own file system of one megabyte, where the kernel allows one."""
    script = (
        "mount -t tmpfs -o size=1m tmpfs $1 && exec $2 -c '"
        "import sys, torch; from pathlib import Path; from fledgling.record import checkpoint as c\n"
        "from fledgling.config import UserError\n"
        "d = Path(sys.argv[1]); group = lambda n: {chr(109): {chr(119): torch.zeros(n)}}\n"
        "c.save_checkpoint(d, 1, group(10), {})\n"
        "c.shutil.disk_usage = lambda p, real=c.shutil.disk_usage: real(p)._replace(free=10**9)\n"
        "try: c.save_checkpoint(d, 2, group(400_000), {})\n"
        "except UserError as e: print(e)\n"
        "print([p.name for p in d.iterdir()], c.load_checkpoint(c.find_latest_checkpoint(d)).path.name)' $1"
    )
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(tmp_path), sys.executable]
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces on this machine")
    done = subprocess.run(command, capture_output=True, text=True)
    if "mount" in done.stderr and done.returncode:
        pytest.skip("mounting is not allowed on this machine")
    error, listing = done.stdout.splitlines()
    assert "No space left on device" in error and "step-00000002" in error and "1.6 MB needed" in error
    assert listing == "['step-00000001'] step-00000001"


@pytest.mark.parametrize("call", ["copyfile", "fsync", "replace", "write_bytes", "write_text"])
def test_a_full_disk_at_any_write(tmp_path, monkeypatch, call):
    write_checkpoint(tmp_path / "c", 1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = {"copyfile": shutil, "fsync": os, "replace": os}.get(call, Path)
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, full)
        source = tmp_path / "tokenizer.json"
        with pytest.raises(UserError, match=r"step-00000002: No space left .* needed, .* free"):
            checkpoint.save_checkpoint(
                tmp_path / "c", 2, {"model": {"w": torch.zeros(3)}}, {}, {"tokenizer.json": source}
            )
    assert_unchanged(tmp_path / "c", ["step-00000001"])


def test_a_full_disk_is_known_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match="needed, 1 bytes free"):
        write_checkpoint(tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []


def test_an_interrupted_save_leaves_no_files(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "c", 1)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensor_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path / "c", 2)
    assert_unchanged(tmp_path / "c", ["step-00000001"])


# ---- choosing a checkpoint ----------------------------------------------------------------------------


def test_a_run_a_stage_and_a_checkpoint_are_resolved(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.resolve_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"looked for manifest\.json, step-.*, rl, dpo, sft, midtrain, pretrain"):
        checkpoint.resolve_checkpoint(tmp_path)
    first = write_checkpoint(tmp_path / "pretrain/checkpoints", 1)
    with pytest.raises(UserError, match=r"no stage .* has finished"):
        checkpoint.resolve_checkpoint(tmp_path)
    last = write_checkpoint(tmp_path / "sft/checkpoints", 7)
    (tmp_path / "pretrain/done.json").write_text("{}")
    assert checkpoint.resolve_checkpoint(tmp_path) == first, "sft has not finished"
    (tmp_path / "sft/done.json").write_text("{}")
    for path in (tmp_path, tmp_path / "sft", tmp_path / "sft/checkpoints", last):
        assert checkpoint.resolve_checkpoint(path) == last
    (last / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest"):
        checkpoint.resolve_checkpoint(tmp_path)


def test_an_older_checkpoint_that_replaces_a_corrupt_one_is_named(tmp_path):
    older, newest = (write_checkpoint(tmp_path / "sft/checkpoints", step) for step in (1, 2))
    (newest / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"skipped: .*step-00000002.*; .*step-00000001 is used"):
        assert checkpoint.resolve_checkpoint(tmp_path / "sft") == older


def test_the_checkpoints_of_a_run_are_listed_by_stage_oldest_first(tmp_path):
    later = [write_checkpoint(tmp_path / "sft/checkpoints", step) for step in (3, 9)]
    earlier = [write_checkpoint(tmp_path / "pretrain/checkpoints", step) for step in (2, 7)]
    assert checkpoint.list_checkpoints(tmp_path) == earlier + later
    assert checkpoint.list_checkpoints(tmp_path / "sft") == later
    assert checkpoint.list_checkpoints(tmp_path / "sft/checkpoints") == later
    assert checkpoint.list_checkpoints(later[0]) == later[:1]
