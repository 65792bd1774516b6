"""Pairs in every common shape are the same two conversations; a malformed one is one line."""

import json

import pytest

from fledgling.config import UserError
from fledgling.text.preferences import NothingToLearnError, parse_judged, parse_pair

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello."), ("assistant", "No."))
)
EXPECTED = ({"messages": [USER, GOOD]}, {"messages": [USER, BAD]})
SHAPES = {
    "texts": {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},  # TRL, explicit prompt
    "whole conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},  # TRL, implicit prompt
    "conversations and a prompt": {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback
    "dialogues": {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},  # HH
    "ShareGPT": {  # LLaMA-Factory
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "Alpaca": {"instruction": "Hi", "input": "", "chosen": "Hello.", "rejected": "No."},
    "question": {"question": "Hi", "chosen": "Hello.", "rejected": "No."},  # Intel's Orca pairs
    "OpenAI": {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    },
    "messages before": {"messages": [USER], "chosen": "Hello.", "rejected": "No."},
    "capitals": {"Prompt": "Hi", "Chosen": "Hello.", "REJECTED": "No."},
    "lists as Python writes them": {"prompt": "Hi", "chosen": repr([USER, GOOD]), "rejected": repr([USER, BAD])},
    "messages as text": {"prompt": "Hi", "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
    "OpenAI's as text": {
        "input": json.dumps({"messages": [USER]}),
        "preferred_output": json.dumps([GOOD]),
        "non_preferred_output": json.dumps([BAD]),
    },
    "ms-swift": {"messages": [USER, GOOD], "rejected_response": "No."},
    "ms-swift, all messages": {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
    "ms-swift, query and response": {"query": "Hi", "response": "Hello.", "rejected_response": "No."},
    "Argilla": {"instruction": "Hi", "chosen_response": "Hello.", "rejected_response": "No."},  # axolotl
    "ranks": {  # Nectar
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "Ho.", "rank": 3.0}, {"answer": "No.", "rank": 2.0}, {"answer": "Hello.", "rank": 1.0}],
    },
    "a dialogue before": {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello.", "rejected": "No."},
    "lists as text": {"chosen": json.dumps([USER, GOOD]), "rejected": json.dumps([USER, BAD])},  # of a .csv
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pair_of_any_shape_is_two_conversations(shape):
    assert parse_pair(SHAPES[shape], "here") == EXPECTED
    assert parse_judged(SHAPES[shape], "here") == [(EXPECTED[0], True), (EXPECTED[1], False)]


def test_a_prompt_keeps_its_system_message_and_its_columns_may_have_other_names():
    row = {"system": "S", "Frage": "Hi", "gut": "Hello.", "schlecht": "No."}
    columns = {"prompt": "Frage", "chosen": "gut", "rejected": "schlecht"}
    swift = {"messages": [USER, GOOD], "schlecht": "No."}
    assert parse_pair(swift, "here", {"rejected": "schlecht"}) == EXPECTED
    system = {"role": "system", "content": "S"}
    assert parse_pair(row, "here", columns) == tuple({"messages": [system, USER, answer]} for answer in (GOOD, BAD))


def test_the_words_with_which_two_texts_begin_are_the_prompt():
    good, bad = parse_pair({"chosen": "The sky is blue.", "rejected": "The sky is bleak."}, "here")  # TRL, standard
    assert [m["content"] for m in good["messages"]] == ["The sky is", " blue."]
    assert [m["content"] for m in bad["messages"]] == ["The sky is", " bleak."]
    good, _ = parse_pair({"system": "S", "chosen": "The sky is", "rejected": "The sky is green."}, "here")
    assert [m["content"] for m in good["messages"]] == ["S", "The sky", " is"]


def test_a_system_column_precedes_whole_conversations():
    system = {"role": "system", "content": "S"}
    for row in ({"prompt": "Hi", **SHAPES["whole conversations"]}, SHAPES["ms-swift, all messages"]):
        pair = parse_pair({"system": "S", **row}, "here")  # axolotl's chatml.ultra
        assert [each["messages"] for each in pair] == [[system, USER, GOOD], [system, USER, BAD]]


def test_answers_with_calls_follow_the_prompt():
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    row = {"prompt": [USER], "chosen": [call, {"role": "tool", "content": "5"}, GOOD], "rejected": [BAD]}
    good, bad = parse_pair(row, "here")
    assert [part["type"] for part in good["messages"][1]["content"]] == ["python", "output", "text"]
    assert bad == EXPECTED[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_two_answers_that_are_the_same_teach_nothing(shape):
    row = json.loads(json.dumps(SHAPES[shape]).replace("No.", "Hello."))
    for parse in (parse_pair, parse_judged):
        with pytest.raises(NothingToLearnError, match="here: the chosen and the rejected answer are the same"):
            parse(row, "here")


def test_numbers_are_answers():
    good, bad = parse_pair({"prompt": 2, "chosen": 4, "rejected": 5.5}, "here")
    assert [m["content"] for m in good["messages"]] == ["2", "4"] and bad["messages"][-1]["content"] == "5.5"


@pytest.mark.parametrize("label", [True, "true", 1, "1", 1.0, " True"])
def test_a_judged_answer_has_a_label(label):
    assert parse_judged({"prompt": "Hi", "completion": "Hello.", "label": label}, "here") == [(EXPECTED[0], True)]
    row = {"messages": [USER, BAD], "kto_tag": False}
    assert parse_judged(row, "here") == [(EXPECTED[1], False)]
    for row in ({"completion": [USER, BAD]}, {"chosen": [USER], "completion": [BAD]}):  # axolotl's argilla_chat
        assert parse_judged({**row, "label": False}, "here") == [(EXPECTED[1], False)]


MALFORMED = {
    'no "rejected" in the columns': {"prompt": "Hi", "chosen": "Hello."},
    'no "chosen" in the columns none': {},
    "begin with different words": {"chosen": "Hello.", "rejected": "No."},
    "is not the assistant's": {"messages": [USER], "rejected_response": "No."},
    'no "chosen" in the columns prompt, rejected_response': {"prompt": "Hi", "rejected_response": "No."},
    'no "chosen" in the columns prompt, answers': {"prompt": "Hi", "answers": [{"answer": "Hello.", "rank": 1}]},
    "has no text": {"prompt": "Hi", "chosen": "Hello.", "rejected": " "},
    "a tool's result follows no call": {
        "prompt": [USER, {"role": "tool", "content": "5"}],
        "chosen": [GOOD],
        "rejected": [BAD],
    },
    "an answer is dict": {"prompt": "Hi", "chosen": {"a": 5}, "rejected": "No."},
    "PATH?prompt=COLUMN&chosen=COLUMN&rejected=COLUMN": {"gut": "Hello.", "schlecht": "No."},
    "differ before their last message": {"chosen": [USER, GOOD], "rejected": [{**USER, "content": "Ho"}, BAD]},
    "a list, not an object": [USER, GOOD],
}


@pytest.mark.parametrize("problem", MALFORMED)
def test_a_malformed_pair_is_one_line(problem):
    with pytest.raises(UserError) as error:
        parse_pair(MALFORMED[problem], "pairs.jsonl:3")
    line = str(error.value)
    assert line.startswith("pairs.jsonl:3: ") and problem in line and "expected {" in line and "\n" not in line


def test_an_answer_without_a_label_is_one_line():
    for row in ({"prompt": "Hi", "completion": "x"}, {"prompt": "Hi", "completion": "x", "label": "maybe"}, [USER]):
        with pytest.raises(UserError, match="here: no label that is true or false"):
            parse_judged(row, "here")
    with pytest.raises(UserError, match=r"in the columns prompt, good; name yours after the path: PATH\?label=COLUMN"):
        parse_judged({"prompt": "Hi", "good": 1}, "here")
