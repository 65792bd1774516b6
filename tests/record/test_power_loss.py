"""Power lost at any call of a save, a retention, a rollback or a record: the right checkpoint loads, and no bad one.

`python -m tests.campaigns.power_loss` prints how many calls and states are tried.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fledgling.record import Recorder, checkpoint, read_jsonl, write_json, write_text
from fledgling.record.durable import fsync_path, make_directory, remove_directory
from tests.record.power_loss import Call, Recording

TOKENIZER = '{"model": {"vocab": {"a": 0}}}'


@pytest.fixture
def folder():
    """A folder in memory where there is one: thousands of states are built in it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


def save(run: Path, step: int, version: int = 1) -> None:
    weights = {"w": torch.full((9,), step + version / 10)}
    files = {"tokenizer.json": run / "tokenizer.json"}
    groups = {"model": weights, "optimizer": weights}
    checkpoint.save_checkpoint(checkpoints_of(run), step, groups, {"step": step, "version": version}, files)


def checkpoints_of(run: Path) -> Path:
    return run / "pretrain/checkpoints"


def load_newest(run: Path) -> tuple[int, int] | None:
    """Returns (step, version) of the newest checkpoint that loads, or None; all that it holds must be of that save."""
    path = checkpoint.find_latest_checkpoint(checkpoints_of(run), warn=lambda text: None)
    if path is None:
        return None
    loaded = checkpoint.load_checkpoint(path)
    step, version = loaded.state["step"], loaded.state["version"]
    for group in ("model", "optimizer"):
        assert torch.equal(loaded.tensors[group]["w"], torch.full((9,), step + version / 10))
    assert (path / "tokenizer.json").read_text() == TOKENIZER
    return step, version


def corrupt(run: Path) -> None:
    """Leaves what a cut during a second save of step 2 may leave: the backup, and a corrupt checkpoint."""
    final = checkpoints_of(run) / "step-00000002"
    shutil.copytree(final, final.with_name("step-00000002.old"))
    (final / "model.safetensors").write_bytes(b"")


@dataclass(frozen=True)
class Scenario:
    """Actions on a run and the (step, version) that is the newest after each; the first one is made before the cut."""

    before: Callable[[Path], object]
    newest: tuple[int, int] | None
    actions: tuple[tuple[Callable[[Path], object], tuple[int, int]], ...]


def save_all(*saves: tuple[int, ...]) -> Callable[[Path], None]:
    """Returns an action: some saves."""
    return lambda run: [save(run, *arguments) for arguments in saves]


def prune(keep: int) -> Callable[[Path], object]:
    return lambda run: checkpoint.prune_checkpoints(checkpoints_of(run), keep)


SCENARIOS = {
    "first save": Scenario(lambda run: None, None, ((save_all((1,)), (1, 1)),)),
    "save and retention": Scenario(save_all((1,)), (1, 1), ((save_all((2,)), (2, 1)), (prune(1), (2, 1)))),
    "retention of several": Scenario(save_all((1,), (2,), (3,), (4,)), (4, 1), ((prune(2), (4, 1)),)),
    "a step saved again": Scenario(save_all((1,), (2,)), (2, 1), ((save_all((2, 2)), (2, 2)),)),
    "a step saved again after a cut": Scenario(
        lambda run: [save_all((1,), (2,))(run), corrupt(run)], (2, 1), ((save_all((2, 3)), (2, 3)),)
    ),
    "rollback, save, retention": Scenario(
        save_all((10,), (12,), (13,)),
        (13, 1),
        (
            (lambda run: checkpoint.discard_checkpoints_after(checkpoints_of(run), 10), (10, 1)),
            (save_all((11, 2)), (11, 2)),
            (prune(1), (11, 2)),
        ),
    ),
}


def try_scenario(name: str, folder: Path, resume_every: int = 1) -> tuple[Counter, int]:
    """Returns the calls of a scenario and the number of states that were tried; raises AssertionError at a bad one.

    resume_every: from one state in `resume_every` a run is resumed: it saves and prunes.
    """
    scenario, root = SCENARIOS[name], folder / "root"
    (root / "runs").mkdir(parents=True)
    if scenario.newest:
        write_text(root / "runs/a/tokenizer.json", TOKENIZER)
    scenario.before(root / "runs/a")
    recording, values = Recording(root), [scenario.newest]
    with recording.watch():
        write_text(root / "runs/a/tokenizer.json", TOKENIZER)
        for action, newest in scenario.actions:
            action(root / "runs/a")
            recording.mark(str(newest))
            values.append(newest)
    states = 0
    for state in recording.states():
        states += 1
        run, done = state.build(folder / "cut") / "runs/a", len(state.marks)
        newest = load_newest(run)
        assert newest in values[done : done + 2] or newest in _between(values[done : done + 2]), (newest, state)
        if states % resume_every == 0:
            write_text(run / "tokenizer.json", TOKENIZER)
            save(run, 20)
            prune(1)(run)
            assert load_newest(run) == (20, 1), state
    return recording.count_calls(), states


def _between(values: list) -> list:
    """Returns the checkpoints that a rollback deletes one by one, newest first."""
    return [(12, 1)] if values == [(13, 1), (10, 1)] else []


@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_power_cut_at_any_call_the_newest_complete_checkpoint_loads(name, folder):
    calls, states = try_scenario(name, folder, resume_every=5)
    assert calls["flush"] >= 3 and states > calls.total()


# ---- the record ----------------------------------------------------------------------------------


def run_stage(run: Path, recording: Recording) -> None:
    """Does what a stage does to its directory: notices, metrics, a save, an interruption with a rewind, the end."""
    make_directory(run / "pretrain/checkpoints")
    write_text(run / "recipe.toml", 'name = "a"\n')
    write_json(run / "plan.json", {"parameters": {"total": 9}})
    write_text(run / "tokenizer.json", TOKENIZER)
    with Recorder(run / "pretrain", "pretrain", 3, quiet=True) as recorder:
        recorder.log_notice("begins")
        for step in (1, 2, 3):
            recorder.log_metrics(step, loss=float(step), version=1)
            if step == 2:
                recorder.flush()
                save(run, 2)
                recording.mark("saved 2")
        recorder.rewind(2)  # step 3 is repeated, with another loss
        recorder.log_metrics(3, loss=30.0, version=2)
        recorder.flush()
        save(run, 3, 2)
        recording.mark("saved 3")
        prune(1)(run)
        recorder.mark_done()
    recording.mark("done")


def check_stage(run: Path, marks: tuple[str, ...]) -> None:
    """Checks that no file is torn, and that the record is as long as the checkpoint that it belongs to."""
    for name, content in (("recipe.toml", 'name = "a"\n'), ("tokenizer.json", TOKENIZER)):
        assert not (run / name).exists() or (run / name).read_text() == content, name
    newest = load_newest(run)
    assert newest in {"": (None, (2, 1)), "saved 2": ((2, 1), (3, 2))}.get(marks[-1] if marks else "", ((3, 2),))
    lines = {line["step"]: line for line in read_jsonl(run / "pretrain/metrics.jsonl")}
    for step in range(1, newest[0] + 1 if newest else 0):
        assert lines[step]["version"] == (newest[1] if step == newest[0] else 1), (
            "a line of the checkpoint's own course"
        )
    done = run / "pretrain/done.json"
    assert not done.exists() or (json.loads(done.read_text())["step"] == 3 and newest == (3, 2))
    assert done.exists() or "done" not in marks


def try_stage(folder: Path) -> tuple[Counter, int]:
    """Returns the calls of a stage's record and the number of states that were tried."""
    (folder / "root/runs").mkdir(parents=True)
    recording = Recording(folder / "root")
    with recording.watch():
        run_stage(folder / "root/runs/a", recording)
    states = 0
    for state in recording.states():
        check_stage(state.build(folder / "cut") / "runs/a", state.marks)
        states += 1
    return recording.count_calls(), states


def test_after_a_power_cut_the_record_reaches_as_far_as_the_checkpoint(folder):
    calls, states = try_stage(folder)
    assert calls["flush"] > 10 and states > calls.total()


def test_a_stage_that_is_restarted_is_there_or_not_but_never_in_part(folder):
    run = folder / "root/runs/a"
    make_directory(run)
    write_text(run / "tokenizer.json", TOKENIZER)
    save_all((1,), (2,))(run)
    recording = Recording(folder / "root")
    with recording.watch():
        remove_directory(run / "pretrain")
        recording.mark("removed")
    for state in recording.states():
        assert load_newest(state.build(folder / "cut") / "runs/a") == (None if state.marks else (2, 1)) or (
            not state.marks and not (folder / "cut/runs/a/pretrain").exists()
        )


# ---- the shim ------------------------------------------------------------------------------------


def record(folder: Path, *actions: Callable[[Path], object]) -> Recording:
    """Records actions on an empty directory and marks each."""
    (folder / "root").mkdir()
    recording = Recording(folder / "root")
    with recording.watch():
        for number, action in enumerate(actions):
            action(folder / "root")
            recording.mark(str(number))
    return recording


def test_bytes_that_were_not_flushed_may_be_lost_cut_or_zero(folder):
    recording = record(folder, lambda root: (root / "a").write_bytes(b"abcd"))
    trees = {state.tree for state in recording.states() if state.marks}
    assert trees == {(), *(((("a", content),)) for content in (b"", b"ab", b"abcd", b"\0\0\0\0"))}


def test_what_was_flushed_is_safe_and_a_name_only_with_its_directory(folder):
    def write(root: Path) -> None:
        with open(root / "a", "wb") as file:
            file.write(b"ab")
            file.flush()
            os.fsync(file.fileno())

    recording = record(folder, write, lambda root: fsync_path(root))
    trees = [{state.tree for state in recording.states() if len(state.marks) == marks} for marks in (1, 2)]
    assert trees == [{(), (("a", b"ab"),)}, {(("a", b"ab"),)}]


def test_a_rename_is_atomic_and_two_may_survive_in_any_order(folder):
    (folder / "root").mkdir()
    for name in "ab":
        (folder / "root" / name).write_bytes(name.encode())
    recording = Recording(folder / "root")
    with recording.watch():
        os.replace(folder / "root/a", folder / "root/c")
        os.rename(folder / "root/b", folder / "root/d")
    names = {"".join(name for name, _ in state.tree) for state in recording.states()}
    assert names == {"ab", "bc", "ad", "cd"}


def test_a_deletion_that_was_not_flushed_may_come_back(folder):
    (folder / "root/a").mkdir(parents=True)
    (folder / "root/a/b").write_bytes(b"b")
    recording = Recording(folder / "root")
    with recording.watch():
        shutil.rmtree(folder / "root/a")
    trees = {state.tree for state in recording.states()}
    assert trees == {(("a", None), ("a/b", b"b")), (("a", None),), ()}


def test_writes_of_an_extension_are_recorded(folder):
    from safetensors.torch import save_file

    recording = record(folder, lambda root: save_file({"w": torch.zeros(2)}, root / "w.safetensors"))
    assert [call.kind for call in recording.calls] == ["create", "write"]
    assert isinstance(recording.calls[1], Call) and len(recording.calls[1].content) > 8
