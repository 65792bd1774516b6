"""What is trained by a model's own template is what is asked: every learned answer follows the prompt of the server.

The templates do what those of Qwen 3, QwQ, DeepSeek R1 and V3.1 and Mistral do with the history and with thoughts.
"""

import json

import numpy as np
import pytest

from fledgling.config import UserError
from fledgling.infer.detokenizer import ThoughtSplitter, decode_final_text
from fledgling.text.conversation import begins_thought, render_conversation, render_conversations, render_prompt
from fledgling.text.tokenizer import Tokenizer
from fledgling.text.turns import normalize_turns
from tests.text.chat_templates import END, TALK, TEMPLATES, THINKING, tokenizer_of, train_plain


def learned_spans(row) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], row.mask, [False])).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize("talk", ["answers", "thoughts", "control token", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_answer_is_learned_after_the_prompt_that_asks_for_it(name, talk):
    tokenizer = tokenizer_of(TEMPLATES[name])
    messages = {"thoughts": THINKING, "answers": TALK}.get(talk, TALK)
    if talk == "control token":
        messages = [TALK[0], TALK[1], {"role": "user", "content": f"{END} <s>3"}, THINKING[3]]
    elif talk == "system":
        messages = [{"role": "system", "content": "be kind"}, *TALK] if "deepseek" not in name else TALK
    (rows,) = render_conversations(tokenizer, [{"messages": messages}])
    spans = [(row, *span) for row in rows for span in learned_spans(row)]
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(spans) == len(answers), "every answer is learned once"
    for (row, start, end), index in zip(spans, answers, strict=True):
        prompt = render_prompt(tokenizer, {"messages": messages[:index]})
        assert row.tokens[:start].tolist() == prompt
        text = tokenizer.decode(row.tokens[start:end].tolist())
        assert text.endswith(messages[index]["content"].rpartition("\n")[2] + END)
        whole = render_conversation(tokenizer, {"messages": messages[: index + 1]})
        assert whole.tokens.tolist() == row.tokens[:end].tolist()
        keeps_thoughts = name != "deepseek v3.1" and "think" in messages[index]["content"]
        assert ("it is 3\n</think>" in text) == keeps_thoughts
    dropped = str(messages).count("it is 3") if name == "deepseek v3.1" else 0
    assert sum(row.dropped_thoughts for row in rows) == dropped


EXPECTED = {  # template: what is learned of an answer, of one with a thought; rows of TALK
    "plain": ("brown", "<think>\nit is 3\n</think>\n\nbrown", 1),
    "qwen3": ("<think>\n\n</think>\n\nbrown", "<think>\nit is 3\n</think>\n\nbrown", 2),
    "qwen3 thinking": ("\n</think>\n\nbrown", "it is 3\n</think>\n\nbrown", 2),
    "qwq": ("\n</think>\n\nbrown", "it is 3\n</think>\n\nbrown", 2),
    "deepseek r1": ("\n</think>\n\nbrown", "it is 3\n</think>\n\nbrown", 2),
    "deepseek v3.1": ("brown", "\n\nbrown", 1),
    "late system": (" brown", " <think>\nit is 3\n</think>\n\nbrown", 1),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_is_what_the_template_writes_after_its_prompt(name):
    tokenizer = tokenizer_of(TEMPLATES[name])
    answer, thinking, rows = EXPECTED[name]
    for messages, expected in ((TALK, answer), (THINKING, thinking)):
        rendered = render_conversation(tokenizer, {"messages": messages})
        assert tokenizer.decode(rendered.tokens[rendered.mask].tolist()) == expected + END
        continued = render_prompt(tokenizer, {"messages": messages})
        assert tokenizer.decode(continued) == tokenizer.decode(rendered.tokens.tolist()).removesuffix(END)
    assert len(render_conversations(tokenizer, [{"messages": TALK}])[0]) == rows
    prompt = render_prompt(tokenizer, {"messages": TALK[:1]})
    assert begins_thought(tokenizer, prompt) == (name in ("qwen3 thinking", "qwq", "deepseek r1"))


def test_a_begun_thought_is_separated_from_the_answer():
    splitter = ThoughtSplitter(is_begun=True)
    assert [splitter.push(text) for text in ("it is", " 3\n</th", "ink>\n\nbr")][-1] == ("", "br")
    tokenizer = tokenizer_of(TEMPLATES["deepseek r1"])
    sampled = "it is 3\n</think>\n\nsays 12"
    assert decode_final_text(tokenizer, tokenizer.encode(sampled)) == "says 12"
    history = [TALK[0], {"role": "assistant", "content": sampled}, TALK[2]]
    assert render_prompt(tokenizer, {"messages": history}) == render_prompt(tokenizer, {"messages": THINKING[:3]})


def test_the_thought_of_a_message_is_in_its_text():
    for key in ("reasoning_content", "reasoning", "thinking"):
        messages, _ = normalize_turns([TALK[0], {**TALK[3], key: " it is 3\n"}])
        assert messages[1] == THINKING[3]
        assert normalize_turns([TALK[0], {**THINKING[3], key: "it is 3"}])[0] == messages


def test_an_answer_always_ends_with_a_token_that_stops_generation():
    template = "{% for m in messages %}{{ ('<|user|>' if m.role == 'user' else '<|sep|>') + m.content }}{% endfor %}"
    open_end = tokenizer_of(template + "{% if add_generation_prompt %}{{ '<|sep|>' }}{% endif %}")
    (rows,) = render_conversations(open_end, [{"messages": TALK[:2]}])
    assert rows[0].tokens[-1] == open_end.assistant_end and rows[0].mask[-1]


def test_the_end_of_an_answer_is_a_control_token_whatever_its_file_says():
    document = json.loads(json.dumps(train_plain().tokenizer_json))
    next(token for token in document["added_tokens"] if token["content"] == END)["special"] = False
    layout = {"chat_template": TEMPLATES["plain"], "bos_token": "<s>", "eos_token": END, "stop_ids": []}
    tokenizer = Tokenizer(document).with_layout(layout)
    assert render_prompt(tokenizer, {"messages": TALK[:1]}) == render_prompt(
        tokenizer_of(TEMPLATES["plain"]), {"messages": TALK[:1]}
    )
    assert tokenizer.assistant_end in tokenizer.end_tokens and tokenizer.assistant_end not in tokenizer.encode(END)


def test_an_answer_of_weight_0_is_not_learned():
    tokenizer = tokenizer_of(TEMPLATES["plain"])
    (rows,) = render_conversations(tokenizer, [{"messages": [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]}])
    assert [tokenizer.decode(row.tokens[row.mask].tolist()) for row in rows] == [f"brown{END}"]


def test_a_template_that_asks_otherwise_than_it_writes_is_named():
    tokenizer = tokenizer_of(TEMPLATES["plain"].replace("'<|im_start|>assistant\n'", "'<|sep|>'"))
    with pytest.raises(UserError, match="asks for an answer with"):
        render_conversations(tokenizer, [{"messages": TALK}])
