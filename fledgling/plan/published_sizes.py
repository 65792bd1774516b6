"""Sizes of the public sets as their publishers state them, where no file is present to count.

How many tokens an example has is not published: it is assumed, and a plan that depends on it says so.
"""

from __future__ import annotations

from fledgling.plan.stage_length import SourceSize

# Rows of the training split, by the dataset cards at the pinned commits.
PUBLISHED_EXAMPLES = {
    "smoltalk": 1_043_917,
    "smol-smoltalk": 460_341,
    "mmlu": 99_842,
    "gsm8k": 7_473,
    "arc_easy": 2_251,
    "arc_challenge": 1_119,
}
ASSUMED_TOKENS = 512  # of a conversation, where none is present


def published_sizes(context: int) -> dict[str, SourceSize]:
    """Returns the sizes of the public sets of conversations in rows of `context` tokens."""
    rows = min(1.0, ASSUMED_TOKENS / context)
    return {name: SourceSize(count, rows, is_assumed=True) for name, count in PUBLISHED_EXAMPLES.items()}
