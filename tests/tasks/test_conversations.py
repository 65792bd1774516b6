"""A user's conversations and SmolTalk: every row once an epoch, and errors with file and line."""

import json

import pytest
import zstandard

from fledgling.config import UserError
from fledgling.tasks import load_source
from fledgling.text.conversation import check_conversation
from tests.made_up_sets import write_public_sets, write_rows


def write_lines(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def make_conversation(*roles):
    return {"messages": [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]}


def test_own_conversations_come_once_an_epoch(tmp_path):
    lines = [make_conversation("user", "assistant") | {"id": n} for n in range(5)]
    for n, line in enumerate(lines):
        line["messages"][0]["content"] = f"question {n}"
    path = write_lines(tmp_path / "own.jsonl", *lines, "", make_conversation("system", "user", "assistant"))
    dataset = load_source(f"chat:{path}")
    epoch = [dataset.get_train_conversation(i, 1) for i in range(6)]
    assert len({json.dumps(c) for c in epoch}) == 6
    assert any(epoch != [dataset.get_train_conversation(i, 1) for i in range(6 * n, 6 * n + 6)] for n in (1, 2, 3))
    for conversation in epoch:
        check_conversation(conversation)


def test_conversations_come_once_an_epoch_from_blocks_of_any_kind(tmp_path):
    smoltalk = load_source("smoltalk", write_public_sets(tmp_path / "data"))
    rows = [smoltalk.get_train_conversation(i, 3)["messages"][0]["content"] for i in range(100)]
    assert (
        len(smoltalk) == 50
        and len(set(rows[:50])) == 50
        and set(rows[:50]) == set(rows[50:])
        and rows[:50] != rows[50:]
    )
    many = [
        {"messages": [{"role": "user", "content": f"{n}"}, {"role": "assistant", "content": "yes"}]}
        for n in range(2500)
    ]
    lines = [line for row in many for line in (row, "\n")]  # empty lines are no rows
    dataset = load_source(f"chat:{write_rows(tmp_path / 'own.jsonl', lines)}")
    texts = [dataset.get_train_conversation(i, 1)["messages"][0]["content"] for i in range(2500)]
    assert sorted(map(int, texts)) == list(range(2500)) and texts != sorted(texts, key=int)
    assert dataset.get_train_conversation(1700, 1)["messages"][0]["content"] == texts[1700]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "not JSON"),
        ([1], "message 1 is int '1'; expected an object"),
        ({"conversation": []}, "expected a list of messages"),
        ({"text": "x"}, "no form of a conversation has the columns text"),
        (make_conversation("user"), "no message of the assistant"),
        ({"messages": [{"role": "moderator", "content": "x"}]}, "has the role 'moderator'"),
        ({"messages": [{"role": "user", "content": {}}]}, "has content of type dict"),
    ],
)
def test_a_bad_line_of_few_is_one_message_with_file_and_line(tmp_path, line, problem):
    path = write_lines(tmp_path / "own.jsonl", make_conversation("user", "assistant"), line)
    with pytest.raises(UserError) as error:
        load_source(f"chat:{path}")
    message = str(error.value)
    assert f"{path}:2: " in message and problem in message and "expected {" in message and "\n" not in message


def test_a_bad_line_among_many_is_an_error_of_its_own_row_alone(tmp_path):
    path = write_lines(tmp_path / "own.jsonl", "{torn", *[make_conversation("user", "assistant")] * 100)
    dataset = load_source(f"chat:{path}")
    found = 0
    for index in range(len(dataset)):
        try:
            check_conversation(dataset.get_train_conversation(index, 0))
        except UserError as error:
            found += str(error).startswith(f"{path}:1: not JSON")
    assert len(dataset) == 101 and found == 1


def test_a_file_of_any_form_is_read_and_what_is_changed_is_reported(tmp_path):
    sharegpt = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    unanswered = make_conversation("system", "system", "user", "assistant", "user")
    path = write_lines(
        tmp_path / "own.ndjson", sharegpt, [*make_conversation("user", "assistant")["messages"]], unanswered
    )
    dataset = load_source(f"chat:{path}")
    assert {len(dataset.get_train_conversation(index, 0)["messages"]) for index in range(3)} == {2, 3}
    assert dataset.contents == "messages changed: 1 joined to the one before, 1 without an answer"
    (tmp_path / "fragen.csv").write_text("Frage,Antwort\nWer?,Ich.\n")
    dataset = load_source(f"chat:{tmp_path / 'fragen.csv'}?prompt=Frage&answer=Antwort")
    assert [message["content"] for message in dataset.get_train_conversation(0, 0)["messages"]] == ["Wer?", "Ich."]


def test_a_file_that_is_missing_empty_or_not_utf8_is_named(tmp_path):
    for path, problem in (
        (tmp_path / "none.jsonl", "cannot read"),
        (write_lines(tmp_path / "empty.jsonl", ""), "holds no conversation"),
    ):
        with pytest.raises(UserError, match=problem):
            load_source(f"chat:{path}")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load_source(f"chat:{tmp_path / 'latin.jsonl'}")


def test_a_folder_of_conversations_says_what_it_passes_over(tmp_path):
    lines = [json.dumps(make_conversation("user", "assistant")) for _ in range(3)]
    (tmp_path / "a.jsonl").write_text(lines[0] + "\n")
    (tmp_path / "b.json").write_text("[" + ", ".join(lines) + "]")
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    (tmp_path / "d.txt").write_text("x")
    (tmp_path / ".old.jsonl").write_text("broken")
    source = load_source(f"chat:{tmp_path}")
    assert len(source) == 7 and len({json.dumps(source.get_train_conversation(i, 0)) for i in range(7)}) == 1
    assert source.contents == (
        "3 files (1 .json, 1 .jsonl, 1 .jsonl.zst); passed over 2: 1 .txt (first: d.txt), 1 hidden (first: .old.jsonl)"
    )


def test_a_column_that_no_row_of_the_folder_has_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer\nWer?,Ich.\n")
    write_lines(tmp_path / "b.jsonl", {"Frage": "Wer?", "Antwort": "Ich."}, make_conversation("user", "assistant"))
    assert len(load_source(f"chat:{tmp_path}?prompt=Frage&answer=Antwort")) == 3  # one folder may mix forms
    for named, problem in (
        ("prompt=Frgae&answer=Antwort", 'no row has the column "Frgae" that ?prompt= names - did you mean "Frage"?'),
        ("prompt=Frage&answer=Antwort&text=x", "?text= names no column of a conversation; expected ?messages="),
    ):
        with pytest.raises(UserError) as error:
            load_source(f"chat:{tmp_path}?{named}")
        assert problem in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_rows_that_are_not_utf8_are_left_out_and_most_of_them_are_an_error(tmp_path):
    path = tmp_path / "own.csv"
    path.write_bytes(b"question,answer\n" + b"Who?,I.\n" * 200 + b"Gr\xfc\xdfe?,Ja.\n")
    dataset = load_source(f"chat:{path}")
    assert len(dataset) == 201
    path.write_bytes(b"question,answer\n" + b"Gr\xfc\xdfe?,Ja.\n" * 200)
    with pytest.raises(UserError, match=r"own.csv:1: not UTF-8 .*`iconv -f WINDOWS-1252"):
        load_source(f"chat:{path}")
