"""How much text a token holds, and how small general compressors make a text.

Bytes per token convert a model's context and training tokens to amounts of text: the higher, the more text. They do
not measure how well a model predicts; models are compared in bits per byte, which do not depend on the vocabulary.
"""

from __future__ import annotations

import importlib
import io
import lzma
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fledgling.record.jsonl import format_bytes
from fledgling.text.tokenizer import Tokenizer

# Languages of the Universal Declaration of Human Rights, by their names in udhr2.zip.
UDHR_LANGUAGES = {"eng": "English", "deu": "German", "kor": "Korean", "cmn_hans": "Chinese", "jpn": "Japanese"}
MAX_COMPRESSOR_BYTES = 16_000_000  # of training text that a compressor is given: the last ones
WINDOW_LOG = 27  # zstd --long: matches up to 128 MiB back
PPMD_ORDER = 16  # bytes of context: more than 16 gain nothing on text
PPMD_MEMORY = 1 << 30  # bytes that the contexts may fill, as they grow; 16 MB of text need about a third

# ---- bytes per token -----------------------------------------------------------------------------


def measure_bytes_per_token(tokenizer: Tokenizer, texts: Mapping[str, str]) -> dict[str, float]:
    """Returns the UTF-8 bytes per token of each of the named texts; 0 for an empty one."""
    rows = tokenizer.encode_batch(list(texts.values()))
    return {name: len(text.encode()) / max(1, len(ids)) for (name, text), ids in zip(texts.items(), rows, strict=True)}


def compare_bytes_per_token(tokenizers: Mapping[str, Tokenizer], texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns a row for each text: its name as "kind", its "bytes", and its bytes per token with each tokenizer."""
    columns = {name: measure_bytes_per_token(tokenizer, texts) for name, tokenizer in tokenizers.items()}
    return [
        {
            "kind": kind,
            "bytes": len(text.encode()),
            **{name: round(values[kind], 3) for name, values in columns.items()},
        }
        for kind, text in texts.items()
    ]


def read_udhr(archive: Path) -> dict[str, str]:
    """Returns the Universal Declaration of Human Rights from udhr2.zip, by "declaration, LANGUAGE".

    The languages are those of `UDHR_LANGUAGES` that the archive contains; without an archive the result is {}.
    """
    if not archive.is_file():
        return {}
    texts = {}
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as files:
        for code, language in UDHR_LANGUAGES.items():
            if f"udhr2/{code}.txt" in files.namelist():
                texts[f"declaration, {language}"] = files.read(f"udhr2/{code}.txt").decode("utf-8", "replace")
    return texts


# ---- general compressors -------------------------------------------------------------------------


def _measure_xz_size(data: bytes) -> int:
    """Returns the bytes of the data under xz -9e with a dictionary of 128 MiB, without the headers of an .xz file."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 27}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def make_zstd_compressor() -> Callable[[bytes], int] | None:
    """Returns a function from bytes to their size under zstd -19 with a long window, or None without zstd.

    Uses `compression.zstd` (Python 3.14), the `zstandard` package or the `zstd` command, in this order.
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
        parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=WINDOW_LOG, enable_ldm=True)
        return lambda data: len(zstandard.ZstdCompressor(compression_params=parameters).compress(data))
    if command := shutil.which("zstd"):
        call = [command, "-19", f"--long={WINDOW_LOG}", "--stdout", "--quiet"]
        return lambda data: len(subprocess.run(call, input=data, capture_output=True, check=True).stdout)
    return None


def make_ppmd_compressor() -> Callable[[bytes], int] | None:
    """Returns a function from bytes to their size under PPMd (variant H, as in 7z), or None without pyppmd.

    PPMd predicts each byte from up to `PPMD_ORDER` bytes before it, as a language model does, so it is the compressor
    to compare a model of text with; xz and zstd find repetitions.
    """
    try:
        pyppmd = importlib.import_module("pyppmd")
    except ImportError:
        return None
    return lambda data: len(pyppmd.compress(data, max_order=PPMD_ORDER, mem_size=PPMD_MEMORY, variant="H"))


def measure_compressed_bpb(
    training: Iterable[str],
    validation: Iterable[str],
    progress: Callable[[str], None] | None = None,
    only_strongest: bool = False,
) -> dict[str, float | str | None]:
    """Returns the bits per byte of the validation texts under compressors that have seen the training texts.

    That is 8 (compressed(training + validation) - compressed(training)) / bytes of validation, where training is the
    last `MAX_COMPRESSOR_BYTES` of the training texts. Blank lines separate the texts. Takes several seconds for each 10
    MB, on two threads.

    Args:
        training: texts that the compressors have seen.
        validation: texts that are measured.
        progress: receives one line when a compressor starts.
        only_strongest: measure PPMd alone, which takes a fifth of the time of all three; xz where pyppmd is missing.

    Returns:
        "xz -9e", "zstd -19 --long" and "PPMd order 16": bits per byte; None without validation text, the second without
        zstd, the third without pyppmd. With `only_strongest` those that are not measured are absent.
        "training bytes": those that were used. "validation bytes". "note": what was left out and why, or "".
    """
    training_bytes = "\n\n".join(training).encode()
    held_out = "\n\n".join(validation).encode()
    window = training_bytes[-MAX_COMPRESSOR_BYTES:]
    notes = []
    if len(training_bytes) > len(window):
        notes.append(f"training text capped: the last {len(window):,} of {len(training_bytes):,} bytes")
    ppmd = make_ppmd_compressor()
    compressors: dict[str, tuple[Callable[[bytes], int] | None, str]] = {}
    if not (only_strongest and ppmd):
        compressors["xz -9e"] = _measure_xz_size, ""
    if not only_strongest:
        compressors["zstd -19 --long"] = make_zstd_compressor(), "no compression.zstd, zstandard or zstd command here"
    compressors[f"PPMd order {PPMD_ORDER}"] = ppmd, "no pyppmd here; pip install 'fledgling[compare]'"
    result: dict[str, float | str | None] = {}
    for name, (compress, missing) in compressors.items():
        if compress is None or not held_out:
            notes += [] if compress else [f"{name} is left out: {missing}"]
            result[name] = None
            continue
        if progress:
            progress(f"{name} over {format_bytes(len(window))}")
        with ThreadPoolExecutor(2) as pool:  # the compressors release the interpreter's lock
            alone, together = pool.map(compress, [window, window + held_out])
        result[name] = 8 * (together - alone) / len(held_out)
    return {**result, "training bytes": len(window), "validation bytes": len(held_out), "note": "; ".join(notes)}
