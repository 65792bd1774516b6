"""Every form of conversations, as its project documents it, teaches the assistant's text and nothing else."""

import json
from collections import Counter

import pytest

from fledgling.config import UserError
from fledgling.text.conversation import render_conversation
from fledgling.text.forms import parse_conversation, recognize_form
from fledgling.text.tokenizer import SPECIAL_TOKENS, Tokenizer

Q, A = "What is 2 + 3?", "5."
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '{"name": "add", "arguments": {"a": 2, "b": 3}}'
END, PYTHON = "<|assistant_end|>", f"<|python_start|>{CALL}<|python_end|>"

GOLDEN = {  # form -> row, and the text that is learned
    "messages": ({"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]}, A + END),
    "list of messages": ([{"role": "user", "content": Q}, {"role": "assistant", "content": A}], A + END),
    "conversations": (
        {"conversations": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]},
        A + END,
    ),
    "ShareGPT": (
        {"id": "1", "conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}], "system": "Add."},
        A + END,
    ),
    "ms-swift's ShareGPT": ({"system": "S", "conversation": [{"human": Q, "assistant": A}]}, A + END),
    "completion": (
        {"completion": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}], "system": "S"},
        A + END,
    ),
    "ShareGPT with tools": (  # as LLaMA-Factory documents it: tools are the text of a list
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "function_call", "value": CALL},
                {"from": "observation", "value": "5"},
                {"from": "gpt", "value": A},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        PYTHON + A + END,
    ),
    "Hermes": (
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "gpt", "value": f"<tool_call>\n{CALL}\n</tool_call>"},
                {"from": "tool", "value": "<tool_response>\n5\n</tool_response>"},
                {"from": "gpt", "value": A},
            ],
        },
        PYTHON + A + END,
    ),
    "messages, one not to be learned": (
        {
            "messages": [
                {"role": "user", "content": Q},
                {"role": "assistant", "content": "4", "training": False},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": A, "loss": True},
            ],
        },
        A + END,
    ),
    "instruction, input, output": ({"instruction": "Add.", "input": "2 3", "output": A}, A + END),
    "instruction, output": (
        {"instruction": Q, "input": "", "output": A, "system": "S", "history": [["Hi", "Hello."], ["Ho", "Hey."]]},
        f"Hello.{END}Hey.{END}{A}{END}",
    ),
    "instruction, context, response": ({"instruction": "Add.", "context": "2 3", "response": A}, A + END),  # Dolly
    "prompt, completion": ({"prompt": Q, "completion": A}, A + END),
    "prompt, completion of messages": (
        {"prompt": [{"role": "user", "content": Q}], "completion": [{"role": "assistant", "content": A}]},
        A + END,
    ),
    "question, answer": ({"question": Q, "answer": A}, A + END),
    "question, response": ({"system_prompt": "S", "question": Q, "response": A}, A + END),  # OpenOrca
    "query, response": ({"query": Q, "response": A}, A + END),
    "OpenAI's": (
        {
            "messages": [
                {"role": "developer", "content": "Add."},
                {"role": "user", "content": [{"type": "text", "text": Q}]},
                {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": json.loads(CALL)}]},
                {"role": "tool", "tool_call_id": "c", "content": "5"},
                {"role": "assistant", "content": A},
            ],
            "tools": [TOOL],
            "parallel_tool_calls": False,
        },
        PYTHON + A + END,
    ),
    "OpenAI's with weights": (
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Bad.", "weight": 0},
                {"role": "user", "content": Q},
                {"role": "assistant", "content": A, "weight": 1},
            ]
        },
        A + END,
    ),
    "own parts": (
        {
            "messages": [
                {"role": "user", "content": Q},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "python", "text": "2+3"},
                        {"type": "output", "text": "5"},
                        {"type": "text", "text": A},
                    ],
                },
            ]
        },
        f"<|python_start|>2+3<|python_end|>{A}{END}",
    ),
    "capitals": ({"System": "S", " Question": Q, "ANSWER": A}, A + END),
    "numbers": ({"question": f"{Q} 7", "answer": 7, "system": 3}, f"7{END}"),
    "false": ({"question": Q, "answer": False, "solution": None}, f"false{END}"),
    "a number in a message": ([{"role": "user", "content": Q}, {"role": "assistant", "content": 0}], f"0{END}"),
    "empty columns of other forms": (
        {
            "messages": "",
            "prompt": " ",
            "question": Q,
            "output": float("nan"),
            "answer": A,
            "tools": "",
            "history": "[]",
        },
        A + END,
    ),
    "keys of two forms": (  # as parquet has them, where one column holds both
        {
            "messages": [
                {"role": None, "from": "human", "content": None, "value": Q},
                {"role": "assistant", "from": None, "content": A, "value": None},
            ]
        },
        A + END,
    ),
    "history as text": (
        {"instruction": Q, "history": '[["Hi", 5]]', "output": A},
        f"5{END}{A}{END}",
    ),
    "a message for each": (
        {"prompt": {"role": "user", "content": Q}, "completion": json.dumps({"role": "assistant", "content": A})},
        A + END,
    ),
    "an answer in JSON": ({"question": Q, "answer": '[{"sum": 5}]'}, '[{"sum": 5}]' + END),
    "a list as text": (
        {"messages": json.dumps([{"role": "user", "content": Q}, {"role": "assistant", "content": A}])},
        A + END,
    ),
}


NAMES = (
    "messages",
    "list of messages",
    "completion",
    "ShareGPT",
    "prompt, completion",
    "question, answer",
    "instruction, output",
)


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """A tokenizer of bytes and special tokens only."""
    return Tokenizer.train([], 256 + len(SPECIAL_TOKENS), letter_tokens=False)


@pytest.mark.parametrize("form", GOLDEN)
def test_the_assistants_text_alone_is_learned(bytewise, form):
    row, learned = GOLDEN[form]
    rendered = render_conversation(bytewise, parse_conversation(row, "here"))
    assert bytewise.decode(rendered.tokens[rendered.mask]) == learned
    text = bytewise.decode(rendered.tokens)
    assert text.startswith("<|bos|><|user_start|>") and text.endswith(learned[-len(END) - 1 :])
    assert Q in text or "Add.\n2 3" in text


@pytest.mark.parametrize("form", GOLDEN)
def test_a_form_is_named(form):
    name = recognize_form(GOLDEN[form][0])
    assert name == form or name in NAMES


MALFORMED = {
    "no form of a conversation has the columns text": {"text": "A document."},
    "expected a list of messages, got str 'Hi'": {"messages": "Hi"},
    "expected a list of messages, got list '[]'": {"messages": []},
    "message 2 is str": {"messages": [{"role": "user", "content": Q}, A]},
    'message 1 has no "role"': {"messages": [{"content": Q}]},
    "has the role 'moderator'": {"messages": [{"role": "moderator", "content": Q}]},
    "has content of type dict": {"messages": [{"role": "user", "content": {}}]},
    "a part of type 'image_url'": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    "no message of the user has text": {
        "messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": A}]
    },
    "no message of the assistant follows": [{"role": "user", "content": Q}],
    "no answer in the columns prompt": {"prompt": Q},
    "an answer is dict \"{'sum': 5}\"; expected text or messages": {"question": Q, "answer": {"sum": 5}},
    "an answer is list": {"question": Q, "answer": ["5"]},
    "an answer is bytes": {"question": Q, "answer": b"5"},
    '"question" is bytes': {"question": b"5", "answer": A},
    "begins as messages do": {"question": '[{"role": "user", "content": "x"', "answer": A},
    "history is list": {"instruction": Q, "output": A, "history": [["Hi"]]},
    "is a call, but no JSON": {
        "conversations": [{"from": "human", "value": Q}, {"from": "function_call", "value": "{"}]
    },
    "a tool's result follows no call": [
        {"role": "user", "content": Q},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": A},
    ],
    "history is int": {"instruction": Q, "output": A, "history": 3},
    "tools are str": {"prompt": Q, "completion": A, "tools": "add"},
    "tools are int": {"prompt": Q, "completion": A, "tools": 5},
    "tools are bool": {"prompt": Q, "completion": A, "tools": True},
    '"input" is dict': {"instruction": Q, "output": A, "input": {}},
    "; name yours after the path: PATH?prompt=COLUMN&answer=COLUMN": {"Frage": Q, "Antwort": A},
    "has the columns a\\nb; name": {"a\nb": Q},
    "the weight 0.5": [{"role": "user", "content": Q}, {"role": "assistant", "content": A, "weight": 0.5}],
    "nothing to learn": [{"role": "user", "content": Q}, {"role": "assistant", "content": A, "weight": 0}],
    "a tool call without a name": {
        "messages": [{"role": "user", "content": Q}, {"role": "assistant", "tool_calls": [{"type": "function"}]}]
    },
}


@pytest.mark.parametrize("problem", MALFORMED)
def test_a_row_that_is_no_conversation_is_one_line(problem):
    with pytest.raises(UserError) as error:
        parse_conversation(MALFORMED[problem], "data.jsonl:7")
    line = str(error.value)
    assert line.startswith("data.jsonl:7: ") and problem in line and "\n" not in line
    assert "; expected {" in line or "nothing to learn" in line


def test_what_is_changed_is_counted():
    changes = Counter()
    messages = [("system", "A"), ("system", "B"), ("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    row = {"messages": [{"role": role, "content": text} for role, text in messages]}
    conversation = parse_conversation(row, "here", None, changes)
    assert [m["content"] for m in conversation["messages"]] == ["A\n\nB", "a\n\nb", "c"]
    assert changes == {"joined": 2, "not answered": 1}


def test_columns_of_other_names_are_mapped_and_come_before_the_usual_ones():
    row = {"Frage": Q, "Antwort": A, "output": "no", "prompt": "no"}
    columns = {"prompt": "Frage", "answer": "Antwort"}
    assert recognize_form(row, columns) == "prompt, answer"
    conversation = parse_conversation(row, "here", columns)
    assert [m["content"] for m in conversation["messages"]] == [Q, A]


def test_named_columns_may_differ_in_case_and_the_exact_name_comes_first():
    for row in ({"FRAGE ": Q, "antwort": A}, {"frage": "no", "Frage": Q, "Antwort": A, "ANTWORT": "no"}):
        conversation = parse_conversation(row, "here", {"prompt": "Frage", "answer": "Antwort"})
        assert [m["content"] for m in conversation["messages"]] == [Q, A]
    exact = parse_conversation({"Question": "no", "question": Q, "answer": A, "Answer": "no"}, "here")
    assert [m["content"] for m in exact["messages"]] == [Q, A]


def test_a_call_nested_too_deeply_is_one_line():
    deep = "[" * 990 + "]" * 990
    call = {"name": "add", "arguments": {"a": json.loads(deep[50:-50])}}
    for _ in range(100):
        call["arguments"] = {"a": call["arguments"]}
    with pytest.raises(UserError, match="here: nested too deeply"):
        parse_conversation([{"role": "user", "content": Q}, {"role": "assistant", "tool_calls": [call]}], "here")
