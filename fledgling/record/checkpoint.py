"""Checkpoints: directories that are whole or do not exist.

    step-00000100/model.safetensors  optimizer.safetensors  state.json  tokenizer.json  manifest.json

The one idea: everything is written into a temporary neighbour and flushed to the disk, the manifest (size
and SHA-256 of every file) last; then one rename gives it its name. A kill at any instant leaves the
previous checkpoint as it was, and a changed bit is found before it is trained on. Only safetensors and JSON
are written or read, never a pickle. What the tensors and the state mean is the caller's business:
`fledgling.infer.runner` makes a model of them, `fledgling.train.saver` copies them for the thread of writer.py. The one
file of this room that imports torch.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fledgling.config import STAGES, UserError
from fledgling.record.jsonl import fsync_path, make_write_error

CHECKPOINT_FORMAT = "fledgling checkpoint 1"
MANIFEST = "manifest.json"
MAX_STATE_BYTES = 256 * 2**20  # bytes; a state this long is no state of ours
_STEP = re.compile(r"step-(\d{8,})(\.old)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: groups of tensors by name (on the CPU), and the JSON state."""

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
    """Write directory/step-XXXXXXXX and return its path; it appears whole, in one rename.

    tensors: one safetensors file a group, e.g. {"model": {...}, "optimizer": {...}}; state: what JSON holds
    without loss (no tuples, text keys); files: copied under the names given, e.g. {"tokenizer.json": path}.
    Saving a step again replaces it. Raises UserError when the disk is full, with the bytes needed and free;
    what was there before is then untouched and nothing half-written stays.
    """
    directory, files = Path(directory), {name: Path(path) for name, path in (files or {}).items()}
    assert all(_NAME.fullmatch(name) for name in (*tensors, *files)), "names of groups and files are plain names"
    final = directory / f"step-{step:08d}"
    temporary = directory / f".tmp-{final.name}-{os.getpid()}"
    content = (json.dumps(dict(state), indent=1) + "\n").encode()
    needed = len(content) + sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
    try:
        needed += sum(path.stat().st_size for path in files.values())
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        if shutil.disk_usage(directory).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, group in tensors.items():
            _write_group(temporary / f"{name}.safetensors", group)
        (temporary / "state.json").write_bytes(content)
        for name, path in files.items():
            shutil.copyfile(path, temporary / name)
        _seal(temporary)
        _publish(temporary, final)
    except OSError as problem:
        raise make_write_error(final, problem, needed) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _write_group(path: Path, group: Mapping[str, Tensor]) -> None:
    """Write one group; tensors that share memory (tied weights) are stored once each."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in group.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    try:
        save_file(ready, path)
    except SafetensorError as problem:  # the library reports a failed write as text
        code = re.search(r"os error (\d+)", str(problem))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from None


def _seal(directory: Path) -> None:
    """Flush every file to the disk, then write the manifest and flush it and the directory."""
    files = {}
    for path in sorted(directory.iterdir()):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        fsync_path(path)
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps({"format": CHECKPOINT_FORMAT, "files": files}, indent=1) + "\n")
    fsync_path(manifest)
    fsync_path(directory)


def _publish(temporary: Path, final: Path) -> None:
    """Rename; an older directory of that name stays loadable as NAME.old until the new one has its place."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        _remove(old)
        os.replace(final, old)
    os.replace(temporary, final)
    fsync_path(final.parent)
    _remove(old)


def _remove(directory: Path) -> None:
    """Delete a directory: first it loses its name, so that a kill leaves no half of it under that name."""
    if directory.exists():
        doomed = directory.with_name(f".tmp-removed-{directory.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(directory, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- checking and reading ------------------------------------------------------------------------


def verify_checkpoint(path: Path | str, check_hashes: bool = True) -> dict[str, dict]:
    """Check a checkpoint against its manifest, and return {file name: {"bytes", "sha256"}}.

    hashes=False compares sizes only. Raises UserError that names the first bad file.
    """
    path = Path(path)
    files = _read_manifest(path)
    for name, expected in files.items():
        problem = _find_damage(path / name, expected, check_hashes)
        if problem:
            raise UserError(f"checkpoint {path} is damaged: {name} {problem}; use another one")
    return files


def _find_damage(file: Path, expected: dict, hashes: bool) -> str:
    """What is wrong with one file of a checkpoint, after its name; nothing where it is what the manifest says."""
    if file.is_symlink() or not file.is_file():
        return f"of {MANIFEST} is missing or no plain file"
    size = file.stat().st_size
    if size != expected["bytes"]:
        return f"has {size} bytes, {MANIFEST} says {expected['bytes']}"
    if hashes and _sha256(file) != expected["sha256"]:
        return f"does not match its SHA-256 in {MANIFEST}"
    return ""


def inspect_checkpoint(path: Path | str) -> dict[str, Any]:
    """Everything that can be told of a checkpoint: its step, its bytes, and {file name: what is wrong, or ""}.

    A manifest that is missing or damaged is the one bad file; what it would have vouched for is then not known.
    """
    path = Path(path)
    named = _STEP.fullmatch(path.name)
    found: dict[str, Any] = {"path": str(path), "step": int(named[1]) if named else None, "bytes": 0, "files": {}}
    try:
        files = _read_manifest(path)
    except UserError as problem:
        return found | {"whole": False, "files": {MANIFEST: str(problem)}}
    found["files"] = {name: _find_damage(path / name, expected, hashes=True) for name, expected in files.items()}
    found["bytes"] = sum(expected["bytes"] for expected in files.values())
    return found | {"whole": not any(found["files"].values())}


def list_checkpoints(path: Path | str) -> list[Path]:
    """All checkpoints of a checkpoint, a stage or a run directory, whole or not: by stage, oldest first.

    Raises UserError when there is none.
    """
    path = Path(path)
    if not path.is_dir() or (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        return [resolve_checkpoint(path)]
    places = [path, path / "checkpoints", *(path / stage / "checkpoints" for stage in STAGES)]
    found = [one for place in places for one in reversed(list(_step_directories(place)))]
    return found or [resolve_checkpoint(path)]


def _read_manifest(path: Path) -> dict[str, dict]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"checkpoint {path} {what}; expected a directory with a {MANIFEST}, such as step-00000100")
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} has no {MANIFEST}, so it is no whole checkpoint; use one that step-* names")
    manifest = _read_json(path / MANIFEST)
    files = manifest.get("files")
    sound = set(manifest) == {"format", "files"} and manifest["format"] == CHECKPOINT_FORMAT
    if (
        not sound
        or not isinstance(files, dict)
        or "state.json" not in files
        or not all(map(_is_manifest_entry, files.items()))
    ):
        raise UserError(f"checkpoint {path}: {MANIFEST} is damaged or of another format than {CHECKPOINT_FORMAT!r}")
    return files


def _is_manifest_entry(item: tuple[str, Any]) -> bool:
    """Whether one entry of a manifest is a plain file name with a size and a hash, and nothing else."""
    name, value = item
    return (
        _NAME.fullmatch(name) is not None
        and isinstance(value, dict)
        and set(value) == {"bytes", "sha256"}
        and type(value["bytes"]) is int
        and isinstance(value["sha256"], str)
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise UserError(f"{path} is larger than {MAX_STATE_BYTES} bytes; it is not a checkpoint's file")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise UserError(
            f"cannot read {path} ({type(problem).__name__}): it is damaged or no checkpoint's file"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"cannot read {path}: expected a JSON object, got a {type(value).__name__}")
    return value


def load_checkpoint(path: Path | str, groups: tuple[str, ...] | None = None, check_hashes: bool = True) -> Checkpoint:
    """Read a checkpoint after checking it; groups=None reads every group, ("model",) only the weights.

    Raises UserError on anything missing, torn, changed or foreign, naming the file.
    """
    path = Path(path)
    stored = [
        name.removesuffix(".safetensors")
        for name in verify_checkpoint(path, check_hashes)
        if name.endswith(".safetensors")
    ]
    absent = [name for name in groups or () if name not in stored]
    if absent:
        raise UserError(f"checkpoint {path} has no {absent[0]}.safetensors; it has {', '.join(stored) or 'no tensors'}")
    tensors = {name: _read_group(path / f"{name}.safetensors") for name in groups or stored}
    return Checkpoint(path, tensors, _read_json(path / "state.json"))


def read_checkpoint_state(path: Path | str) -> dict[str, Any]:
    """The state alone of a checkpoint whose files have the sizes that its manifest says."""
    verify_checkpoint(path, check_hashes=False)
    return _read_json(Path(path) / "state.json")


def _read_group(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise UserError(f"cannot read {path}: not a safetensors file ({reason[:120]})") from None


# ---- which checkpoint ----------------------------------------------------------------------------


def _step_directories(directory: Path) -> Iterator[Path]:
    """The directories of a checkpoints directory that bear a checkpoint's name, newest first."""
    if not directory.is_dir():
        return
    found = [(_STEP.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir()]
    named = [(int(match[1]), match[2] is None, path) for match, path in found if match]
    yield from (path for *_, path in sorted(named, reverse=True))


def find_latest_checkpoint(
    directory: Path | str, check_hashes: bool = True, warn: Callable[[str], None] = warnings.warn
) -> Path | None:
    """The newest whole checkpoint of RUN/<stage>/checkpoints, or None.

    warn: receives one line for each newer one that was passed over because it is torn or damaged.
    """
    for path in _step_directories(Path(directory)):
        try:
            verify_checkpoint(path, check_hashes)
        except UserError as problem:
            warn(f"passed over: {problem}")
        else:
            return path
    return None


def prune_checkpoints(directory: Path | str, keep: int) -> list[Path]:
    """Keep the newest `keep` whole checkpoints (at least one) and return them, newest first.

    Everything older than those goes, and every leftover of a save that was killed. The newest is checked by
    its hashes, so that a damaged one never costs the last good one; with none whole, nothing is deleted.
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
        _remove(path)
    if directory.is_dir():
        for path in directory.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
    return kept


def resolve_checkpoint(path: Path | str) -> Path:
    """The checkpoint directory meant by a checkpoint, a stage or a run directory.

    A stage means its newest whole checkpoint; a run means that of its last finished stage, in the order rl,
    sft, midtrain, pretrain. Raises UserError that names what was looked for.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a checkpoint, a stage or a run directory")
    if not path.is_dir():
        raise UserError(f"{path} is a file; expected a checkpoint, a stage or a run directory (no pickle is ever read)")
    if (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        return path
    for directory in (path, path / "checkpoints"):
        if next(_step_directories(directory), None) is not None:
            return _require_latest(directory)
    started = [stage for stage in STAGES if (path / stage).is_dir()]
    finished = [stage for stage in started if (path / stage / "done.json").is_file()]
    if finished:
        return _require_latest(path / finished[-1] / "checkpoints")
    if started:
        stage = path / started[-1]
        raise UserError(f"no stage of {path} has finished: looked for done.json; {stage} may hold a checkpoint so far")
    looked = ", ".join((MANIFEST, "step-*", "checkpoints/step-*", *STAGES[::-1]))
    raise UserError(f"no checkpoint in {path}: looked for {looked}")


def _require_latest(directory: Path) -> Path:
    passed: list[str] = []
    found = find_latest_checkpoint(directory, check_hashes=False, warn=passed.append)
    if found is None:
        raise UserError(passed[0] if passed else f"no checkpoint in {directory}: looked for step-*")
    return found


# ---- the random state ----------------------------------------------------------------------------


def get_rng_state(device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """torch's random state as a group of uint8 tensors: "cpu", and "cuda" when `device` is one."""
    group = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        group["cuda"] = torch.cuda.get_rng_state(device)
    return group


def set_rng_state(group: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
    """Set what `random_state` gave. A state of another kind of device is left out: it would not fit."""
    torch.set_rng_state(group["cpu"].cpu())
    if torch.device(device).type == "cuda" and "cuda" in group:
        torch.cuda.set_rng_state(group["cuda"].cpu(), device)
