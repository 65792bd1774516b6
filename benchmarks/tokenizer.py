"""Measures training and encoding of real text, in MB/s on one thread and on all cores, against other libraries.

Every measurement runs in its own process, without the caches, threads and memory of another library. Cold is the first
time that the process encodes the text, warm the second; a library with a cache of pieces is faster warm, and new text
is in between. All libraries encode with the same vocabulary, and whether their ids agree is part of the result.
`fledgling tokenizer eval` compares vocabularies.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import Any

from fledgling.config import UserError
from fledgling.files import resolve_data_root
from fledgling.text.tokenizer import Tokenizer

MEGABYTES = 100
SLOW_MEGABYTES = 20  # for the libraries without a cache of pieces, whose speed does not depend on the amount


def measure_tokenizers(
    data_dir: str | Path | None = None, vocab_size: int = 32768, max_digits: int = 1, megabytes: int = MEGABYTES
) -> dict[str, Any]:
    """Trains on `megabytes` of DATA/pretrain/*.jsonl and encodes them; takes about two minutes on two cores.

    Returns:
        megabytes and documents read, cores, load (average of the minute before), `train`: library -> seconds,
        mb_per_second, peak_mb (memory in addition to the text), `encode`: library -> one_thread and all_cores ->
        cold and warm in MB/s, and `agree`: whether all ids are equal.

    Raises:
        UserError: if there is no text.
    """
    folder = resolve_data_root(data_dir) / "pretrain"
    texts = read_texts(folder, megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    result: dict[str, Any] = {
        "megabytes": round(size, 1),
        "documents": len(texts),
        "vocab_size": vocab_size,
        "digits": max_digits,
        "cores": os.cpu_count() or 1,
        "load": os.getloadavg()[0],
        "train": {},
        "encode": {},
    }
    del texts
    libraries = ["ours", "tokenizers", *(["tiktoken"] if importlib.util.find_spec("tiktoken") else [])]
    with tempfile.TemporaryDirectory() as folder_of_tokenizer:
        job = {"folder": str(folder), "megabytes": megabytes, "vocab_size": vocab_size, "digits": max_digits}
        for trainer in ("auto", "tokenizers"):
            row = _run_in_process({**job, "do": "train", "trainer": trainer, "out": folder_of_tokenizer}, None)
            result["train"].setdefault(row.pop("name"), row)
        hashes = set()
        for library in libraries:
            job["megabytes"] = megabytes if library == "ours" else min(megabytes, SLOW_MEGABYTES)
            speeds = {}
            for name, threads in (("one_thread", 1), ("all_cores", result["cores"])):
                row = _run_in_process({**job, "do": "encode", "library": library, "out": folder_of_tokenizer}, threads)
                hashes.add(row.pop("ids"))
                speeds[name] = {key: row[key] for key in ("cold", "warm")}
            result["encode"][row["name"]] = speeds
    result["agree"] = len(hashes) == 1
    return result


def format_tokenizer_table(result: dict[str, Any]) -> str:
    """Returns the result of `measure_tokenizers` as a table."""
    lines = [
        f"{result['megabytes']:g} MB, {result['documents']:,} documents, {result['vocab_size']:,} entries, "
        f"{result['cores']} cores, load {result['load']:.1f} before",
        f"{'training':<24} {'s':>7} {'MB/s':>7} {'peak MB':>8}",
    ]
    for name, row in result["train"].items():
        lines.append(f"{name:<24} {row['seconds']:7.1f} {row['mb_per_second']:7.0f} {row['peak_mb']:8,.0f}")
    lines.append(f"{'encoding, MB/s':<24} {'1 thread':>15} {'all cores':>15}")
    lines.append(f"{'':<24} {'cold':>7} {'warm':>7} {'cold':>7} {'warm':>7}")
    for name, row in result["encode"].items():
        speeds = [row[threads][state] for threads in ("one_thread", "all_cores") for state in ("cold", "warm")]
        lines.append(f"{name:<24} " + " ".join(f"{speed:7.1f}" for speed in speeds))
    lines.append("ids agree" if result["agree"] else "IDS DO NOT AGREE")
    return "\n".join(lines)


def read_texts(folder: Path, megabytes: int) -> list[str]:
    """Returns up to `megabytes` of documents, in turn from each .jsonl file of `folder`. Raises UserError if none."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UserError(f"no .jsonl files in {folder}; give --data-dir a directory with pretrain/*.jsonl")
    texts: list[str] = []
    left = megabytes * 1_000_000
    handles = [file.open(encoding="utf-8") for file in files]
    try:
        for lines in zip_longest(*handles):
            for line in filter(None, lines):
                texts.append(json.loads(line)["text"])
                left -= len(texts[-1].encode())
                if left <= 0:
                    return texts
    finally:
        for handle in handles:
            handle.close()
    return texts


def _run_in_process(job: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """Runs `job` in a process with `threads` threads, and returns the JSON that it prints."""
    variables = {} if threads is None else {"RAYON_NUM_THREADS": str(threads), "BENCH_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tokenizer", json.dumps(job)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def _train_job(job: dict[str, Any]) -> dict[str, Any]:
    texts = read_texts(Path(job["folder"]), job["megabytes"])
    size = sum(len(text.encode()) for text in texts) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = perf_counter()
    tokenizer = Tokenizer.train(texts, job["vocab_size"], max_digits=job["digits"], trainer=job["trainer"])
    seconds = perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tokenizer.save(job["out"])
    assert tokenizer.training_info
    name = tokenizer.training_info["trainer"]
    return {
        "name": f"ours ({name})" if job["trainer"] == "auto" else name,
        "seconds": round(seconds, 3),
        "mb_per_second": round(size / seconds, 1),
        "peak_mb": round(peak / 1024),
    }


def _encode_job(job: dict[str, Any]) -> dict[str, Any]:
    texts = read_texts(Path(job["folder"]), job["megabytes"])
    size = sum(len(text.encode()) for text in texts) / 1e6
    name, encode = _make_encoder(job["library"], Tokenizer.load(job["out"]))
    encode(["imports the library, without filling its cache"])
    speeds = []
    for _ in range(2):
        start = perf_counter()
        rows = encode(texts)
        speeds.append(round(size / (perf_counter() - start), 1))
    # the first documents are the same for every library
    ids = hashlib.sha256(json.dumps(rows[:100]).encode()).hexdigest()
    return {"name": name, "cold": speeds[0], "warm": speeds[1], "ids": ids}


def _make_encoder(library: str, tokenizer: Tokenizer) -> tuple[str, Callable[[list[str]], list[list[int]]]]:
    """Returns the name of a library, and its function from texts to ids with the vocabulary of `tokenizer`."""
    if library == "ours":
        return f"ours ({tokenizer.batch_library})", tokenizer.encode_batch
    if library == "tokenizers":
        from tokenizers import Tokenizer as Library

        fast = Library.from_str(json.dumps(tokenizer.tokenizer_json))
        return library, lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]
    import tiktoken

    pattern = tokenizer.tokenizer_json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    ranks = {piece: index for index, piece in enumerate(tokenizer.token_bytes) if piece}
    encoding = tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    threads = int(os.environ["BENCH_THREADS"])
    return library, lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(_train_job(job) if job["do"] == "train" else _encode_job(job)))
