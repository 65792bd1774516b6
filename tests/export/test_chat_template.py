"""Tests that the chat template renders our conversation format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledgling.config import UserError
from fledgling.export import write_hf
from fledgling.export.chat_template import read_chat_template
from fledgling.text.conversation import render_conversation, render_prompt

CONVERSATIONS = [
    [{"role": "user", "content": "  the fox? "}],
    [
        {"role": "system", "content": "again\n"},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "the\n\nlazy dog "},
        {"role": "user", "content": [{"type": "text", "text": "12 "}, {"type": "text", "text": "times"}]},
    ],
]


ANSWER = {
    "role": "assistant",
    "content": [
        {"type": "text", "text": "jumps "},
        {"type": "python", "text": "1+2"},
        {"type": "output", "text": "3"},
        {"type": "text", "text": " over"},
    ],
}


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_template_matches_our_conversation_format(messages, make, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make("llama")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    reference = transformers.AutoTokenizer.from_pretrained(out)
    printed = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert printed == render_prompt(tokenizer, {"messages": messages})
    whole = [*messages, ANSWER]
    assert (
        reference.apply_chat_template(whole)["input_ids"]
        == render_conversation(tokenizer, {"messages": whole}).tokens.tolist()
    )
    assert reference.eos_token_id == tokenizer.assistant_end and reference.bos_token_id == tokenizer.bos
    assert reference.model_max_length == 128


CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "ü": [3]}}}
OTHER = {"id": "b", "function": {"name": "look", "arguments": '{"q": "the fox"}'}}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds <b>.", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}},
]
MESSAGE = st.one_of(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "developer", "user", "assistant"]),
        st.sampled_from(["the fox", " ", "", None, "again\n", [{"type": "text", "text": "lazy"}], ["dog ", "12"]]),
    ),
    st.builds(
        lambda content, calls: {"role": "assistant", "content": content, "tool_calls": calls},
        st.sampled_from([None, "over"]),
        st.lists(st.sampled_from([CALL, OTHER, {"function": {"name": "now"}}]), min_size=1, max_size=3),
    ),
    st.builds(
        lambda role, given: {"role": role, **given},
        st.sampled_from(["tool", "function"]),
        st.sampled_from(
            [{"tool_call_id": i, "content": text} for i in "ab" for text in ("5", None)] + [{"content": "7"}]
        ),
    ),
)


@pytest.fixture(scope="module")
def renderer():
    """The template as transformers compiles it."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(read_chat_template())


@given(messages=st.lists(MESSAGE, min_size=1, max_size=7), tools=st.sampled_from([None, TOOLS]))
def test_any_history_becomes_the_turns_that_our_rule_makes(renderer, tokenizer, messages, tools):
    from jinja2.exceptions import TemplateError

    try:
        expected = render_conversation(tokenizer, {"messages": messages, "tools": tools}).tokens.tolist()
    except UserError as error:
        assert "no message of the user" in str(error), messages
        with pytest.raises(TemplateError, match="no message of the user"):
            renderer.render(messages=messages, tools=tools)
        return
    assert renderer.render(messages=messages, tools=tools) == tokenizer.decode(expected)


def test_a_history_with_tools_has_the_same_ids(make, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make("llama")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    messages = [
        {"role": "system", "content": "again"},
        {"role": "user", "content": "the fox"},
        {"role": "assistant", "content": None, "tool_calls": [CALL, OTHER]},
        {"role": "tool", "tool_call_id": "b", "content": "jumps"},
        {"role": "tool", "tool_call_id": "a", "content": "5"},
    ]
    reference = transformers.AutoTokenizer.from_pretrained(out)
    printed = reference.apply_chat_template(messages, tools=TOOLS)["input_ids"]
    assert printed == render_conversation(tokenizer, {"messages": messages, "tools": TOOLS}).tokens.tolist()
