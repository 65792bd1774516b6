"""Checkpoints: directories of safetensors and JSON that are complete or absent.

    step-00000100/model.safetensors  optimizer.safetensors  state.json  tokenizer.json  manifest.json

`atomic_directory.py` writes them: the manifest with size and SHA-256 of every file last, then one rename. A kill or a
power cut at any moment leaves the previous checkpoint as it was, and a changed bit is found before the checkpoint is
used. The newest is the one with the highest step: a run that goes back to an earlier step first deletes the later ones
(`discard_checkpoints_after`). Only safetensors and JSON are written or read, never a pickle. Tensors and state are not
interpreted: `fledgling.infer.runner` builds a model from them, `fledgling.train.saver` copies them for the thread of
writer.py. Of this package only this file, tensor_file.py and rng_state.py import torch.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fledgling.config import STAGES, UserError
from fledgling.record.atomic_directory import (
    MANIFEST,
    atomic_directory,
    describe_files,
    find_corruption,
    write_manifest,
)
from fledgling.record.durable import remove_directory
from fledgling.record.jsonl import make_write_error
from fledgling.record.stage_aside import describe_stages_aside, find_stages_aside
from fledgling.record.stage_end import describe_other_end
from fledgling.record.tensor_file import write_tensor_file
from fledgling.record.tensor_names import translate_tensor_name

CHECKPOINT_FORMAT = "fledgling checkpoint 1"
MAX_STATE_BYTES = 256 * 2**20  # a longer JSON file is not from this program
BASES_DIR = "bases"  # in the run directory: checkpoints of stages restarted since, which adapters belong to
_STEP = re.compile(r"step-(\d{8,})(\.old)?")
_ANY_FORMAT = re.compile(r"fledgling checkpoint [0-9]{1,6}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class UnreadableCheckpoint(UserError):
    """A checkpoint that may be whole: one of another version's format, or whose files cannot be read at the moment.

    It is never skipped for an older one, as a corrupt one is.
    """


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory. tensors: {group: {name: tensor}} on the CPU; state: what state.json holds."""

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


# ---- writing -------------------------------------------------------------------------------------


def save_checkpoint(
    directory: Path | str,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    files: Mapping[str, Path | str] | None = None,
) -> Path:
    """Writes directory/step-XXXXXXXX in one rename and returns its path. Saving a step again replaces it.

    Args:
        tensors: one safetensors file a group, e.g. {"model": {...}, "optimizer": {...}}.
        state: what JSON holds without loss (no tuples, string keys).
        files: copied under the given names, e.g. {"tokenizer.json": path}.

    Raises: UserError when the disk is full, with the bytes needed and free; the directory is then as it was before.
    """
    directory, files = Path(directory), {name: Path(path) for name, path in (files or {}).items()}
    assert all(_NAME.fullmatch(name) for name in (*tensors, *files)), "names of groups and files are plain names"
    final = directory / f"step-{step:08d}"
    backup = final.with_name(f"{final.name}.old")
    state_json = (json.dumps(dict(state), indent=1) + "\n").encode()
    bytes_needed = len(state_json) + sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    try:
        bytes_needed += sum(Path(path).stat().st_size for path in files.values())
        if backup.exists() and inspect_checkpoint(final)["corrupt"]:
            # A cut left the backup as the only complete one: it stays until the new one is there.
            remove_directory(final)
        with atomic_directory(final, backup=backup) as temporary:
            if shutil.disk_usage(directory).free < bytes_needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for name, group in tensors.items():
                _write_group(temporary / f"{name}.safetensors", group)
            (temporary / "state.json").write_bytes(state_json)
            for name, path in files.items():
                shutil.copyfile(path, temporary / name)
            manifest = {"format": CHECKPOINT_FORMAT, "files": describe_files(temporary)}
            write_manifest(temporary, json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise make_write_error(final, error, bytes_needed) from None
    return final


def _write_group(path: Path, group: Mapping[str, Tensor]) -> None:
    """Writes one group; tensors that share memory (tied weights) are stored once each."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in group.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        write_tensor_file(path, stored)
    except SafetensorError as error:  # the library reports a failed write as text
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None


# ---- checking and reading ------------------------------------------------------------------------


def verify_checkpoint(path: Path | str, check_hashes: bool = True) -> dict[str, dict]:
    """Compares a checkpoint with its manifest and returns {file name: {"bytes", "sha256"}}.

    check_hashes=False compares sizes only. Raises UserError that names the first corrupt file, UnreadableCheckpoint
    where it cannot find out.
    """
    path = Path(path)
    try:
        files = _read_manifest(path)
        for name, expected in files.items():
            corruption = find_corruption(path / name, expected, check_hashes)
            if corruption:
                raise UserError(f"checkpoint {path} is corrupt: {name} {corruption}; use another one")
    except OSError as error:
        raise _make_read_error(error.filename or path, error) from None
    return files


def inspect_checkpoint(path: Path | str) -> dict[str, Any]:
    """Returns {"path", "step", "bytes", "files": {file name: what is wrong, or ""}, "valid", "corrupt"}.

    One that is neither cannot be read at the moment. Where its manifest is the problem, it is the only file listed.
    """
    path = Path(path)
    match = _STEP.fullmatch(path.name)
    report: dict[str, Any] = {"path": str(path), "step": int(match[1]) if match else None, "bytes": 0, "files": {}}
    try:
        files = _read_manifest(path)
    except UserError as error:
        corrupt = not isinstance(error, UnreadableCheckpoint)
        return report | {"valid": False, "corrupt": corrupt, "files": {MANIFEST: str(error)}}
    report["corrupt"] = False
    for name, expected in files.items():
        try:
            report["files"][name] = find_corruption(path / name, expected, True)
            report["corrupt"] |= bool(report["files"][name])
        except OSError as error:
            report["files"][name] = f"cannot be read ({error.strerror})"
    report["bytes"] = sum(expected["bytes"] for expected in files.values())
    return report | {"valid": not any(report["files"].values())}


def list_checkpoints(path: Path | str) -> list[Path]:
    """Returns all checkpoints of a checkpoint, stage or run directory, corrupt ones too: by stage, oldest first.

    Raises UserError when there is none.
    """
    path = Path(path)
    if not path.is_dir() or (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        return [resolve_checkpoint(path)]
    directories = [path, path / "checkpoints", *(path / stage / "checkpoints" for stage in STAGES)]
    checkpoints = [step for directory in directories for step in reversed(list(_step_directories(directory)))]
    checkpoints += sorted((path / BASES_DIR).glob("*/step-*"))
    for aside in find_stages_aside(path).values():
        checkpoints += sorted(aside.glob("checkpoints/step-*"))
    return checkpoints or [resolve_checkpoint(path)]


def _read_manifest(path: Path) -> dict[str, dict]:
    if not path.is_dir():
        state = "is a file" if path.exists() else "does not exist"
        raise UserError(f"checkpoint {path} {state}; expected a directory with a {MANIFEST}, such as step-00000100")
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} has no {MANIFEST}, so it is not a complete checkpoint; use another step-* directory")
    manifest = _read_json(path / MANIFEST)
    files, written = manifest.get("files"), manifest.get("format")
    if isinstance(written, str) and written != CHECKPOINT_FORMAT and _ANY_FORMAT.fullmatch(written):
        raise UnreadableCheckpoint(
            f"checkpoint {path} has the format {written!r} of another version ({MANIFEST}), and this one reads "
            f"{CHECKPOINT_FORMAT!r}: use the version that wrote it"
        )
    if (
        set(manifest) != {"format", "files"}
        or written != CHECKPOINT_FORMAT
        or not isinstance(files, dict)
        or "state.json" not in files
        or not all(_is_manifest_entry(name, entry) for name, entry in files.items())
    ):
        raise UserError(f"checkpoint {path}: {MANIFEST} is corrupt or of another format than {CHECKPOINT_FORMAT!r}")
    return files


def _is_manifest_entry(name: str, entry: Any) -> bool:
    """Returns whether a manifest entry is a plain file name with a size and a hash, and nothing else."""
    return (
        _NAME.fullmatch(name) is not None
        and isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and isinstance(entry["sha256"], str)
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise UserError(f"{path} is larger than {MAX_STATE_BYTES} bytes; it is not a checkpoint's file")
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        reason = type(error).__name__
        raise UserError(f"cannot read {path} ({reason}): it is corrupt or not a checkpoint's file") from None
    except OSError as error:
        raise _make_read_error(path, error) from None
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: expected a JSON object, got a {type(value).__name__}")
    return value


def _make_read_error(path: Path | str, error: OSError) -> UnreadableCheckpoint:
    """Returns the error for a file that is there and cannot be read, for a permission or a disk that fails."""
    return UnreadableCheckpoint(
        f"cannot read {path} ({error.strerror}): it may be whole; try again once it can be read"
    )


def load_checkpoint(path: Path | str, groups: tuple[str, ...] | None = None, check_hashes: bool = True) -> Checkpoint:
    """Verifies and reads a checkpoint. groups=None reads every group, ("model",) only the weights.

    Raises UserError that names the file which is missing, torn, changed or not of a checkpoint.
    """
    path = Path(path)
    names = verify_checkpoint(path, check_hashes)
    stored = [name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors")]
    absent = [name for name in groups or () if name not in stored]
    if absent:
        raise UserError(f"checkpoint {path} has no {absent[0]}.safetensors; it has {', '.join(stored) or 'no tensors'}")
    tensors = {name: _read_group(path / f"{name}.safetensors") for name in groups or stored}
    return Checkpoint(path, tensors, _read_json(path / "state.json"))


def read_checkpoint_state(path: Path | str) -> dict[str, Any]:
    """Returns the state of a checkpoint after comparing the sizes of its files with the manifest."""
    verify_checkpoint(path, check_hashes=False)
    return _read_json(Path(path) / "state.json")


def _read_group(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read {path}: not a safetensors file ({reason[:120]})") from None
    return {translate_tensor_name(name): tensor for name, tensor in tensors.items()}


# ---- choosing a checkpoint -----------------------------------------------------------------------


def _step_directories(directory: Path) -> Iterator[Path]:
    """Yields the subdirectories that have a checkpoint's name, newest first."""
    if not directory.is_dir():
        return
    matches = [(_STEP.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir()]
    steps = [(int(match[1]), match[2] is None, path) for match, path in matches if match]
    yield from (path for *_, path in sorted(steps, reverse=True))


def find_latest_checkpoint(
    directory: Path | str,
    check_hashes: bool = True,
    warn: Callable[[str], None] = warnings.warn,
    accept: Callable[[dict[str, Any]], bool] = lambda state: True,
) -> Path | None:
    """Returns the newest valid checkpoint of RUN/<stage>/checkpoints, or None. Raises UnreadableCheckpoint.

    Args:
        warn: receives one line for each newer checkpoint that is skipped because it is torn or corrupt.
        accept: decides by its state whether a valid checkpoint is considered.
    """
    for path in _step_directories(Path(directory)):
        try:
            verify_checkpoint(path, check_hashes)
            if accept(_read_json(path / "state.json")):
                return path
        except UnreadableCheckpoint:
            raise
        except UserError as error:
            warn(f"skipped: {error}")
    return None


def discard_checkpoints_after(
    directory: Path | str, step: int, remove: Callable[[Path], None] = remove_directory
) -> None:
    """Deletes by `remove` every checkpoint of a later step, for a run that continues from `step` in another way.

    When it returns, not even a power cut brings one back. It deletes the newest first: until the last is gone, the
    newest left is one of the old course.
    """
    for path in _step_directories(Path(directory)):
        match = _STEP.fullmatch(path.name)
        if match and int(match[1]) > step:
            remove(path)


def prune_checkpoints(
    directory: Path | str, keep: int, remove: Callable[[Path], None] = remove_directory
) -> list[Path]:
    """Keeps the newest `keep` valid checkpoints (at least one) and returns them, newest first.

    Deletes by `remove` everything older, and what killed saves left. The newest is verified by its hashes, so that a
    corrupt one never costs the last valid one. When none is valid, nothing is deleted.
    """
    directory = Path(directory)
    kept: list[Path] = []
    older: list[Path] = []
    for path in _step_directories(directory):
        if len(kept) >= max(keep, 1):
            older.append(path)
            continue
        with contextlib.suppress(UserError):
            verify_checkpoint(path, check_hashes=not kept)
            kept.append(path)
    for path in older:
        remove(path)
    if directory.is_dir():
        for path in directory.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
    return kept


def resolve_checkpoint(path: Path | str) -> Path:
    """Returns the checkpoint directory that a checkpoint, stage or run directory refers to.

    A stage refers to its newest valid checkpoint; a run to that of its last finished stage, in the order of STAGES.
    Raises UserError that names what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a checkpoint, a stage or a run directory")
    if not path.is_dir():
        raise UserError(f"{path} is a file; expected a checkpoint, a stage or a run directory (no pickle is ever read)")
    if (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        return path
    aside = describe_stages_aside(path.parent, [path.name]) if path.name in STAGES else []
    for directory in (path, path / "checkpoints"):
        if next(_step_directories(directory), None) is not None:
            return _require_latest(directory, aside)
    started = [stage for stage in STAGES if (path / stage).is_dir()]
    finished = [stage for stage in started if (path / stage / "done.json").is_file()]
    aside += describe_stages_aside(path, STAGES[STAGES.index(finished[-1]) + 1 :] if finished else STAGES)
    if finished:
        return _require_latest(path / finished[-1] / "checkpoints", aside)
    if aside:
        raise UserError(f"no checkpoint in {path}: {aside[-1]}")
    if started:
        stage_dir = path / started[-1]
        raise UserError(
            f"no stage of {path} has finished: looked for done.json; {stage_dir} may hold a checkpoint so far"
        )
    candidates = ", ".join((MANIFEST, "step-*", "checkpoints/step-*", *STAGES[::-1]))
    raise UserError(f"no checkpoint in {path}: looked for {candidates}")


def _require_latest(directory: Path, aside: Sequence[str] = ()) -> Path:
    """Returns the newest valid checkpoint; warns of others that a reader may expect, and with the lines `aside`."""
    warned = list(aside)
    latest = find_latest_checkpoint(directory, check_hashes=False, warn=warned.append)
    if latest is None:
        raise UserError(
            warned[0].removeprefix("skipped: ") if warned else f"no checkpoint in {directory}: looked for step-*"
        )
    if not warned and (other := describe_other_end(directory.parent, int(latest.name[5:].removesuffix(".old")))):
        warned = [other]
    for text in warned:
        warnings.warn(f"{text}; {latest} is used", stacklevel=3)
    return latest
