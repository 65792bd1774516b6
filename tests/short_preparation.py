"""What every run of the tests does less of, in each of its processes: see `shorten_preparation`."""

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from fledgling import tasks
from fledgling.evals import samples
from fledgling.runtime import device
from fledgling.tasks.skills import words
from fledgling.text import compression
from fledgling.train import data_preparer, evals

WORDS_FILE = "FLEDGLING_TESTS_WORDS"  # a variable that names the file of all workers


@functools.cache
def shorten_preparation() -> None:
    """Makes the preparation of a run as small as its text, once in a process.

    A run's tokenizer is trained on a tenth of the conversations and its conversations are written in smaller batches.
    Its samples and its answers to the exams of skills, which an untrained model never ends, have a few tokens.
    No file is synced to disk, which a run does 60 times a stage, for 2 to 6 ms each: no test cuts the power. Tests of
    what is synced, and when, record the calls.
    What compressors reach on a text is measured once in a process, .7 s, and the words of the documentation are
    collected once in all workers of a session, 2.5 s.
    The product that the machine's peak is measured with is timed once in a process, not in each stage. Tests make up
    peaks, which are not compared with each other.
    """
    data_preparer.TOKENIZER_CONVERSATIONS, data_preparer.CONVERSATIONS_PER_BATCH = 400, 200
    for name in ("sample_continuations", "sample_chat_replies"):
        setattr(samples, name, functools.partial(getattr(samples, name), max_new_tokens=8))
    load_skill = tasks._load_skill
    tasks._load_skill = functools.cache(lambda name: replace(load_skill(name), max_new_tokens=16))  # type: ignore
    compression.PPMD_MEMORY = 1 << 24
    evals.measure_compressed_bpb = remember_by_texts(evals.measure_compressed_bpb)
    words.harvest_words = functools.cache(share_words(words.harvest_words))  # type: ignore[assignment]
    os.fsync = skip_fsync  # type: ignore[assignment]
    device.measure_peak_flops = functools.cache(device.measure_peak_flops)  # type: ignore[assignment]
    device.compare_with_known_peak = lambda key, peak, measure_again: (peak, "")


def remember_by_texts(measure: Callable) -> Callable:
    """Returns `measure` of two iterables of texts, computed once for the same texts."""
    measure_once = functools.lru_cache(64)(measure)
    return lambda training, validation, **how: dict(measure_once(tuple(training), tuple(validation), **how))


def share_words(harvest: Callable[[], tuple[str, ...]]) -> Callable[[], tuple[str, ...]]:
    """Returns `harvest` as a function that reads its words from the file WORDS_FILE names, if one process wrote it."""

    def read_or_write() -> tuple[str, ...]:
        if not (name := os.environ.get(WORDS_FILE)):
            return harvest()
        with FileLock(f"{name}.lock"):
            if not (file := Path(name)).exists():
                file.write_text(" ".join(harvest()), encoding="utf-8")
            return tuple(file.read_text(encoding="utf-8").split(" "))

    return read_or_write


def skip_fsync(file: Any) -> None:
    """Replaces os.fsync: only an open file is accepted."""
    os.fstat(file if isinstance(file, int) else file.fileno())
