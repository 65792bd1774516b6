"""Tools in the middle of answers, ends of answers, and the sessions that keep them."""

from __future__ import annotations

import itertools

import pytest

from fledgling.infer.detokenizer import ContentPart, decode_final_text
from fledgling.infer.engine import Engine, FinishEvent, GeneratedToken
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.session import ChatSession, SessionNotice
from fledgling.text.conversation import render_conversation, render_prompt

GREEDY = SamplingParams(temperature=0, max_new_tokens=32)


def prompt(tokenizer, text: str) -> list[int]:
    return render_prompt(tokenizer, {"messages": [{"role": "user", "content": text}]})


def test_tool_output_is_forced_and_marked(adder, tokenizer) -> None:
    """The engine's tokens and the mask of what was drawn are those of training on the same answer."""
    asked = prompt(tokenizer, "add")
    [answer] = adder.generate([asked], GREEDY)
    parts = [("text", "="), ("python", "2+3"), ("output", "5"), ("text", "!")]
    content = [{"type": kind, "text": text} for kind, text in parts]
    messages = [{"role": "user", "content": "add"}, {"role": "assistant", "content": content}]
    trained = render_conversation(tokenizer, {"messages": messages})
    assert asked + answer.tokens == trained.tokens.tolist()
    assert [not forced for forced in answer.forced] == trained.mask[len(asked) :].tolist()
    assert all(logprob == 0 for logprob, forced in zip(answer.logprobs, answer.forced, strict=True) if forced)
    assert all(logprob < 0 for logprob, f in zip(answer.logprobs, answer.forced, strict=True) if not f)
    assert answer.finish_reason == "stop"
    assert decode_final_text(tokenizer, answer.tokens) == "!"


def test_without_tools_nothing_is_forced(adder, tokenizer) -> None:
    [answer] = adder.generate([prompt(tokenizer, "add")], GREEDY, use_tools=False)
    assert not any(answer.forced) and answer.tokens[-2:] == [tokenizer.python_end, tokenizer.assistant_end]


@pytest.mark.parametrize("limit", range(1, 11))
def test_max_tokens_counts_everything(adder, tokenizer, limit) -> None:
    sampling = SamplingParams(temperature=0, max_new_tokens=limit)
    [answer] = adder.generate([prompt(tokenizer, "add")], sampling)
    [whole] = adder.generate([prompt(tokenizer, "add")], GREEDY)
    assert answer.tokens == whole.tokens[:limit] and answer.forced == whole.forced[:limit]
    assert answer.finish_reason == ("length" if limit < len(whole.tokens) else "stop")


def test_a_stop_token_of_the_caller(adder, tokenizer) -> None:
    sampling = SamplingParams(temperature=0, stop_token_ids=(ord("="),))
    [answer] = adder.generate([prompt(tokenizer, "add")], sampling)
    assert (answer.tokens, answer.finish_reason) == ([ord("=")], "stop")


def test_hostile_expressions_get_an_error_as_text(tokenizer, chain) -> None:
    """A model that writes control tokens inside a call is answered with text, and control tokens stay out."""
    t = tokenizer
    steps = [t.assistant_start, t.python_start, t.user_start, t.output_end, t.python_end]
    engine = chain(dict(itertools.pairwise(steps)))
    [answer] = engine.generate([prompt(t, "x")], SamplingParams(temperature=0, max_new_tokens=40))
    forced = [token for token, f in zip(answer.tokens, answer.forced, strict=True) if f]
    assert forced[0] == t.output_start and t.output_end in forced
    inside = forced[1 : forced.index(t.output_end)]
    assert t.decode(inside).startswith("error: ") and not set(inside) & set(t.special_tokens.values())


def test_progress_and_nothing_to_do(adder, tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    asked = [prompt(tokenizer, "add")] * 5
    adder.generate(asked, GREEDY, max_batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5) and seen == sorted(seen)
    assert adder.generate([], GREEDY) == []


def test_stream_equals_generate(adder, tokenizer) -> None:
    asked = prompt(tokenizer, "add")
    *tokens, end = adder.stream(asked, GREEDY)
    [answer] = adder.generate([asked], GREEDY)
    assert end == FinishEvent("stop")
    expected = zip(answer.tokens, answer.logprobs, answer.forced, strict=True)
    for token, (index, logprob, forced) in zip(tokens, expected, strict=True):
        assert isinstance(token, GeneratedToken)
        assert (token.id, token.forced) == (index, forced) and abs(token.logprob - logprob) < 1e-5


# ---- sessions ------------------------------------------------------------------------------------


def test_a_session_says_pieces_and_remembers(adder) -> None:
    session = ChatSession(adder)
    assert list(session.reply("add", GREEDY)) == [
        ContentPart("text", "="),
        *(ContentPart("python", character) for character in "2+3"),
        ContentPart("output", "5"),
        ContentPart("text", "!"),
        FinishEvent("stop"),
    ]
    assert session.messages[1]["content"][1:3] == [
        {"type": "python", "text": "2+3"},
        {"type": "output", "text": "5"},
    ]


def test_a_turn_reads_only_what_is_new(adder, tokenizer, monkeypatch) -> None:
    session = ChatSession(adder)
    list(session.reply("add", GREEDY))
    held = len(session._prompt(session.turns)) - 1  # the last token of an answer is never read
    read: list[int] = []
    plain = Engine.extend_cache
    monkeypatch.setattr(Engine, "extend_cache", lambda s, c, r, t: read.append(len(t[0])) or plain(s, c, r, t))
    list(session.reply("more", GREEDY))
    assert held + read[0] == len(session._prompt(session.turns)) - len(session.turns[-1].answer_tokens)
    assert read[0] == 1 + len(prompt(tokenizer, "more")) - 1  # the end of the answer, and the turn without bos


def test_the_conversation_is_the_one_that_training_renders(adder, tokenizer) -> None:
    session = ChatSession(adder, system="be brief")
    for text in ("add", "more"):
        list(session.reply(text, GREEDY))
    assert (
        session._prompt(session.turns) == render_conversation(tokenizer, {"messages": session.messages}).tokens.tolist()
    )


def test_overflow_forgets_the_oldest_turns_and_says_so(adder) -> None:
    session, notices = ChatSession(adder), []
    for number in range(12):
        events = list(session.reply(f"turn {number}", SamplingParams(temperature=0, max_new_tokens=12)))
        notices += [event for event in events if isinstance(event, SessionNotice)]
        assert events[-1] == FinishEvent("stop")
        assert session.turns[-1].user_text == f"turn {number}"
        assert len(session._prompt(session.turns)) <= adder.context
    assert notices and len(session.turns) < 12


def test_a_text_longer_than_the_context_is_refused(adder) -> None:
    session = ChatSession(adder)
    list(session.reply("add", GREEDY))
    notice, end = session.reply("much " * 100, GREEDY)
    assert isinstance(notice, SessionNotice) and end == FinishEvent("context")
    assert [turn.user_text for turn in session.turns] == ["add"]
    assert list(session.reply("add", GREEDY))[-1] == FinishEvent("stop")


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_an_answer_left_halfway_leaves_a_conversation_that_goes_on(adder, tokenizer, after) -> None:
    session = ChatSession(adder)
    reply = session.reply("add", GREEDY)
    for _ in range(after):
        next(reply)
    reply.close()
    assert len(session.turns) == (after > 0)
    assert list(session.reply("add", GREEDY))[-1] == FinishEvent("stop")
    assert session._prompt(session.turns).count(tokenizer.assistant_end) == len(session.turns)


def test_an_interrupt_inside_the_model_leaves_the_cache_true(adder, tokenizer, monkeypatch) -> None:
    """Ctrl-C between the model writing the cache and our noting it."""
    session = ChatSession(adder)
    plain, calls = Engine.extend_cache, [0]

    def interrupted(self, *arguments):
        out = plain(self, *arguments)
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(Engine, "extend_cache", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(session.reply("add", GREEDY))
    monkeypatch.undo()
    pieces = list(session.reply("add", GREEDY))
    assert pieces == list(ChatSession(adder).reply("add", GREEDY))


def test_clear_begins_again(adder) -> None:
    session = ChatSession(adder)
    first = list(session.reply("add", GREEDY))
    session.clear()
    assert session.messages == [] and list(session.reply("add", GREEDY)) == first
