"""The engine: tool calls inside answers, finish reasons, streaming."""

from __future__ import annotations

import itertools

import pytest

from fledgling.infer.detokenizer import decode_final_text
from fledgling.infer.engine import FinishEvent, GeneratedToken
from fledgling.infer.sampling import SamplingParams
from fledgling.text.conversation import render_conversation, render_prompt

GREEDY = SamplingParams(temperature=0, max_new_tokens=32)


def user_prompt(tokenizer, text: str) -> list[int]:
    return render_prompt(tokenizer, {"messages": [{"role": "user", "content": text}]})


def test_tool_output_is_forced_and_marked(adder, tokenizer) -> None:
    """The engine's tokens, and the mask of sampled tokens, are those of training on the same answer."""
    prompt = user_prompt(tokenizer, "add")
    [answer] = adder.generate([prompt], GREEDY)
    parts = [("text", "="), ("python", "2+3"), ("output", "5"), ("text", "!")]
    content = [{"type": kind, "text": text} for kind, text in parts]
    messages = [{"role": "user", "content": "add"}, {"role": "assistant", "content": content}]
    trained = render_conversation(tokenizer, {"messages": messages})
    assert prompt + answer.tokens == trained.tokens.tolist()
    assert [not forced for forced in answer.forced] == trained.mask[len(prompt) :].tolist()
    assert all(logprob == 0 for logprob, forced in zip(answer.logprobs, answer.forced, strict=True) if forced)
    assert all(logprob < 0 for logprob, f in zip(answer.logprobs, answer.forced, strict=True) if not f)
    assert answer.finish_reason == "stop"
    assert decode_final_text(tokenizer, answer.tokens) == "!"


def test_without_tools_no_token_is_forced(adder, tokenizer) -> None:
    [answer] = adder.generate([user_prompt(tokenizer, "add")], GREEDY, use_tools=False)
    assert not any(answer.forced) and answer.tokens[-2:] == [tokenizer.python_end, tokenizer.assistant_end]


@pytest.mark.parametrize("limit", range(1, 11))
def test_max_new_tokens_counts_all_tokens(adder, tokenizer, limit) -> None:
    sampling = SamplingParams(temperature=0, max_new_tokens=limit)
    [answer] = adder.generate([user_prompt(tokenizer, "add")], sampling)
    [full] = adder.generate([user_prompt(tokenizer, "add")], GREEDY)
    assert answer.tokens == full.tokens[:limit] and answer.forced == full.forced[:limit]
    assert answer.finish_reason == ("length" if limit < len(full.tokens) else "stop")


def test_a_stop_token_of_the_caller_ends_an_answer(adder, tokenizer) -> None:
    sampling = SamplingParams(temperature=0, stop_token_ids=(ord("="),))
    [answer] = adder.generate([user_prompt(tokenizer, "add")], sampling)
    assert (answer.tokens, answer.finish_reason) == ([ord("=")], "stop")


def test_hostile_expressions_get_an_error_as_text(tokenizer, chain) -> None:
    """A model that writes control tokens inside a call is answered with text, and control tokens stay out."""
    t = tokenizer
    steps = [t.assistant_start, t.python_start, t.user_start, t.output_end, t.python_end]
    engine = chain(dict(itertools.pairwise(steps)))
    [answer] = engine.generate([user_prompt(t, "x")], SamplingParams(temperature=0, max_new_tokens=40))
    forced = [token for token, f in zip(answer.tokens, answer.forced, strict=True) if f]
    assert forced[0] == t.output_start and t.output_end in forced
    inside = forced[1 : forced.index(t.output_end)]
    assert t.decode(inside).startswith("error: ") and not set(inside) & set(t.special_tokens.values())


def test_progress_is_reported_and_no_prompts_give_no_answers(adder, tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    prompt = [user_prompt(tokenizer, "add")] * 5
    adder.generate(prompt, GREEDY, max_batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5) and seen == sorted(seen)
    assert adder.generate([], GREEDY) == []


def test_stream_equals_generate(adder, tokenizer) -> None:
    prompt = user_prompt(tokenizer, "add")
    *tokens, end = adder.stream(prompt, GREEDY)
    [answer] = adder.generate([prompt], GREEDY)
    assert end == FinishEvent("stop")
    expected = zip(answer.tokens, answer.logprobs, answer.forced, strict=True)
    for token, (index, logprob, forced) in zip(tokens, expected, strict=True):
        assert isinstance(token, GeneratedToken)
        assert (token.id, token.forced) == (index, forced) and abs(token.logprob - logprob) < 1e-5
