"""How much text a token holds: bytes per token by kind of text, beside GPT-2's vocabulary.

The one idea: bytes per token is the exchange rate between a model's context, its training tokens and real
text, so it is the first figure of a tokenizer. The higher it is, the more text fits.

What it is not: a measure of how well a model will do. Compare models in bits per byte, which no vocabulary
bends.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fledgling.text.tokenizer import Tokenizer

# Languages of the Universal Declaration of Human Rights, by their names in udhr2.zip.
UDHR_LANGUAGES = {"eng": "English", "deu": "German", "kor": "Korean", "cmn_hans": "Chinese", "jpn": "Japanese"}


def measure_bytes_per_token(tokenizer: Tokenizer, texts: Mapping[str, str]) -> dict[str, float]:
    """Bytes of UTF-8 a token holds, for each of the named texts; 0 for an empty one."""
    rows = tokenizer.encode_batch(list(texts.values()))
    return {name: len(text.encode()) / max(1, len(ids)) for (name, text), ids in zip(texts.items(), rows, strict=True)}


def read_udhr(archive: Path) -> dict[str, str]:
    """The Universal Declaration of Human Rights in some languages from udhr2.zip, if it is there."""
    if not archive.is_file():
        return {}
    found = {}
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as files:
        for code, language in UDHR_LANGUAGES.items():
            if f"udhr2/{code}.txt" in files.namelist():
                found[f"declaration, {language}"] = files.read(f"udhr2/{code}.txt").decode("utf-8", "replace")
    return found
