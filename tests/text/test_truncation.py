"""The oldest turns are dropped until prompt and answer fit, and never more than that."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.truncation import drop_oldest_turns, max_prompt_tokens


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)


TEXTS = st.text(st.sampled_from("the quick fox\n é"), min_size=1, max_size=40).filter(str.strip)


@given(st.lists(TEXTS, min_size=1, max_size=9), TEXTS, st.booleans(), st.integers(16, 96), st.integers(1, 40))
def test_what_is_kept_fits_and_one_turn_more_would_not(tokenizer, texts, last, has_system, context, max_new_tokens):
    system = [{"role": "system", "content": "be brief"}] if has_system else []
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in texts]
    turns.append([{"role": "user", "content": last}])
    messages = system + [message for turn in turns for message in turn]
    kept, dropped = drop_oldest_turns(tokenizer, messages, context, max_new_tokens)
    assert kept == system + [message for turn in turns[dropped:] for message in turn]
    sizes = [
        len(render_prompt(tokenizer, {"messages": system + [m for turn in turns[first:] for m in turn]}))
        for first in range(len(turns))
    ]
    limit = max_prompt_tokens(context, max_new_tokens)
    fitting = [first for first, size in enumerate(sizes) if size <= limit]
    expected = fitting[0] if fitting else len(turns) - 1
    # A system message merges with the text after it, which may save a token: one turn too many may be dropped.
    assert dropped == expected or (has_system and expected < dropped and sizes[dropped - 1] > limit - 2)


def test_messages_of_one_role_in_a_row_are_one_turn(tokenizer):
    messages = [{"role": "user", "content": text} for text in ("the quick", "fox")]
    assert drop_oldest_turns(tokenizer, messages, 8, 4) == ([{"role": "user", "content": "the quick\n\nfox"}], 0)
