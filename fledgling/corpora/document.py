"""Document: one text with where it came from, the unit that every reader of the data room yields.

The one idea: sources differ, documents do not. The embedded corpus, a user's files and the public sets all
become a sequence of these, and whatever follows (tokenizer training, shards, held-out split) sees nothing
else.

What it is not: it holds no tokens and no conversation; see `shards.py` and `fledgling.text.conversation`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its kind ("topics", "docstrings", "comments", "source", "file", ...) and its origin.

    `origin` says where the text was read, in words a person can follow: `json.decoder`, `notes.jsonl:17`.
    """

    text: str
    kind: str = "file"
    origin: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the text in UTF-8."""
        return len(self.text.encode("utf-8"))

    def hash_fraction(self) -> float:
        """Return a number in [0, 1) that depends on the text alone: its SHA-256, read as a fraction."""
        digest = hashlib.sha256(self.text.encode("utf-8")).digest()
        return int.from_bytes(digest[:6], "big") / 2.0**48
