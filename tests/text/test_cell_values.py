"""A cell may hold a number, or a list as JSON, Python or numpy writes it; JSON that is no message stays text."""

import json
from decimal import Decimal

import pytest

from fledgling.config import UserError
from fledgling.text.cell_values import MAX_LITERAL, describe_kind, parse_list, parse_messages, read_scalar

MESSAGES = [{"role": "user", "content": 'Hi } { "x" it\'s'}, {"role": "assistant", "content": "A\nB"}]
WRITTEN = {
    "JSON": json.dumps(MESSAGES),
    "JSON with space": f" \n{json.dumps(MESSAGES, indent=2)} ",
    "Python": repr(MESSAGES),
    "numpy, two lines": f"[{MESSAGES[0]!r}\n {MESSAGES[1]!r}]",
    "numpy, one line": f"[{MESSAGES[0]!r} {MESSAGES[1]!r}]",
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_list_is_read_as_others_write_it(kind):
    assert parse_list(WRITTEN[kind]) == parse_messages(WRITTEN[kind]) == MESSAGES


@pytest.mark.parametrize(
    "text",
    [
        "Hi",
        "",
        "[1",
        "{a}",
        "[" * 5000,
        "[{'a': " + "[" * 300,
        "[__import__('os')]",
        f"['{'x' * MAX_LITERAL}']",
        "[\0]",
    ],
)
def test_a_text_that_is_no_list_is_itself(text):
    assert parse_list(text) is text


@pytest.mark.parametrize(
    "text",
    [
        '[{"name": "Bob", "age": 3}]',
        '{"role": "admin", "name": "Bob"}',
        '[{"from": "Bonn", "to": "Rome"}]',
        '{"value": 3',
        "[1, 2]",
        '"role": "user"',
    ],
)
def test_an_answer_in_json_that_is_no_message_stays_text(text):
    assert parse_messages(text) is text


@pytest.mark.parametrize("text", ['[{"role": "user", "content": "x"}', " [ {'content': nan}]", '{"role": "user"'])
def test_messages_that_cannot_be_read_are_one_line(text):
    with pytest.raises(UserError, match="begins as messages do is no list of JSON or Python") as error:
        parse_messages(text)
    assert "\n" not in str(error.value)


def test_numbers_and_truths_are_text():
    assert list(map(read_scalar, (4, 4.5, Decimal("1.50"), True, False))) == ["4", "4.5", "1.50", "true", "false"]
    assert read_scalar(None) is None and read_scalar([4]) == [4]


def test_a_kind_is_short_however_long_the_value():
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert len(describe_kind(deep)) < 60 and describe_kind("x" * 99) == f"str '{'x' * 40}'"
