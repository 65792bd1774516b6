"""How many tokens' logits the head computes at once, by device. No torch: the planner counts with the same function."""

from __future__ import annotations

# Logits of one chunk. CPU: 8 MiB in bf16, which stay near its caches. CUDA: 1 GiB in bf16, 8,192 tokens of 65,536
# entries; on an H100, 65,536 tokens of width 1,280 take 1,164 ms in chunks of 64 tokens, 61 ms in chunks of 4,096 and
# 56 ms in chunks of 16,384.
# Those of an Intel GPU ("xpu") and of an Apple GPU, which shares its memory with the system, are not measured.
CHUNK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 29, "xpu": 1 << 29, "mps": 1 << 26}


def head_chunk_tokens(vocab_size: int, device: str) -> int:
    """Returns the tokens of one chunk; device: torch's type of it, where an unlisted one counts as a CPU."""
    return max(1, CHUNK_LOGITS.get(device, CHUNK_LOGITS["cpu"]) // vocab_size)
