"""Token shards: tokenized documents in a flat file, memory-mapped for reading.

A shard is a directory that is complete or absent. It is written under a temporary name; the manifest, with the size
and hash of every file, is written last; then one rename gives the directory its name. A process killed at any moment,
or a full disk, leaves nothing that could be mistaken for data.

    tokens.bin     the tokens of all documents, uint16 (vocabularies up to 65,536) or uint32, little-endian
    offsets.npy    (N + 1,) int64: document i is tokens[offsets[i] : offsets[i + 1]]
    mask.bin       one byte a token, 1 where it is a target of the loss; only for conversations
    manifest.json  counts, sizes, hashes, vocabulary, tokenizer, and the caller's metadata

Plain documents are stored without BOS (the packer adds one to each piece), conversations as rendered, with BOS.

N documents, V vocabulary size.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fledgling.config import UserError
from fledgling.record.atomic_directory import MANIFEST, make_temporary_directory, publish_directory, write_manifest
from fledgling.record.jsonl import format_bytes
from fledgling.runtime.open_files import raise_open_file_limit

FORMAT = "fledgling-tokens-1"
SHARD_FILES = ("tokens.bin", "offsets.npy", "mask.bin", MANIFEST)
REBUILD_HINT = "delete it and prepare the data again"
MAPPED_FILES = 2  # of a shard of documents: tokens and offsets


class BatchTokenizer(Protocol):
    """Encodes texts in batches: what `tokenize_documents` needs of a tokenizer."""

    def encode_batch(self, texts: list[str], /) -> list[list[int]]:
        """Returns the token ids of each text, without BOS."""
        ...


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smaller of the two stored types that can represent every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


# ---- writing -------------------------------------------------------------------------------------


class _HashedFile:
    """A file that computes its size and SHA-256 while it is written."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by finish or discard
        self.hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        self.hash.update(data)
        self.num_bytes += len(data)
        self.file.write(data)

    def finish(self) -> dict[str, int | str]:
        """Closes the file, and returns its manifest entry."""
        self.file.close()
        return {"bytes": self.num_bytes, "sha256": self.hash.hexdigest()}

    def discard(self) -> None:
        """Closes the file; its directory is deleted by the caller."""
        with suppress(OSError):  # closing flushes, which fails again if the disk is full
            self.file.close()


class ShardWriter:
    """Writes one shard, which appears at `directory` when `close()` returns.

    As a context manager it closes at the end of the block, or removes what it wrote if the block raises. Only one
    writer may use a directory at a time.

    Args:
        directory: of the shard. A finished shard there stays readable until `close()` replaces it.
        vocab_size: V; every id must be below it.
        with_mask: whether each document has a mask.
        tokenizer: fingerprint of the tokenizer, compared when the shard is opened.
        metadata: JSON values to store with the data (kind, source, revision, ...).

    Raises:
        UserError: if the directory has files that are not of a shard, or cannot be written, or if the disk is full;
            what was written is removed.
    """

    def __init__(
        self,
        directory: str | Path,
        vocab_size: int,
        with_mask: bool = False,
        *,
        tokenizer: str = "",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.tokenizer = tokenizer
        self.metadata = dict(metadata or {})
        self.offsets = array("q", [0])
        self._temporary: Path | None = None
        self._files: dict[str, _HashedFile] = {}
        _require_shard_directory(self.directory)
        with self._abort_on_error():
            self._temporary = make_temporary_directory(self.directory)
            for name in ("tokens.bin", "mask.bin") if with_mask else ("tokens.bin",):
                self._files[name] = _HashedFile(self._temporary / name)

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Tokens added so far."""
        return self.offsets[-1]

    def add_document(self, tokens: Sequence[int] | np.ndarray, mask: Sequence[bool] | np.ndarray | None = None) -> None:
        """Appends one document: tokens (L,), and mask (L,) bool if the shard has masks. L may be zero."""
        ids = np.asarray(tokens)
        assert ids.ndim == 1, f"tokens of a document are (L,), not {ids.shape}"
        assert (mask is not None) == ("mask.bin" in self._files), "masks need with_mask"
        self._write(ids)
        if mask is not None:
            flags = np.asarray(mask, dtype=np.bool_)
            assert flags.shape == ids.shape, f"mask {flags.shape}, tokens {ids.shape}"
            with self._abort_on_error():
                self._files["mask.bin"].write(flags.astype(np.uint8).tobytes())
        self.offsets.append(self.offsets[-1] + ids.size)

    def add_documents(self, documents: Sequence[Sequence[int]]) -> None:
        """Appends documents without masks in one write, except those without tokens."""
        assert "mask.bin" not in self._files, "documents with masks are added one by one"
        lengths = [len(ids) for ids in documents if len(ids)]
        self._write(np.fromiter(chain.from_iterable(documents), dtype=np.int64, count=sum(lengths)))
        self.offsets.extend(accumulate(lengths, initial=self.offsets.pop()))

    def _write(self, ids: np.ndarray) -> None:
        if ids.size:
            low, high = int(ids.min()), int(ids.max())
            assert low >= 0 and high < self.vocab_size, f"ids {low} to {high}, vocabulary {self.vocab_size}"
        with self._abort_on_error():
            self._files["tokens.bin"].write(ids.astype(self.dtype).tobytes())

    def close(self) -> None:
        """Writes offsets and manifest, flushes everything to the disk, and renames the directory into place."""
        assert self._temporary is not None, "closed or aborted already"
        with self._abort_on_error():
            buffer = io.BytesIO()
            np.save(buffer, np.frombuffer(self.offsets, dtype=np.int64))
            self._files["offsets.npy"] = _HashedFile(self._temporary / "offsets.npy")
            self._files["offsets.npy"].write(buffer.getbuffer())
            manifest = {
                "format": FORMAT,
                "documents": self.documents,
                "tokens": self.tokens,
                "dtype": self.dtype.str,
                "vocab_size": self.vocab_size,
                "tokenizer": self.tokenizer,
                "metadata": self.metadata,
                "files": {name: file.finish() for name, file in self._files.items()},
            }
            write_manifest(self._temporary, json.dumps(manifest, indent=2))
            publish_directory(self._temporary, self.directory)

    def abort(self) -> None:
        """Removes what was written; the directory of the shard stays as it was."""
        for file in self._files.values():
            file.discard()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @contextmanager
    def _abort_on_error(self) -> Iterator[None]:
        """Removes everything written if the block fails, and turns an OSError into a UserError."""
        try:
            yield
        except OSError as error:
            self.abort()
            written = sum(file.num_bytes for file in self._files.values())
            raise _describe_disk_error(error, self.directory, written) from error
        except BaseException:
            self.abort()
            raise


def _require_shard_directory(directory: Path) -> None:
    """Raises UserError if `directory` has other files than a shard's: `close` would delete them."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: expected a directory for tokens; choose another name")
    foreign = sorted(entry.name for entry in directory.iterdir() if entry.name not in SHARD_FILES)
    if foreign:
        raise UserError(f'{directory} holds "{foreign[0]}", which is not part of a shard: choose an empty directory')


def _describe_disk_error(error: OSError, directory: Path, written: int) -> UserError:
    """Returns the UserError for an OSError while `directory` was written."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        reason = error.strerror or str(error)
        return UserError(f"{directory} cannot be written: {reason}; choose another directory")
    parent = directory.parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    return UserError(
        f"{directory}: the disk is full after {format_bytes(written)} of tokens, {format_bytes(free)} free "
        "now; nothing was kept. Free some space or choose another data directory"
    )


def tokenize_documents(
    texts: Iterable[str],
    tokenizer: BatchTokenizer,
    writer: ShardWriter,
    batch: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Encodes texts into `writer`, without BOS.

    Texts without tokens are skipped.

    Args:
        texts: of documents.
        tokenizer: encodes a batch on all cores.
        writer: receives the tokens; the caller closes it.
        batch: texts that are encoded at a time.
        progress: called after each batch with the documents and tokens so far.

    Returns:
        The number of documents written.
    """
    before = writer.documents
    stream = iter(texts)
    while group := list(islice(stream, batch)):
        writer.add_documents(tokenizer.encode_batch(group))
        if progress is not None:
            progress(writer.documents - before, writer.tokens)
    return writer.documents - before


# ---- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenShard:
    """A finished, memory-mapped shard: reading loads only the pages that are used."""

    directory: Path
    tokens: np.ndarray  #         (tokens,) uint16 or uint32
    offsets: np.ndarray  #        (N + 1,) int64
    mask: np.ndarray | None  #    (tokens,) uint8, or None for plain documents
    manifest: dict[str, Any]

    @classmethod
    def open(cls, directory: str | Path, tokenizer: str | None = None) -> TokenShard:
        """Opens a shard after it compares the size of every file with the manifest (hashes: `verify_hashes`).

        Args:
            tokenizer: fingerprint that the tokenizer must have; None accepts any.

        Raises:
            UserError: for a directory that is missing, unfinished or changed, and for another tokenizer.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        for name, entry in manifest["files"].items():
            path = directory / name
            size = path.stat().st_size if path.exists() else None
            if size != entry["bytes"]:
                state = "is missing" if size is None else f"has {size:,} bytes"
                raise UserError(f"{path} {state}, its manifest says {entry['bytes']:,}: {REBUILD_HINT}")
        if tokenizer is not None and manifest["tokenizer"] != tokenizer:
            raise UserError(
                f"{directory} was made with another tokenizer ({manifest['tokenizer'][:12] or 'unnamed'}, "
                f"expected {tokenizer[:12]}): {REBUILD_HINT}"
            )
        has_mask = "mask.bin" in manifest["files"]
        return cls(
            directory,
            _memory_map(directory / "tokens.bin", np.dtype(manifest["dtype"])),
            np.load(directory / "offsets.npy", mmap_mode="r", allow_pickle=False),
            _memory_map(directory / "mask.bin", np.dtype(np.uint8)) if has_mask else None,
            manifest,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, (N,) int64."""
        return np.diff(self.offsets)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that the writer was given."""
        return self.manifest["metadata"]

    def slice_documents(self, first: int, last: int) -> TokenShard:
        """Returns documents first to last - 1 as a shard, over the same mapped files."""
        return replace(self, offsets=self.offsets[first : last + 1])

    def read_tokens(self, document: int, start: int, length: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns a part of a document: tokens (length,), and mask (length,) uint8 or None."""
        first = int(self.offsets[document]) + start
        assert first + length <= self.offsets[document + 1], "a piece may not exceed its document"
        part = slice(first, first + length)
        return self.tokens[part], None if self.mask is None else self.mask[part]

    def verify_hashes(self) -> None:
        """Reads every file and compares its SHA-256. Raises UserError for the first that was changed."""
        for name, entry in self.manifest["files"].items():
            with open(self.directory / name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry["sha256"]:
                raise UserError(
                    f"{self.directory / name} was changed: sha256 {digest[:12]}..., "
                    f"its manifest says {entry['sha256'][:12]}...: {REBUILD_HINT}"
                )


def open_shards(directories: Sequence[Path], tokenizer: str | None = None) -> list[TokenShard]:
    """Opens shards of documents, as `TokenShard.open` does each of them, after it raises the limit of open files.

    Raises UserError as `TokenShard.open` does, and where the hard limit of open files is too low.
    """
    raise_open_file_limit(MAPPED_FILES * len(directories), f"{len(directories):,} shards")
    return [TokenShard.open(directory, tokenizer) for directory in directories]


def _read_manifest(directory: Path) -> dict[str, Any]:
    """Returns the manifest of a finished shard. Raises UserError for a missing or invalid one."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise UserError(f"{directory} does not exist: expected a directory of tokens; prepare the data first")
    if not path.exists():
        raise UserError(f"{directory} has no {MANIFEST}, so it was never finished: {REBUILD_HINT}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        is_known = manifest["format"] == FORMAT
        is_complete = manifest.keys() >= {"dtype", "vocab_size", "tokenizer", "metadata"}
        is_complete &= manifest["files"].keys() >= {"tokens.bin", "offsets.npy"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as the manifest of a shard: {REBUILD_HINT}") from error
    if not (is_known and is_complete):
        raise UserError(f'{path} is not the manifest of a shard of format "{FORMAT}": {REBUILD_HINT}')
    return manifest


def _memory_map(path: Path, dtype: np.dtype) -> np.ndarray:
    """Returns the file as a mapped array; an empty file, which cannot be mapped, as an empty array."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
