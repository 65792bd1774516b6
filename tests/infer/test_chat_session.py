"""Conversations: what is cached of them, how they fit the context, and what an interrupted answer leaves."""

from __future__ import annotations

import re

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.infer import chat_session as session_module
from fledgling.infer.chat_session import ChatSession, SessionNotice, load_chat_engine
from fledgling.infer.detokenizer import ContentPart
from fledgling.infer.engine import FinishEvent
from fledgling.infer.runner import ModelRunner
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels import zero_skipping
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import save_checkpoint
from fledgling.text.conversation import render_conversation
from tests.infer.test_engine import GREEDY, user_prompt


def test_a_session_yields_parts_and_keeps_them(adder) -> None:
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


def test_a_turn_computes_only_new_tokens(adder, tokenizer, monkeypatch) -> None:
    session = ChatSession(adder)
    list(session.reply("add", GREEDY))
    cached = len(session._render_prompt(session.turns)) - 1  # the last token of an answer is not in the cache
    computed: list[int] = []
    extend_cache = ModelRunner.extend_cache
    monkeypatch.setattr(
        ModelRunner, "extend_cache", lambda s, c, r, t: computed.append(len(t[0])) or extend_cache(s, c, r, t)
    )
    list(session.reply("more", GREEDY))
    assert cached + computed[0] == len(session._render_prompt(session.turns)) - len(session.turns[-1].answer_tokens)
    assert computed[0] == 1 + len(user_prompt(tokenizer, "more")) - 1  # the end of the answer, and the turn without bos


def test_tools_that_fill_the_context_are_left_out_of_the_answer_and_no_message_is_blamed(adder) -> None:
    session = ChatSession(adder, system="be brief " * adder.context, without_tools="be brief")
    events = list(session.reply("add", GREEDY))
    assert events[0] == SessionNotice("the tools do not fit into the model's context: it answers without them")
    assert events[-1] == FinishEvent("stop") and session.turns
    notice, _ = ChatSession(adder, system="be brief " * adder.context).reply("add", GREEDY)
    assert re.fullmatch(
        r"the message has \d tokens, the system prompt before it \d{2,} and .*: shorten it", notice.text
    )


def test_the_conversation_is_the_one_that_training_renders(adder, tokenizer) -> None:
    session = ChatSession(adder, system="be brief")
    for text in ("add", "more"):
        list(session.reply(text, GREEDY))
    assert (
        session._render_prompt(session.turns)
        == render_conversation(tokenizer, {"messages": session.messages}).tokens.tolist()
    )


def test_overflow_drops_the_oldest_turns_with_a_notice(adder) -> None:
    session, notices = ChatSession(adder), []
    for number in range(12):
        events = list(session.reply(f"turn {number}", SamplingParams(temperature=0, max_new_tokens=12)))
        notices += [event for event in events if isinstance(event, SessionNotice)]
        assert events[-1] == FinishEvent("stop")
        assert session.turns[-1].user_text == f"turn {number}"
        assert len(session._render_prompt(session.turns)) <= adder.context
    assert notices and len(session.turns) < 12
    assert {notice.text.partition(": ")[2] for notice in notices} == {"the oldest turn was dropped"}
    longer = session.reply("many words " * 4, SamplingParams(temperature=0, max_new_tokens=12))
    dropped = [event.text for event in longer if isinstance(event, SessionNotice)]
    assert len(dropped) == 1 and re.search(r": the [2-9] oldest turns were dropped$", dropped[0])


def test_a_text_longer_than_the_context_is_rejected(adder) -> None:
    session = ChatSession(adder)
    list(session.reply("add", GREEDY))
    notice, end = session.reply("much " * 100, GREEDY)
    assert isinstance(notice, SessionNotice) and end == FinishEvent("context")
    assert [turn.user_text for turn in session.turns] == ["add"]
    assert list(session.reply("add", GREEDY))[-1] == FinishEvent("stop")


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_conversation_continues_after_an_abandoned_answer(adder, tokenizer, after) -> None:
    session = ChatSession(adder)
    reply = session.reply("add", GREEDY)
    for _ in range(after):
        next(reply)
    reply.close()
    assert len(session.turns) == (after > 0)
    assert list(session.reply("add", GREEDY))[-1] == FinishEvent("stop")
    assert session._render_prompt(session.turns).count(tokenizer.assistant_end) == len(session.turns)


def test_an_interrupt_inside_the_model_leaves_the_cache_valid(adder, tokenizer, monkeypatch) -> None:
    """Ctrl-C after the model has written the cache and before the request is updated."""
    session = ChatSession(adder)
    extend_cache, calls = ModelRunner.extend_cache, [0]

    def interrupted(self, *arguments):
        hidden = extend_cache(self, *arguments)
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return hidden

    monkeypatch.setattr(ModelRunner, "extend_cache", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(session.reply("add", GREEDY))
    monkeypatch.undo()
    parts = list(session.reply("add", GREEDY))
    assert parts == list(ChatSession(adder).reply("add", GREEDY))


def test_clear_begins_again(adder) -> None:
    session = ChatSession(adder)
    first = list(session.reply("add", GREEDY))
    session.clear()
    assert session.messages == [] and list(session.reply("add", GREEDY)) == first


@pytest.fixture
def checkpoint(tmp_path, tokenizer):
    config = ModelConfig(vocab_size=tokenizer.vocab_size, depth=1, width=32, heads=2, kv_heads=2, context=64)
    model = Transformer(config)
    model.initialize(0)
    files = {"tokenizer.json": tokenizer.save(tmp_path / "made" / "tokenizer.json")}
    state = {"model": config.to_dict()}
    return save_checkpoint(tmp_path / "sft" / "checkpoints", 1, {"model": model.state_dict()}, state, files)


def test_a_chat_engine_reports_once_whether_zeros_are_skipped(checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(session_module, "choose_dtype", lambda device: torch.float32)
    messages: list[str] = []
    load_chat_engine(checkpoint, "cpu", notify=messages.append)
    assert messages == [], "small matrices are not measured"
    monkeypatch.setattr(zero_skipping, "MIN_WEIGHT_NUMEL", 0)
    engine, state = load_chat_engine(checkpoint, "cpu", notify=messages.append)
    assert len(messages) == 1 and "zeros after ReLU^2" in messages[0]
    assert state["model"]["depth"] == 1 and engine.context == 64
