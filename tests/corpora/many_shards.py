"""Measures the memory that a corpus of hundreds of shards takes while batches are read.

    python -m tests.corpora.many_shards FOLDER [--shards 300] [--documents 50000] [--tokens 20000000] [--steps 200]

The shards are artificial: real offsets, and tokens in sparse files that take no disk space.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from fledgling.corpora.tokenization import CORPUS_FILE, TokenizedCorpus
from fledgling.data.shards import FORMAT, MANIFEST
from fledgling.data.stream import MixtureStream, RowSource

HELD_OUT = 2  # documents of a shard


def make_corpus(folder: Path, shards: int, documents: int, tokens: int) -> None:
    """Writes a corpus of `shards` shards of a given number of documents and tokens each."""
    rng = np.random.default_rng(0)
    for number in range(shards):
        shard = folder / f"shard_{number:05}"
        shard.mkdir(parents=True)
        edges = np.sort(rng.integers(0, tokens, documents - 1))
        np.save(shard / "offsets.npy", np.concatenate([[0], edges, [tokens]]))
        with open(shard / "tokens.bin", "wb") as file:
            file.truncate(2 * tokens)
        facts = {"documents": documents, "tokens": tokens, "dtype": "<u2", "vocab_size": 65536, "tokenizer": "made up"}
        files = {name: {"bytes": (shard / name).stat().st_size} for name in ("tokens.bin", "offsets.npy")}
        manifest = {"format": FORMAT, **facts, "metadata": {"held_out": HELD_OUT}, "files": files}
        (shard / MANIFEST).write_text(json.dumps(manifest))
    (folder / CORPUS_FILE).write_text(json.dumps({"shards": [f"shard_{number:05}" for number in range(shards)]}))


def read_memory() -> dict[str, float]:
    """Returns MB of this process: its own, and of mapped files, which the kernel may reclaim."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1000 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


def main() -> None:
    """Makes the corpus if it is missing, reads batches from it, and prints memory and time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name, value in (("shards", 300), ("documents", 50_000), ("tokens", 20_000_000), ("steps", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    if not (arguments.folder / CORPUS_FILE).exists():
        make_corpus(arguments.folder, arguments.shards, arguments.documents, arguments.tokens)

    def report(what: str, start: float, more: str = "") -> None:
        now = read_memory()
        files = len(os.listdir("/proc/self/fd"))
        print(
            f"{what:24} {now['own']:6.0f} MB its own {now['mapped']:6.0f} MB mapped  {files:,} files open  "
            f"{time.process_time() - start:.2f} s of processor time  {more}",
            flush=True,
        )

    report("imported", time.process_time())
    start = time.process_time()
    corpus = TokenizedCorpus.open(arguments.folder, "made up")
    report("opened", start)
    start = time.process_time()
    source = RowSource(corpus.train, "crop", 2048, seed=0, bos=65535)
    report("planned", start, f"{sum(map(len, corpus.train)):,} documents, {len(source):,} rows")
    stream = MixtureStream([(source, 1.0)], 256, 32, None, seed=0)
    for steps in (1, arguments.steps // 4, arguments.steps - arguments.steps // 4 - 1):
        start = time.process_time()
        for _ in range(steps):
            stream.next()
        report(f"{stream.step} steps of 256 rows", start)
    start = time.process_time()
    stream.load_state_dict({"step": 3 * len(source) // 256 + 17})
    stream.next()
    report("3 epochs further", start)
    stream.close()


if __name__ == "__main__":
    main()
