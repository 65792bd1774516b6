"""Requests: prompt lookup and adjusted logits. Stop tokens, limits and forced tokens are tested in test_engine.py."""

import pytest
import torch

from fledgling.infer.request import PromptLookup, Request
from fledgling.infer.sampling import SamplingParams


def test_drafts_follow_the_longest_ngram_and_pause_after_a_failure() -> None:
    lookup = PromptLookup([1, 2, 3, 9, 2, 3, 5, 1, 2, 3], 4)
    assert lookup.propose(10) == [9, 2, 3, 5] and lookup.propose(2) == [9, 2]
    lookup.update(4, 0)
    assert lookup.propose(4) == []
    assert PromptLookup([4, 4, 4], 3).propose(9) == [4, 4, 4]
    assert PromptLookup([1, 2, 3, 4], 3).propose(9) == []


@pytest.mark.parametrize(
    ("penalty", "expected"), [(0.5, [1.0, 2.0, -1.0]), (1.0, [1.0] * 2 + [-1.0]), (2.0, [1.0, 0.5, -1.0])]
)
def test_a_repetition_penalty_on_either_side_of_1_changes_seen_tokens(penalty, expected) -> None:
    logits = torch.tensor([1.0, 1.0, -1.0])
    Request([1], SamplingParams(repetition_penalty=penalty), 8).adjust_logits_(logits)
    assert logits.tolist() == expected
