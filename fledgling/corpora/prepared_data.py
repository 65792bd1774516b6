"""The inputs of prepared data, and the search for data that was prepared from the same inputs.

Prepared data is a function of a source's content, of the tokenizer and of settings. `PreparationInputs` has a digest of
each; the directory's name ends in the digest of all three, so that the tokens of an old text are never used for an
edited one. `PreparedData` finds the data with which a resumed stage began, and logs what is prepared again, and why.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fledgling.config import UserError
from fledgling.corpora.embedded import PACKAGES, list_python_files
from fledgling.record.atomic_directory import MANIFEST, find_corruption
from fledgling.record.jsonl import format_bytes

CHANGES = {
    "content": "its text",
    "tokenizer": "the tokenizer",
    "settings": "a setting, the part that is read or this program",
}
MAX_READ_BYTES = 4_000_000_000  # of shards that are found again, up to which all bytes are compared: seconds
MAX_HASHED_BYTES = 300_000_000  # of files that are read as they are, up to which all bytes are compared
SAMPLE_BYTES = 1 << 16  # at the beginning, in the middle and at the end of a file too large to be hashed
DIGEST_LENGTH = 12

Log = Callable[[str], None]


def short_digest(*values: object) -> str:
    """Returns 12 hexadecimal digits that identify some JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:DIGEST_LENGTH]


# ---- digests of sources --------------------------------------------------------------------------


def digest_files(root: Path, files: Iterable[Path], whole: bool) -> str:
    """Returns a digest of files: their names under `root`, and their content.

    With `whole`, all bytes are read. Otherwise size, time in nanoseconds and three samples of each file represent its
    content: a file that is replaced by one of the same size and time is noticed where the samples differ. The digest
    does not depend on where the folder is, so a copied or moved text is found again (with `whole`, whatever its times).
    """
    facts = []
    for file in files:
        name = file.relative_to(root).as_posix() if file != root and file.is_relative_to(root) else file.name
        facts.append((name, digest_file(file) if whole else stamp_file(file)))
    return short_digest(facts)


def digest_read_files(files: Sequence[Path]) -> str:
    """Returns a digest of files that are read as they are; up to MAX_HASHED_BYTES of all their bytes."""
    whole = sum(file.stat().st_size for file in files) <= MAX_HASHED_BYTES
    return digest_files(Path(os.path.commonpath([file.parent for file in files])), files, whole) if files else ""


def digest_file(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def stamp_file(file: Path) -> tuple[int, int, str]:
    """Returns size, modification time in nanoseconds and a digest of three samples, without reading all of a file."""
    with file.open("rb") as handle:
        status = os.fstat(handle.fileno())
        sample = hashlib.sha256()
        for offset in sorted({0, status.st_size // 2, max(0, status.st_size - SAMPLE_BYTES)}):
            handle.seek(offset)
            sample.update(handle.read(SAMPLE_BYTES))
    return status.st_size, status.st_mtime_ns, sample.hexdigest()


@cache  # an installation does not change while it runs
def digest_installed_python() -> str:
    """Returns a digest of what the embedded corpus is read from: versions, and name, size and time of every file."""
    files = [(module, path.stat().st_size, path.stat().st_mtime_ns) for module, path in list_python_files()]
    return short_digest(sys.version, [importlib.metadata.version(name) for name in PACKAGES], files)


@cache
def digest_code(package: Path) -> str:
    """Returns a digest of the source and tables of a package, for text that its code generates."""
    files = sorted(file for file in package.rglob("*") if file.suffix in (".py", ".toml"))
    return digest_files(package, files, whole=True)


# ---- what a directory is made from ---------------------------------------------------------------


@dataclass(frozen=True)
class PreparationInputs:
    """Digests of what prepared data is a function of."""

    content: str
    tokenizer: str
    settings: str

    @property
    def digest(self) -> str:
        """Returns the digest of all three, which ends the directory's name."""
        return short_digest(self.content, self.tokenizer, self.settings)

    def to_json(self) -> dict[str, str]:
        """Returns the digests as JSON values."""
        return {**asdict(self), "digest": self.digest}

    def explain_difference(self, older: Mapping[str, Any]) -> str:
        """Returns what has changed since an older preparation, as the beginning of a sentence."""
        changed = [text for name, text in CHANGES.items() if getattr(self, name) != older.get(name)]
        return f"{' and '.join(changed)} changed" if changed else "another part of it is needed"


@dataclass
class PreparedData:
    """The prepared data of a run: RUN/data, what a resumed stage began with, and what was handed out.

    Args:
        directory: RUN/data.
        log: receives a line for each source.
    """

    directory: Path
    log: Log
    pinned: dict[str, dict[str, Any]] = field(default_factory=dict)  # by source, from a checkpoint of the stage
    used_inputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by source, saved in the next checkpoint
    read_files: dict[str, str] = field(default_factory=dict)  # digests of those that are read as they are, by source

    def get_kept(self, source: str, tokenizer: str) -> dict[str, Any] | None:
        """Returns the facts of what the resumed stage began with if all of it is here, whatever became of its text."""
        pinned = self.pinned.get(source)
        if not pinned or pinned.get("tokenizer") != tokenizer or not self.has_kept(source):
            return None
        return pinned

    def has_kept(self, source: str) -> bool:
        """Returns whether the directories that the resumed stage began with are here."""
        names = self.pinned.get(source, {}).get("directories", [])
        return bool(names) and all((self.directory / name).is_dir() for name in names)

    def find_only(self, source: str) -> dict[str, Any] | None:
        """Returns the facts of what was prepared of a source, as a checkpoint has them; None unless it is of one text.

        A stage that starts may use it where the text is gone. Finds nothing of a corpus of many shards.
        """
        found = self.list_preparations(source)
        return found[0] if len(found) == 1 else None

    def explain_unused(self, source: str, tokenizer: str | None = None) -> str:
        """Returns why the tokens that the run has of a source that is gone are not read, to be added to its error.

        It is "" where there are none. Those of a part of a set say too little in any case.

        tokenizer: of the run; None: it is not known yet.
        """
        found = self.list_preparations(source)
        has = f"; {self.directory} has tokens of it"
        if source in self.pinned:
            return f"; the tokens that this stage began with, {self.pinned[source].get('directories')}, are gone too"
        if len(found) > 1:
            return f"{has} in {len(found)} versions, and which of them a new stage needs is unknown: put the file back"
        if not found:
            return ""
        if tokenizer not in (None, found[0].get("tokenizer")):
            return f"{has}, of another tokenizer than this run's: put the file back"
        return f"{has}, of a part alone, and a stage that starts needs the next one: put the file back"

    def list_preparations(self, source: str) -> list[dict[str, Any]]:
        """Returns the facts of each text, tokenizer and setting of which the run has tokens of a source."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.directory.iterdir()) if self.directory.is_dir() else ():
            facts = read_facts(path)
            inputs = facts.get("inputs")
            if facts.get("source") == source and isinstance(inputs, dict) and "digest" in inputs:
                found.setdefault(inputs["digest"], {**inputs, "directories": []})["directories"].append(path.name)
        return list(found.values())

    def find_tokens(self, source: str) -> dict[str, Any] | None:
        """Returns the facts of the tokens to read where a source is gone.

        They are what a resumed stage began with, and what `find_only` returns for one that starts.
        """
        if source in self.pinned:
            return self.pinned[source] if self.has_kept(source) else None
        return self.find_only(source)

    def get_pinned(self, source: str, inputs: PreparationInputs) -> dict[str, Any] | None:
        """Returns the facts of what the resumed stage began with, or None: a stage reads one text to its end."""
        pinned = self.pinned.get(source)
        if not pinned or pinned.get("tokenizer") != inputs.tokenizer:
            return None
        directories = [self.directory / name for name in pinned["directories"]]
        if missing := [path for path in directories if not path.is_dir()]:
            self.log(
                f"{source}: {missing[0]}, which this stage began with, is gone: it continues with the present text"
            )
            return None
        if pinned["digest"] != inputs.digest:
            self.log(
                f"{source}: {inputs.explain_difference(pinned)} since this stage began; it keeps the text it "
                f"began with, {directories[0]} (--resume never trains on the new one)"
            )
        return pinned

    def require_whole(self, source: str, directories: Iterable[Path]) -> None:
        """Reads shards that are found again; raises UserError for bytes that are not those of its manifest.

        Of shards larger than MAX_READ_BYTES in all only sizes are compared, when they are opened; a line says so.
        """
        manifests = sorted(manifest for directory in directories for manifest in directory.rglob(MANIFEST))
        files = {manifest: json.loads(manifest.read_text(encoding="utf-8"))["files"] for manifest in manifests}
        size = sum(entry["bytes"] for entries in files.values() for entry in entries.values())
        if size > MAX_READ_BYTES:
            self.log(f"{source}: {format_bytes(size)} of tokens, whose sizes alone are compared with their manifests")
            return
        for manifest, entries in files.items():
            for name, entry in entries.items():
                if corruption := find_corruption(manifest.parent / name, entry, check_hashes=True):
                    raise UserError(
                        f"{manifest.parent / name} {corruption}: delete {manifest.parent}, and it is prepared again"
                    )

    def record_used(self, source: str, inputs: Mapping[str, Any], directories: Iterable[Path]) -> None:
        """Records what a stage reads, for its checkpoints."""
        self.used_inputs[source] = {**inputs, "directories": [path.name for path in directories]}

    def record_files(self, source: str, files: Sequence[Path]) -> None:
        """Records files that a stage reads as they are; logs when they changed since the resumed stage began."""
        digest = digest_read_files(files)
        if (older := self.pinned.get(source)) and older["digest"] != digest:
            self.log(f"{source}: its files changed since this stage began; it continues with the present ones")
        self.used_inputs[source] = {"digest": digest, "directories": []}
        self.read_files[source] = digest

    def explain(self, source: str, stem: str, inputs: PreparationInputs) -> None:
        """Logs why a source is prepared, and where earlier preparations are."""
        older = [path for path in self.find(stem) if not path.name.endswith(inputs.digest)]
        if not older:
            return
        newest = max(older, key=lambda path: path.stat().st_mtime)
        why = inputs.explain_difference(read_facts(newest).get("inputs") or {})
        size = sum(file.stat().st_size for path in older for file in path.rglob("*") if file.is_file())
        names = ", ".join(path.name for path in older)
        self.log(
            f"{source}: {why}, so it is prepared again; {format_bytes(size)} of earlier tokens stay in "
            f"{self.directory} for stages that began with them (delete them when none is resumed): {names}"
        )

    def find_earlier(self, source: str) -> list[Path]:
        """Returns the preparations of other content, tokenizers or settings than that of a source handed out."""
        directory = self.directory / self.used_inputs[source]["directories"][0]
        listings = sorted(directory.glob("corpus-*.json"))  # of a large source
        return listings + [path for path in self.find(directory.name.rpartition("-")[0]) if path != directory]

    def find(self, stem: str) -> list[Path]:
        """Returns the finished preparations STEM-DIGEST in order of names."""
        name = re.compile(re.escape(stem) + rf"-[0-9a-f]{{{DIGEST_LENGTH}}}")
        candidates = self.directory.iterdir() if self.directory.is_dir() else []
        return sorted(path for path in candidates if name.fullmatch(path.name) and read_facts(path))


def read_facts(directory: Path, digest: str = "") -> dict[str, Any]:
    """Returns the metadata of a finished shard, or the listing of a finished corpus; {} if it is not finished."""
    for name in (MANIFEST, f"corpus-{digest}.json", "corpus.json"):
        try:
            facts = json.loads((directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return facts.get("metadata", facts) if isinstance(facts, dict) else {}
    return {}
