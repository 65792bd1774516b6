"""How many tokens' logits exist at once. No torch: the planner counts memory with the same number."""

from __future__ import annotations

CHUNK_LOGITS = 1 << 22  # logits of one chunk: 8 MiB in bf16 and 16 MiB in fp32, whatever the vocabulary


def tokens_per_chunk(vocab_size: int) -> int:
    """Returns the number of tokens whose logits form one chunk; at least 1."""
    return max(1, CHUNK_LOGITS // vocab_size)
