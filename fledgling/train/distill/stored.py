"""A teacher's most probable tokens, stored before the first step in shards next to the tokens, in RUN/data.

A row is found by a hash of its tokens and targets, so its predictions serve whatever step, rank or micro-batch reads
it, and a text that has changed finds none. Shards are written as whole directories, each as soon as it is full: storing
that is interrupted is resumed after the last one. The directory's name is a digest of the teacher, of the dtype of its
products, of K and of the temperature.

    rows.npy       (N,) uint64: hashes of the rows
    offsets.npy    (N + 1,) int64: the targets of row i are offsets[i] to offsets[i + 1] - 1
    ids.bin        (targets, K) uint16 or uint32: the most probable tokens
    logprobs.bin   (targets, K + 1) float16, nats: of these, and of all other tokens together
    manifest.json  what the name is of, sizes and hashes, seconds; the first steps of a stream that are all stored

N rows, K tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledgling.config import UserError
from fledgling.corpora.prepared_data import short_digest
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.data.shards import token_dtype
from fledgling.data.stream import BatchBuilder
from fledgling.model.head_chunk import head_chunk_tokens
from fledgling.model.transformer import Transformer
from fledgling.record.atomic_directory import (
    MANIFEST,
    atomic_directory,
    describe_files,
    find_corruption,
    write_manifest,
)
from fledgling.record.jsonl import format_bytes
from fledgling.runtime.device import name_dtype
from fledgling.runtime.open_files import raise_open_file_limit
from fledgling.train.distill.divergence import top_k_logprobs
from fledgling.train.distill.loss import compute_teacher_hidden

FORMAT = "fledgling-predictions-1"
MAPPED_FILES = 2  # of a shard: ids and log-probabilities
SHARD_VALUES = 1 << 24  # log-probabilities of a shard, about: 64 MiB with their ids
Row = tuple[int, np.ndarray, np.ndarray]  # hash, ids (targets, K), log-probabilities (targets, K + 1)


def hash_rows(batch: Batch) -> np.ndarray:
    """Returns what identifies each row's tokens and targets, (B,) uint64."""
    return np.frombuffer(b"".join(batch.hash_rows()), dtype="<u8")


def describe_stream(builder: BatchBuilder, every: int = 1, first: int = 0) -> str:
    """Returns a digest of the endless sequence of a stage's rows, of which each `every`-th step from `first` counts."""
    order = builder.source_order
    what = [[source.key for source in builder.sources], repr(order), builder.starts, repr(builder.warmup)]
    return short_digest(*what, *([every] if every > 1 else []), *([first] if first else []))


@torch.no_grad()
def predict_rows(teacher: Transformer, batch: Batch, top_k: int, temperature: float) -> list[Row]:
    """Returns the teacher's predictions at the targets of each row."""
    on_device = batch.to(teacher.head.weight.device)
    mask = on_device.targets != IGNORE_INDEX
    hidden = compute_teacher_hidden(teacher, on_device)[mask]  # (targets, C)
    ids, logprobs = [], []
    for rows in hidden.split(head_chunk_tokens(teacher.config.vocab_size, hidden.device.type)):
        logits = teacher.compute_logits(rows) / temperature
        chosen = logits.topk(top_k).indices
        ids.append(chosen.cpu())
        logprobs.append(top_k_logprobs(logits, chosen).cpu())
    ends = np.cumsum(mask.sum(1).cpu().numpy())[:-1]
    columns = (torch.cat(part).numpy() for part in (ids, logprobs))
    parts = (np.split(column, ends) for column in columns)
    return [(int(key), *row) for key, *row in zip(hash_rows(batch), *parts, strict=True)]


@dataclass(frozen=True)
class Shard:
    """A finished shard, its files mapped."""

    rows: np.ndarray  # (N,) uint64
    offsets: np.ndarray  # (N + 1,) int64
    ids: np.ndarray  # (targets, K)
    logprobs: np.ndarray  # (targets, K + 1) float16


class PredictionStore:
    """The shards of one teacher under one directory."""

    def __init__(
        self, data_dir: Path, identity: str, dtype: torch.dtype, top_k: int, temperature: float, vocab_size: int
    ) -> None:
        """Opens the shards that are there.

        Args:
            data_dir: RUN/data.
            identity: of the teacher.
            dtype: of its products: another one rounds its predictions otherwise.
            vocab_size: of the teacher and the model.

        Raises:
            UserError: a shard is corrupt.
        """
        made_by = {"teacher": identity, "dtype": name_dtype(dtype)}
        self.facts = {"format": FORMAT, **made_by, "top_k": top_k, "temperature": temperature}
        self.directory = data_dir / f"teacher-{short_digest(*self.facts.values())}"
        self.top_k, self.temperature, self.dtype = top_k, temperature, token_dtype(vocab_size)
        self.shards: list[Shard] = []
        self.finished_steps: dict[str, int] = {}  # of each stream: the first steps whose rows are all stored
        paths = sorted(self.directory.glob("shard-*"))
        raise_open_file_limit(MAPPED_FILES * len(paths), f"{len(paths):,} shards of a teacher's predictions")
        for path in paths:
            self._open(path)
        self._build_index()

    def _open(self, path: Path) -> None:
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            corruptions = {name: find_corruption(path / name, entry, True) for name, entry in manifest["files"].items()}
            if {name: manifest[name] for name in self.facts} != self.facts:
                raise ValueError("it is of another teacher")
            if corruption := next((f"{name} {text}" for name, text in corruptions.items() if text), None):
                raise ValueError(corruption)
            steps = {str(stream): int(count) for stream, count in manifest["steps"].items()}
            rows, offsets = (np.load(path / f"{name}.npy", allow_pickle=False) for name in ("rows", "offsets"))
            shapes = ("ids", self.dtype, self.top_k), ("logprobs", np.dtype("<f2"), self.top_k + 1)
            ids, logprobs = (
                np.memmap(path / f"{name}.bin", dtype, "r", shape=(int(offsets[-1]), width))
                if offsets[-1]
                else np.empty((0, width), dtype)
                for name, dtype, width in shapes
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{path} is corrupt: {reason}; delete it, and its predictions are recomputed") from None
        self.shards.append(Shard(rows, offsets, ids, logprobs))
        for stream, count in steps.items():
            self.finished_steps[stream] = max(count, self.finished_steps.get(stream, 0))

    def _build_index(self) -> None:
        keys = np.concatenate([np.empty(0, "<u8"), *(shard.rows for shard in self.shards)])
        places = [(s, row) for s, shard in enumerate(self.shards) for row in range(len(shard.rows))]
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], np.array(places, dtype=np.int64).reshape(-1, 2)[order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the place of each row, (B, 2): shard and row in it; -1 where it is not stored."""
        if not len(self._keys):
            return np.full((len(keys), 2), -1)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where((self._keys[at] == keys)[:, None], self._places[at], -1)

    # ---- storing -----------------------------------------------------------------------------------

    def store_steps(
        self,
        builder: BatchBuilder,
        steps: range,
        load_teacher: Callable[[], Transformer],
        log: Callable[[str], None],
    ) -> None:
        """Stores the predictions of a stage's rows that are not stored yet.

        Args:
            builder: of the stage's batches.
            steps: whose rows are predicted; of n steps one, if it is that far from one to the next.
            load_teacher: returns the teacher; is called where some predictions are missing.
            log: receives a line about what is stored.
        """
        stream, whole = describe_stream(builder, steps.step, steps.start), replace(builder, rank=0, world_size=1)
        start, first = time.monotonic(), self.finished_steps.get(stream, 0)
        missing = [step for step in steps if step >= first]
        teacher = load_teacher() if missing else None
        pending: dict[int, Row] = {}
        for step in missing:
            assert teacher is not None
            for batch in whole.build_batches(step):
                keys = hash_rows(batch)
                known = self.find(keys)[:, 0] >= 0
                new = {int(key) for row, key in enumerate(keys) if not known[row]} - pending.keys()
                if new:  # the whole batch, because compiled blocks are made for its shape
                    predicted = predict_rows(teacher, batch, self.top_k, self.temperature)
                    pending |= {row[0]: row for row in predicted if row[0] in new}
            is_full = sum(len(row[1]) for row in pending.values()) * (self.top_k + 1) >= SHARD_VALUES
            if is_full or step == missing[-1]:
                self._write(list(pending.values()), {stream: step + 1}, time.monotonic() - start)
                pending, start = {}, time.monotonic()
        size = sum(file.stat().st_size for file in self.directory.rglob("*") if file.is_file())
        rows = sum(len(shard.rows) for shard in self.shards)
        how = f"stored for steps {missing[0] + 1:,} to {steps.stop:,}" if missing else "found again"
        log(f"the teacher's {self.top_k} most probable tokens are {how}: {rows:,} rows, {format_bytes(size)}")

    def _write(self, rows: Sequence[Row], steps: dict[str, int], seconds: float) -> None:
        path = self.directory / f"shard-{len(self.shards):05}"
        offsets = np.cumsum([0, *(len(ids) for _, ids, _ in rows)], dtype=np.int64)
        try:
            with atomic_directory(path) as temporary:
                np.save(temporary / "rows.npy", np.array([key for key, *_ in rows], dtype="<u8"))
                np.save(temporary / "offsets.npy", offsets)
                (temporary / "ids.bin").write_bytes(b"".join(ids.astype(self.dtype).tobytes() for _, ids, _ in rows))
                logprobs = b"".join(values.astype("<f2").tobytes() for *_, values in rows)
                (temporary / "logprobs.bin").write_bytes(logprobs)
                manifest: dict[str, Any] = {**self.facts, "steps": steps, "seconds": seconds}
                manifest["files"] = describe_files(temporary)
                write_manifest(temporary, json.dumps(manifest, indent=2))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}; make space and resume") from None
        raise_open_file_limit(MAPPED_FILES, f"{len(self.shards) + 1:,} shards of a teacher's predictions")
        self._open(path)
        self._build_index()

    # ---- reading -----------------------------------------------------------------------------------

    def add_predictions(self, batch: Batch) -> Batch:
        """Returns a batch with the predictions of its targets. Raises UserError for a row that is not stored."""
        places = self.find(hash_rows(batch))
        mask = batch.targets != IGNORE_INDEX
        ids = torch.zeros(*mask.shape, self.top_k, dtype=torch.int64)
        logprobs = torch.zeros(*mask.shape, self.top_k + 1)
        for row, (shard, place) in enumerate(places.tolist()):
            if shard < 0:
                raise UserError(
                    f"distill.top_k: {self.directory} has no predictions of a row that is read now: text, packing or "
                    "stage changed since they were stored; restart the stage with --resume never"
                )
            stored = self.shards[shard]
            span = slice(int(stored.offsets[place]), int(stored.offsets[place + 1]))
            ids[row, mask[row]] = torch.from_numpy(stored.ids[span].astype(np.int64))
            logprobs[row, mask[row]] = _normalize(stored.logprobs[span])
        return replace(batch, teacher_ids=ids, teacher_logprobs=logprobs)


def _normalize(logprobs: np.ndarray) -> Tensor:
    """Returns stored log-probabilities (targets, K + 1) in fp32, of which each row's probabilities sum to 1 again."""
    return torch.from_numpy(logprobs.astype(np.float32)).log_softmax(-1)
