"""Tests that the chat template renders our conversation format."""

import pytest

from fledgling.export import write_hf
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
