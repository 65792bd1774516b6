"""Incremental text: however the bytes are split into tokens, the parts joined are the text."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.infer.detokenizer import (
    AnswerDetokenizer,
    ContentPart,
    IncrementalDetokenizer,
    StopStringMatcher,
    ThoughtSplitter,
    decode_final_text,
    decode_parts,
)

BYTES = [bytes([byte]) for byte in range(256)]


@given(st.text())
def test_single_bytes_give_the_text_and_no_partial_character(text: str) -> None:
    detokenizer = IncrementalDetokenizer(BYTES)
    parts = [detokenizer.push(byte) for byte in text.encode()]
    assert detokenizer.finish() == "" and "".join(parts) == text
    assert all(len(part) <= 1 for part in parts)


@given(st.binary(), st.lists(st.integers(0, 40)))
def test_any_bytes_in_any_tokens_are_decoded_as_if_at_once(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    token_bytes = [data[start:end] for start, end in itertools.pairwise(edges)]
    detokenizer = IncrementalDetokenizer(token_bytes)
    text = "".join(detokenizer.push(token) for token in range(len(token_bytes))) + detokenizer.finish()
    assert text == data.decode("utf-8", "replace")


@given(st.text())
def test_pieces_of_any_text_join_to_the_decoded_text(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    detokenizer = AnswerDetokenizer(tokenizer)
    parts = [part for token in ids for part in detokenizer.push(token)] + detokenizer.finish()
    assert "".join(part.text for part in parts) == tokenizer.decode(ids)
    assert unicodedata.normalize("NFC", decode_final_text(tokenizer, ids)) == unicodedata.normalize(
        "NFC", tokenizer.decode(ids)
    )


def test_an_incomplete_character_at_the_end_becomes_u_fffd() -> None:
    detokenizer = IncrementalDetokenizer(BYTES)
    assert [detokenizer.push(byte) for byte in "é€".encode()[:-1]] == ["", "é", "", ""]
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.push(ord("a")) == "a"


def test_an_answer_is_split_into_text_call_and_output(tokenizer) -> None:
    t = tokenizer
    call = [t.python_start, *t.encode("2+3"), t.python_end, t.output_start, *t.encode("5"), t.output_end]
    tokens = [*t.encode("so "), *call, *t.encode("five"), t.assistant_end]
    assert decode_parts(t, tokens) == [
        {"type": "text", "text": "so "},
        {"type": "python", "text": "2+3"},
        {"type": "output", "text": "5"},
        {"type": "text", "text": "five"},
    ]
    assert decode_final_text(t, tokens) == "five" and decode_final_text(t, tokens[:3]) == t.decode(tokens[:3])


def test_a_control_token_ends_a_broken_character(tokenizer) -> None:
    detokenizer = AnswerDetokenizer(tokenizer)
    assert detokenizer.push(0xC3) == []
    assert detokenizer.push(tokenizer.python_start) == [ContentPart("text", "\ufffd")]


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.randoms())
def test_stop_strings_cut_where_the_whole_text_would_be_cut(text, stops, random):
    """However the text is split, the shown text ends where the first stop string of the whole text begins."""
    matcher, shown, rest = StopStringMatcher(stops), "", text
    while rest and not matcher.stopped:
        size = random.randint(1, len(rest))
        shown, rest = shown + matcher.push(rest[:size]), rest[size:]
    shown += "" if matcher.stopped else matcher.finish()
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text and not matcher.stopped
    else:  # the stop string that is complete first, or one that came in the same part and begins earlier
        assert matcher.stopped and text.startswith(shown) and any(text[len(shown) :].startswith(stop) for stop in stops)
        assert not any(stop in shown for stop in stops)


def test_an_answer_that_ends_within_its_thought_has_no_text_to_score(tokenizer):
    assert decode_final_text(tokenizer, tokenizer.encode("<think>\n2+3 is 5")) == ""
    assert decode_final_text(tokenizer, tokenizer.encode("<think>2+3</think> 5")) == "5"
    assert decode_final_text(tokenizer, tokenizer.encode("5 <think>")) == "5 <think>"


@pytest.mark.parametrize(
    ("text", "thought", "prose"),
    [
        ("<think>\nTwo and three.\n</think>\n\nFive.", "Two and three.\n", "Five."),
        (" <think>a</think>b</think><think>c", "a", "b</think><think>c"),
        ("Five. <think>no</think>", "", "Five. <think>no</think>"),
        ("<thinking> is text", "", "<thinking> is text"),
        ("<think>cut</thi", "cut</thi", ""),
        ("<thi", "", "<thi"),
        ("", "", ""),
        ("  five", "", "  five"),
    ],
)
def test_a_thought_at_the_start_is_separated_however_the_text_arrives(text, thought, prose):
    for size in (1, 2, 5, 99):
        splitter = ThoughtSplitter()
        pieces = [splitter.push(text[i : i + size]) for i in range(0, len(text), size)] + [splitter.finish()]
        assert ("".join(a for a, _ in pieces), "".join(b for _, b in pieces)) == (thought, prose), size
