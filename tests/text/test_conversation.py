"""Conversations: tokens, masks and turn ends computed by hand, and what is rejected."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.text.conversation import check_conversation, render_conversation, render_conversations, render_prompt
from fledgling.text.tokenizer import SPECIAL_TOKENS, Tokenizer


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """A tokenizer of bytes and special tokens only, so that the ids of a text are known."""
    return Tokenizer.train([], 256 + len(SPECIAL_TOKENS), letter_tokens=False)


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def make_conversation(*messages):
    return {"messages": list(messages)}


def spell(tokenizer, rendered):
    """Returns (token, is target) pairs, with special tokens by name and bytes as characters."""
    return [
        (tokenizer.decode([index]), bool(supervised))
        for index, supervised in zip(rendered.tokens, rendered.mask, strict=True)
    ]


def test_two_turns_are_rendered_as_by_hand(bytewise):
    rendered = render_conversation(bytewise, make_conversation(user("Hi"), assistant("yo"), user("?"), assistant("!")))
    assert spell(bytewise, rendered) == [
        ("<|bos|>", False),
        ("<|user_start|>", False), ("H", False), ("i", False), ("<|user_end|>", False),
        ("<|assistant_start|>", False), ("y", True), ("o", True), ("<|assistant_end|>", True),
        ("<|user_start|>", False), ("?", False), ("<|user_end|>", False),
        ("<|assistant_start|>", False), ("!", True), ("<|assistant_end|>", True),
    ]  # fmt: skip
    assert rendered.turn_ends == [9, 15]
    assert rendered.tokens.dtype == "int32"
    assert rendered.mask.dtype == bool


def test_a_tool_call_is_supervised_and_its_output_is_not(bytewise):
    parts = [
        {"type": "text", "text": "a"},
        {"type": "python", "text": "1+1"},
        {"type": "output", "text": "2"},
        {"type": "text", "text": "b"},
    ]
    rendered = render_conversation(bytewise, make_conversation(user("q"), assistant(parts)))
    assert spell(bytewise, rendered)[4:] == [
        ("<|assistant_start|>", False), ("a", True),
        ("<|python_start|>", True), ("1", True), ("+", True), ("1", True), ("<|python_end|>", True),
        ("<|output_start|>", False), ("2", False), ("<|output_end|>", False),
        ("b", True), ("<|assistant_end|>", True),
    ]  # fmt: skip
    assert rendered.turn_ends == [16]


def test_a_system_message_opens_the_first_user_turn_only(bytewise):
    conversation = make_conversation({"role": "system", "content": "S"}, user("a"), assistant("b"), user("c"))
    text = bytewise.decode(render_conversation(bytewise, conversation).tokens)
    assert text == (
        "<|bos|><|user_start|>S\n\na<|user_end|><|assistant_start|>b<|assistant_end|><|user_start|>c<|user_end|>"
    )


def test_a_prompt_is_a_prefix_of_the_conversation(bytewise):
    messages_so_far = make_conversation(user("Hi"), assistant("yo"), user("?"))
    prompt = render_prompt(bytewise, messages_so_far)
    rendered = render_conversation(bytewise, make_conversation(*messages_so_far["messages"], assistant("!")))
    assert prompt == rendered.tokens[: len(prompt)].tolist()
    assert prompt[-1] == bytewise.assistant_start


def test_a_prompt_that_ends_with_the_assistant_continues_its_message(bytewise):
    conversation = make_conversation(user("a"), assistant("The answer"))
    rendered = render_conversation(bytewise, conversation).tokens.tolist()
    assert [*render_prompt(bytewise, conversation), bytewise.assistant_end] == rendered


def test_what_renders_has_been_joined_by_the_rule_first(bytewise):
    separate = make_conversation(user("a"), user("b"), assistant(""), assistant("c"))
    together = make_conversation(user("a\n\nb"), assistant("c"))
    first, second = (render_conversation(bytewise, each) for each in (separate, together))
    assert first.tokens.tolist() == second.tokens.tolist() and first.mask.tolist() == second.mask.tolist()


def test_calls_in_parallel_are_supervised_and_their_results_are_not(bytewise):
    calls = [{"id": i, "function": {"name": i, "arguments": "{}"}} for i in "xy"]
    results = [{"role": "tool", "tool_call_id": i, "content": i.upper()} for i in "yx"]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    rendered = render_conversation(bytewise, make_conversation(user("q"), message, *results, assistant("b")))
    learned = bytewise.decode(rendered.tokens[rendered.mask])
    call = '<|python_start|>{"name": "%s", "arguments": {}}<|python_end|>'
    assert learned == call % "x" + call % "y" + "b<|assistant_end|>"
    text = bytewise.decode(rendered.tokens)
    assert "<|output_start|>X<|output_end|><|output_start|>Y<|output_end|>b" in text


names = st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "x", " "]), min_size=1, max_size=5).map("".join)


@given(text=names.filter(str.strip), tool=names, output=names)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_of_special_tokens_in_text_stay_text(tokenizer, text, tool, output):
    kinds = {"python": tool, "output": output, "text": text}
    parts = [{"type": kind, "text": value} for kind, value in kinds.items()]
    conversation = make_conversation({"role": "system", "content": text}, user(text), assistant(parts))
    rendered = render_conversation(tokenizer, conversation)
    special = [int(index) for index in rendered.tokens if index in set(tokenizer.special_tokens.values())]
    layout = "bos user_start user_end assistant_start python_start python_end output_start output_end"
    assert special == [tokenizer.special_tokens[f"<|{name}|>"] for name in [*layout.split(), "assistant_end"]]


def test_a_batch_is_rendered_like_single_conversations(tokenizer):
    parts = [{"type": "python", "text": "1"}, {"type": "output", "text": "1"}]
    conversations = [make_conversation(user(f"{number} is?"), assistant(parts)) for number in range(5)]
    conversations.append(
        make_conversation({"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d"))
    )
    for conversation, (many,) in zip(conversations, render_conversations(tokenizer, conversations), strict=True):
        one = render_conversation(tokenizer, conversation)
        assert one.tokens.tolist() == many.tokens.tolist()
        assert one.mask.tolist() == many.mask.tolist()
        assert one.turn_ends == many.turn_ends


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    (
        ({}, "has no messages"),
        ([], "has no messages"),
        ({"messages": []}, "has no messages"),
        (make_conversation(user("a"), user("b")), "messages 1 and 2 are both the user's"),
        (make_conversation(user("a"), assistant("b"), assistant("c")), "messages 2 and 3 are both the assistant's"),
        (make_conversation(assistant("a")), "message 1 is the assistant's; a conversation begins with the user's"),
        (make_conversation({"role": "system", "content": "a"}, assistant("b")), "2 is the assistant's; a conversation"),
        (make_conversation({"role": "system", "content": "a"}), "only a system message"),
        (make_conversation(user("a"), {"role": "system", "content": "b"}), "message 2 is a system message"),
        (make_conversation({"role": "tool", "content": "a"}), "role 'tool'"),
        (make_conversation("hello"), "role None"),
        (make_conversation(user("")), r"message 1 \(user\) is empty"),
        (make_conversation(user("a"), assistant([])), r"message 2 \(assistant\) is empty"),
        (make_conversation(user(None)), "content of type NoneType"),
        (make_conversation(user(7)), "content of type int"),
        (make_conversation(user([{"type": "python", "text": "1"}])), "part of type 'python'; expected text"),
        (make_conversation(user("a"), assistant([{"type": "image", "text": ""}])), "expected text or python or output"),
        (make_conversation(user("a"), assistant([{"type": "text", "text": 1}])), "whose text is not a string"),
        (make_conversation(user("a"), assistant([{"type": "output", "text": "1"}])), "follows no python part"),
    ),
)  # fmt: skip
def test_invalid_conversations_are_rejected_in_one_line(conversation, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        check_conversation(conversation)
    assert "\n" not in str(caught.value)
