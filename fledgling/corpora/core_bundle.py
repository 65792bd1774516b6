"""Fetches the CORE bundle from its published address and unpacks it as `eval core` reads it.

The address has no version, so the task files are checked against the hashes of those that the published CORE values
were measured with. A file that differs is reported and kept: its score is comparable to no published value. The hash
of the archive is pinned by the first fetch. `download_file` does the download.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from fledgling.config import UserError
from fledgling.corpora.public_sets import (
    BUNDLE_URL,
    CORE_BUNDLE,
    TIMEOUT,
    DownloadProgress,
    compute_hub_hash,
    download_file,
    read_lock_file,
    write_lock_file,
)
from fledgling.files import resolve_data_root
from fledgling.record.atomic_directory import atomic_directory

BUNDLE_ENTRIES = ("core.yaml", "eval_meta_data.csv", "eval_data")  # of the archive
# SHA-256, shortened, of the task files in mosaicml/llm-foundry at 8c8dd48f. hellaswag.jsonl is not among them.
TASK_FILE_HASHES = {
    "commonsense_reasoning/commonsense_qa": "2771f63f8127c072",
    "commonsense_reasoning/copa": "595dca44dec54c84",
    "commonsense_reasoning/openbook_qa": "adb2e5c7f8db810d",
    "commonsense_reasoning/piqa": "d2870e73aec5154d",
    "language_understanding/bigbench_language_identification": "80c98d8e7ab82135",
    "language_understanding/lambada_openai": "411bfbe5b9054346",
    "language_understanding/winograd_wsc": "746336c27cd2e39a",
    "language_understanding/winogrande": "ea1592526f3bfdd0",
    "reading_comprehension/boolq": "454ff101e614370b",
    "reading_comprehension/coqa": "0c2b8029776a138f",
    "reading_comprehension/squad": "41fe6c43e725c0dc",
    "symbolic_problem_solving/agi_eval_lsat_ar": "9ffd73480b51746c",
    "symbolic_problem_solving/bigbench_cs_algorithms": "8485683a8c7e7e6c",
    "symbolic_problem_solving/bigbench_dyck_languages": "106ba9ac7507c7ab",
    "symbolic_problem_solving/bigbench_operators": "41e2964ad619c49e",
    "symbolic_problem_solving/bigbench_repeat_copy_logic": "8febd2c0080a1568",
    "world_knowledge/arc_challenge": "1ae3aeedf1951d88",
    "world_knowledge/arc_easy": "d2d12e59543acf9a",
    "world_knowledge/bigbench_qa_wikidata": "bb0d22727cb25bef",
    "world_knowledge/jeopardy_all": "187e7f270a440c63",
}


def fetch_core_bundle(
    data_dir: str | Path | None = None, url: str | None = None, progress: DownloadProgress | None = None
) -> tuple[Path, list[str]]:
    """Downloads and unpacks the bundle to DATA/core; returns that folder and the task files that differ.

    A bundle that exists is checked and kept. Raises UserError if the address cannot be reached, if the archive is not
    the one that an earlier fetch pinned, or if it has no bundle.
    """
    root = resolve_data_root(data_dir)
    folder = root / CORE_BUNDLE.name
    if not (folder / "core.yaml").is_file():
        lock = read_lock_file(root)
        archive, url = root / "eval_bundle.zip", url or BUNDLE_URL
        pinned = lock.get(CORE_BUNDLE.name, {}).get("revision", "")
        download_file(url, archive, {"path": archive.name, "size": _content_length(url), "hash": pinned}, progress)
        lock[CORE_BUNDLE.name] = {"repository": url, "revision": compute_hub_hash(archive, "sha256"), "files": {}}
        unpack_bundle(archive, folder)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = {"size": path.stat().st_size, "hash": compute_hub_hash(path, "sha256")}
                lock[CORE_BUNDLE.name]["files"][path.relative_to(folder).as_posix()] = entry
        write_lock_file(root, lock)
        archive.unlink()
    return folder, find_changed_files(folder)


def find_changed_files(folder: Path) -> list[str]:
    """Returns the task files that are missing or differ from the published ones, as paths in `folder`/eval_data."""
    changed = []
    for name, expected in TASK_FILE_HASHES.items():
        path = folder / "eval_data" / f"{name}.jsonl"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest()[: len(expected)] != expected:
            changed.append(f"{name}.jsonl")
    return changed


def unpack_bundle(archive: Path, folder: Path) -> None:
    """Unpacks the bundle's entries of a zip archive to `folder`, which appears complete, in one rename.

    The archive's top directory is dropped, and files that are not in `BUNDLE_ENTRIES` are ignored. Raises UserError for
    an archive that is corrupt or has no core.yaml, and if `folder` cannot be written.
    """
    try:
        with atomic_directory(folder, replace=False) as temporary, zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                parts = PurePosixPath(member.filename).parts
                if member.is_dir() or len(parts) < 2 or parts[1] not in BUNDLE_ENTRIES or ".." in parts:
                    continue
                target = temporary.joinpath(*parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            if not (temporary / "core.yaml").is_file():
                raise UserError(f"{archive}: has no eval_bundle/core.yaml; delete it and fetch again")
    except zipfile.BadZipFile:
        raise UserError(f"{archive}: is corrupt, or no archive; delete it and fetch again") from None
    except OSError as problem:
        raise UserError(f"{folder}: cannot be written ({problem.strerror}); free space or use --data-dir") from None


def _content_length(url: str) -> int:
    """Returns the size in bytes of the file at `url`, from a HEAD request. Raises UserError without an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError) as problem:
        reason = " ".join(str(getattr(problem, "reason", problem)).split())[:120]
        raise UserError(
            f"core: cannot reach {url} ({reason}); check the network, or unpack eval_bundle.zip into DATA/core yourself"
        ) from None
