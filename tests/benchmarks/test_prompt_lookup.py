"""The prompt-lookup experiment counts what it reports, and drafted tokens change no answer."""

import pytest
import torch

from benchmarks.prompt_lookup import SKILLS, format_prompt_lookup, measure_prompt_lookup
from fledgling.config import UserError
from fledgling.text.tokenizer import Tokenizer
from tests.invariants.test_decode import random_model


def test_answers_are_the_same_and_accepted_tokens_were_drafted():
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)
    model = random_model(tokenizer.vocab_size, "fledgling", 192)
    rows = measure_prompt_lookup(model, tokenizer, drafts=(4,), count=2, tokens=40, repeats=1)
    dtypes = {row["dtype"] for row in rows}
    assert "float32" in dtypes and len(rows) == len(dtypes) * (2 + len(SKILLS)) * 2
    for row in rows:
        assert 0 <= row["accepted"] <= row["drafted"] and (row["drafted"] == 0 if row["draft_tokens"] == 0 else True)
        assert row["same"] == row["answers"] == 2 or row["dtype"] != str(torch.float32).removeprefix("torch.")
    assert sum(row["accepted"] for row in rows) > 0
    assert "code to continue" in format_prompt_lookup(rows)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"tokens": 1}, {"drafts": (3, 0)}])
def test_numbers_that_mean_nothing_are_one_line(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))} .: expected at least"):
        measure_prompt_lookup(None, None, **wrong)
