"""Two tokenizers aligned by text: spans end where both have a boundary, and have the likelihoods of their tokens."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.config import ModelConfig
from fledgling.data.batch import IGNORE_INDEX, Batch
from fledgling.model.transformer import Transformer
from fledgling.text.conversation import render_conversation
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.distill.spans import SpanAligner, align_text, decode_whole_characters
from fledgling.train.distill.teacher import Teacher
from tests.train.rl.small_problems import tokenizer

OTHER = Tokenizer.train(["the quick brown fox jumps over the lazy dog and the slow bee 0123456789 " * 20], 345)
TALK = {
    "messages": [{"role": "user", "content": "the quick fox?"}, {"role": "assistant", "content": "over the lazy bee é"}]
}


def make_teacher() -> Teacher:
    model = Transformer(ModelConfig(OTHER.vocab_size, 1, 32, 2, 2, 64))
    model.initialize(0)
    torch.nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    return Teacher(model, OTHER, "id")


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=30), cut=st.integers(0, 3), end=st.integers(0, 3))
def test_spans_are_whole_tokens_of_both_and_the_same_bytes(text, cut, end):
    ids = tokenizer().encode("the fox " + text + " dog é")[cut:]
    ids = ids[: len(ids) - end]
    encoded, spans = align_text(tokenizer(), OTHER, ids)
    place = (0, 0)
    for (first, last), (teacher_first, teacher_last) in spans:
        own = b"".join(tokenizer().token_bytes[i] for i in ids[first : last + 1])
        others = b"".join(OTHER.token_bytes[i] for i in encoded[teacher_first : teacher_last + 1])
        assert own == others and own
        assert first >= place[0] and teacher_first == place[1], "the teacher's tokens are all in spans, in order"
        place = last + 1, teacher_last + 1
    whole = decode_whole_characters(b"".join(tokenizer().token_bytes[i] for i in ids))[1]
    assert b"".join(OTHER.token_bytes[i] for i in encoded) == whole.encode()


def test_a_character_that_a_piece_cuts_is_left_out_at_either_end():
    data = "aé€b€".encode()
    assert decode_whole_characters(data) == (0, "aé€b€")
    assert decode_whole_characters(data[2:]) == (1, "€b€")
    assert decode_whole_characters(data[:-1]) == (0, "aé€b")
    assert decode_whole_characters(b"a\xff\xfeb") == (0, "")
    assert decode_whole_characters(b"\x82\xac") == (2, "")


def test_a_conversation_s_spans_have_the_teacher_s_own_likelihoods():
    """Against the teacher's log p of the same conversation, as its own tokenizer renders it."""
    teacher = make_teacher()
    rendered, other = render_conversation(tokenizer(), TALK), render_conversation(OTHER, TALK)
    tokens = torch.tensor(rendered.tokens.tolist())[None]
    mask = torch.tensor(rendered.mask.tolist())[None, 1:]
    targets = torch.where(mask, tokens[:, 1:], IGNORE_INDEX)
    batch = Batch(tokens[:, :-1], targets, torch.ones_like(tokens[:, :-1]).int())
    found = SpanAligner(teacher, tokenizer()).add_predictions(batch)
    row = torch.tensor(other.tokens.tolist())[None]
    logprobs = teacher.model.compute_logits(teacher.model(row[:, :-1])).log_softmax(-1).gather(-1, row[:, 1:, None])
    expected = float(logprobs[0, :, 0][torch.tensor(other.mask.tolist())[1:]].sum())
    assert found.span_ids[mask].min() > 0 and not found.span_ids[~mask].any(), "every learned token is in a span"
    assert (
        float(found.teacher_logprobs.sum()) == torch.tensor(expected).item()
        or abs(float(found.teacher_logprobs.sum()) - expected) < 1e-3
    )
    numbers = found.span_ids[mask]
    assert int(numbers.max()) == int((found.teacher_logprobs < 0).sum()) > 5
    assert (numbers.diff() >= 0).all()
