"""A run's record, manifests and own files by their seals, and what no seal has. Start with `check_seals`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from fledgling.record.atomic_directory import MANIFEST
from fledgling.record.parent import read_newest_state
from fledgling.record.recorder import JSONL_NAMES
from fledgling.record.seal import (
    DONE,
    FORECAST,
    SEAL,
    SPENT,
    find_changed_lines,
    hash_lines,
    hash_run_files,
    hash_sealed_files,
    read_seal,
)
from fledgling.record.stage_aside import name_replaced
from fledgling.verify.check import Check
from fledgling.verify.files import Step, list_stage_checkpoints, list_stages


def check_seals(run_dir: Path, show: Step, outdated: Mapping[str, str] = MappingProxyType({})) -> Check:
    """Compares the record's lines, the manifests, the tokenizer and done.json with the seal of each stage.

    outdated: stages that an earlier one was trained after, with that one, whose tokenizer the run may have.
    """
    check = Check("record and manifests", "lines and files")
    gone: dict[str, list[str]] = {}  # file -> the stages whose seals have it
    for stage in list_stages(run_dir):
        show(f"{stage}/{SEAL}")
        stage_dir, seal = run_dir / stage, read_seal(run_dir / stage)
        if seal is None:
            exists = (stage_dir / SEAL).exists()
            text = f"{stage}/{SEAL} " + ("is corrupt" if exists else "is missing")
            (check.problems if exists or _has_data_digests(stage_dir) else check.notes).append(text)
            continue
        for name in JSONL_NAMES:
            sealed = seal["lines"].get(name, [])
            problems, added = find_changed_lines(sealed, hash_lines(stage_dir / f"{name}.jsonl"))
            check.checked += len(sealed)
            check.problems += [f"{stage}/{name}.jsonl: {problem}" for problem in problems]
            what = "1 line was" if added == 1 else f"{added} lines were"
            if added and name == "metrics" and (stage_dir / DONE).exists():
                check.problems.append(f"{stage}/{name}.jsonl: {what} added after the stage's end")
            elif added:
                by = ", as `fledgling eval` does: no seal has their values" if name == "evals" else ""
                check.notes.append(f"{stage}/{name}.jsonl: {what} added after the seal{by}")
            stray = _find_stray_bytes(stage_dir / f"{name}.jsonl")
            is_whole = name == "metrics" and (stage_dir / DONE).exists()  # a killed command tears a line of the others
            (check.problems if is_whole else check.notes).extend(
                f"{stage}/{name}.jsonl: {text}: not as a run writes it" for text in stray
            )
        now = hash_sealed_files(stage_dir)
        for path, digest in seal["files"].items():
            check.checked += 1
            if path not in now and "checkpoints" in path and (run_dir / path).parent.exists():
                continue  # without a manifest, which another check names
            if path not in now and "checkpoints" in path:
                check.notes.append(f"{Path(path).parent} was deleted after the seal")
            elif path not in now:
                gone.setdefault(path, []).append(stage)
            elif now[path] != digest and path.startswith("tokenizer/") and stage in outdated:
                note = f"the tokenizer was replaced after {stage}, when {outdated[stage]} was trained again"
                check.notes += [note] if note not in check.notes else []
            elif now[path] != digest:
                what = "was replaced: " if path.endswith(MANIFEST) else "was changed: "
                check.problems.append(f"{path.removesuffix(f'/{MANIFEST}')} {what}not what the seal of {stage} says")
        problems, notes = _find_unsealed(stage_dir, seal["files"], now)
        check.problems += problems
        check.notes += notes
    check.notes += _list_unsealed_data(run_dir)
    for path, stages in gone.items():
        shared = "" if path.startswith(f"{stages[0]}/") else f", which is in the seal of {', '.join(stages)}"
        (check.notes if path.startswith("data/") else check.problems).append(f"{path} is gone{shared}")
    _check_run_seal(run_dir, check, gone)
    check.total = check.checked
    return check


def _find_stray_bytes(path: Path) -> list[str]:
    """Returns, in words, the blank lines of a record and what follows its last line: neither is read, or has a hash."""
    *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    blank = [str(number) for number, line in enumerate(lines, start=1) if not line.strip()]
    named = ", ".join(blank[:3]) + (f" and {len(blank) - 3:,} more" if len(blank) > 3 else "")
    what = f"line {named} is blank" if len(blank) == 1 else f"lines {named} are blank"
    size = "1 byte" if len(rest) == 1 else f"{len(rest):,} bytes"
    return ([what] if blank else []) + ([f"{size} after its last line"] if rest else [])


def _list_unsealed_data(run_dir: Path) -> list[str]:
    """Returns a line for each directory of tokens that no seal has; none where a seal is missing."""
    seals = [read_seal(run_dir / stage) for stage in list_stages(run_dir)]
    sealed = {path for seal in seals if seal for path in seal["files"]}
    paths = sorted((run_dir / "data").glob(f"*/{MANIFEST}")) if None not in seals else []
    unsealed = [path.parent.name for path in paths if str(path.relative_to(run_dir)) not in sealed]
    return [f"data/{name} is in no seal: no recorded step has read it" for name in unsealed]


def _find_unsealed(stage_dir: Path, sealed: Mapping[str, str], now: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Returns (problems, notes): checkpoints and predictions of a stage that its seal has not.

    A stage that is not done may have been killed between a checkpoint and its seal, or while it was started.
    """
    stage, is_done = stage_dir.name, (stage_dir / DONE).exists()
    problems: list[str] = []
    notes: list[str] = []
    for path in sorted(path for path in now if path.startswith(f"{stage}/") and path not in sealed):
        line = f"{path.removesuffix(f'/{MANIFEST}')} is not in the seal of {stage}"
        may_be_new = path.endswith(MANIFEST) or name_replaced(stage_dir).exists()
        is_honest = may_be_new and not is_done
        (notes if is_honest or path == f"{stage}/{DONE}" else problems).append(line)
    return problems, notes


def _check_run_seal(run_dir: Path, check: Check, named: Collection[str]) -> None:
    """Compares the files of the whole run with RUN/seal.json, which versions that seal predictions write.

    named: files that are gone, as the seals of stages have shown.
    """
    seal, now = read_seal(run_dir), hash_run_files(run_dir)
    if seal is None:
        seals = [read_seal(run_dir / stage) for stage in list_stages(run_dir)]
        expected = (run_dir / SEAL).exists() or any(
            "/plan.json" in path for each in seals if each for path in each["files"]
        )
        text = f"{SEAL} of the run is " + ("corrupt" if (run_dir / SEAL).exists() else "missing")
        (check.problems if expected else check.notes).append(text)
        return
    check.checked += len(seal["files"])
    check.problems += [
        f"{path} was changed: not what the seal of the run says" if (run_dir / path).exists() else f"{path} is gone"
        for path, digest in sorted(seal["files"].items())
        if now.get(path) != digest and path not in named
    ]
    added = [path for path in now if path not in seal["files"] and path != SPENT]
    if any(path.startswith("init/") for path in seal["files"]) and not any("/step-" in path for path in seal["files"]):
        added = [path for path in added if "/step-" not in path]  # earlier versions sealed no weights that were given
    check.problems += [f"{path.removesuffix(f'/{MANIFEST}')} is not in the seal of the run" for path in added]
    known = seal.get("stages")  # None: an earlier version's
    foreign = [stage for stage in list_stages(run_dir) if isinstance(known, list) and stage not in known]
    check.problems += [f"{stage} is not in the seal of the run: another run's stage" for stage in foreign]
    if SPENT in now and SPENT not in seal["files"] and _has_sealed_its_end(run_dir):
        check.problems.append(f"{SPENT} says that the run has ended, and is not in the seal of the run")
    elif (run_dir / FORECAST).is_file() and SPENT not in seal["files"]:
        state = "is covered by no seal" if (run_dir / SPENT).exists() else "is missing"
        check.notes.append(f"{SPENT}, the seconds of the run within its budget, {state}: they are not checked")


def _has_sealed_its_end(run_dir: Path) -> bool:
    """Returns whether a stage was trained by a version that seals the end of a budget: all that record dtypes do."""
    histories = [read_newest_state(run_dir, stage).get("history") for stage in list_stages(run_dir)]
    return any(isinstance(each, dict) and "dtypes" in each for entries in histories for each in entries or ())


def list_deleted(run_dir: Path) -> list[str]:
    """Returns what the seals have and the run has no longer, of what may be deleted: prepared data, all checkpoints."""
    stages = list_stages(run_dir)
    sealed = {path for stage in stages if (seal := read_seal(run_dir / stage)) for path in seal["files"]}
    data = sorted({path.split("/")[1] for path in sealed if path.startswith("data/") and not (run_dir / path).exists()})
    had_weights = [stage for stage in stages if any(path.startswith(f"{stage}/checkpoints/") for path in sealed)]
    bare = [f"the checkpoints of {stage}" for stage in had_weights if not list_stage_checkpoints(run_dir, stage)]
    return [f"data/{name}" for name in data] + bare


def _has_data_digests(stage_dir: Path) -> bool:
    """Returns whether the record was written by a version that seals."""
    with open(stage_dir / "metrics.jsonl", "rb") as file:
        return b'"data":' in file.readline()


def compute_root(run_dir: Path) -> str:
    """Returns one SHA-256 over the seals of all stages: the publisher of a run can state it elsewhere."""
    digest = hashlib.sha256()
    for stage in list_stages(run_dir):
        seal = run_dir / stage / SEAL
        digest.update(stage.encode() + b"\0" + (hashlib.sha256(seal.read_bytes()).digest() if seal.is_file() else b""))
    if (run_dir / SEAL).is_file():
        digest.update(hashlib.sha256((run_dir / SEAL).read_bytes()).digest())
    return digest.hexdigest()
