"""Split: which documents are held out, what training has seen of them, and how far plain compressors get.

The one idea: a document is held out when the hash of its own text says so. Nothing else is asked, so the
held-out part stays held out whatever is harvested or fetched besides; what training shares with it is taken
out of training.

What it is not: a shuffle (`stream.py` orders the training text) or a measure of a model
(`fledgling.evals`). No torch.
"""

from __future__ import annotations

import importlib
import lzma
import shutil
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from fledgling.corpora.document import Document
from fledgling.corpora.embedded import MIN_CHARACTERS
from fledgling.corpora.prose import normalized_sentences, split_paragraphs

MIN_SHARED_LINE = 8  # characters from which a line of the validation text may not occur in training
MIN_SHARED_FILE_LINE = 40  # the same for a user's text, where short lines are names, refrains, fields of a form
MAX_COMPRESSOR_BYTES = 16_000_000  # bytes of training text a compressor is shown: the last ones
WINDOW_LOG = 27  # zstd --long: matches up to 128 MiB back


def split_held_out(documents: Iterable[Document], fraction: float = 0.02) -> tuple[list[Document], list[Document]]:
    """Return (training, validation) documents; `share` of all documents is held out.

    A document is held out when the hash of its own text says so, whatever else was read. Every training
    paragraph that shares a sentence or line of `HELD_LINE` characters or more (`HELD_FILE_LINE` for documents
    of kind "file") with the validation text is then removed from training, and a training document of which
    less than `SMALLEST` characters then remain is dropped. What overlap is left are short lines such as
    `Returns:` or `else:`; `line_overlap` measures it. Few documents may leave nothing to hold out.
    """
    training, validation = [], []
    for document in documents:
        (validation if document.hash_fraction() < fraction else training).append(document)
    held = {
        line
        for doc in validation
        for part in split_paragraphs(doc.text)
        for line in normalized_sentences(part, MIN_SHARED_LINE)
    }
    kept = []
    for document in training:
        at_least = MIN_SHARED_FILE_LINE if document.kind == "file" else MIN_SHARED_LINE
        parts = split_paragraphs(document.text)
        disjoint = [part for part in parts if held.isdisjoint(normalized_sentences(part, at_least))]
        if len(disjoint) == len(parts):
            kept.append(document)
        elif sum(map(len, disjoint)) >= MIN_CHARACTERS:
            kept.append(Document("\n\n".join(disjoint), document.kind, document.origin))
    return kept, validation


def measure_line_overlap(training: Iterable[Document], validation: Iterable[Document], min_length: int = 1) -> float:
    """Return the share of validation bytes in lines that also stand, stripped, somewhere in training.

    Lines of fewer than `at_least` characters do not count as repeated; white space around lines counts
    nowhere.
    """
    wanted = [line.strip() for document in validation for line in document.text.split("\n")]
    seen = {line.strip() for document in training for line in document.text.split("\n")}
    repeated = sum(len(line.encode()) for line in wanted if len(line) >= min_length and line in seen)
    return repeated / max(1, sum(len(line.encode()) for line in wanted))


# ---- what a compressor makes of the same text ------------------------------------------------------


def _xz_size(data: bytes) -> int:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 27}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def make_zstd_compressor() -> Callable[[bytes], int] | None:
    """Return a function from bytes to their size under zstd -19 with a long window, or None if there is none.

    Looks for `compression.zstd` (Python 3.14), the `zstandard` package and the `zstd` command, in this order.
    """
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        pass
    else:
        key = zstd.CompressionParameter
        options = {
            key.compression_level: 19,
            key.window_log: WINDOW_LOG,
            key.enable_long_distance_matching: 1,
        }
        return lambda data: len(zstd.compress(data, options=options))
    try:
        zstandard = importlib.import_module("zstandard")
    except ImportError:
        pass
    else:
        options = {"window_log": WINDOW_LOG, "enable_ldm": True}
        parameters = zstandard.ZstdCompressionParameters.from_level(19, **options)
        return lambda data: len(zstandard.ZstdCompressor(compression_params=parameters).compress(data))
    if command := shutil.which("zstd"):
        call = [command, "-19", f"--long={WINDOW_LOG}", "--stdout", "--quiet"]
        return lambda data: len(subprocess.run(call, input=data, capture_output=True, check=True).stdout)
    return None


def measure_compressed_bpb(
    training: Iterable[Document],
    validation: Iterable[Document],
    progress: Callable[[str], None] | None = None,
) -> dict[str, float | str | None]:
    """Return the bits per byte of the validation text for compressors that have seen the training text.

    That is 8 (compressed(training + validation) - compressed(training)) / bytes of validation, for "xz -9e"
    and "zstd -19 --long"; None where no zstd of a long window is installed. Of more than `CAP` bytes of
    training text only the last are shown; "training bytes" and "note" say so. Takes several seconds for
    each 10 MB, on two threads.
    """
    seen = "\n\n".join(document.text for document in training).encode()
    held = "\n\n".join(document.text for document in validation).encode()
    shown = seen[-MAX_COMPRESSOR_BYTES:]
    notes = (
        [f"training text capped: the last {MAX_COMPRESSOR_BYTES:,} of {len(seen):,} bytes"]
        if len(seen) > MAX_COMPRESSOR_BYTES
        else []
    )
    sizes: dict[str, Callable[[bytes], int] | None] = {"xz -9e": _xz_size, "zstd -19 --long": make_zstd_compressor()}
    result: dict[str, float | str | None] = {}
    for name, compress in sizes.items():
        if compress is None or not held:
            notes += [] if compress else [f"{name}: no compression.zstd, zstandard or zstd command here"]
            result[name] = None
            continue
        if progress:
            progress(f"{name} over {len(shown) / 1e6:.1f} MB")
        with ThreadPoolExecutor(2) as pool:  # both compressors release the interpreter's lock
            alone, together = pool.map(compress, [shown, shown + held])
        result[name] = 8 * (together - alone) / len(held)
    return {**result, "training bytes": len(shown), "validation bytes": len(held), "note": "; ".join(notes)}
