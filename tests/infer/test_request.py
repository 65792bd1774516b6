"""Requests: prompt lookup. Stop tokens, limits and forced tokens are tested through the engine (test_engine.py)."""

from fledgling.infer.request import PromptLookup


def test_drafts_follow_the_longest_ngram_and_pause_after_a_failure() -> None:
    lookup = PromptLookup([1, 2, 3, 9, 2, 3, 5, 1, 2, 3], 4)
    assert lookup.propose(10) == [9, 2, 3, 5] and lookup.propose(2) == [9, 2]
    lookup.update(4, 0)
    assert lookup.propose(4) == []
    assert PromptLookup([4, 4, 4], 3).propose(9) == [4, 4, 4]
    assert PromptLookup([1, 2, 3, 4], 3).propose(9) == []
