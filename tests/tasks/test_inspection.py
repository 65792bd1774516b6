"""`inspect_data` says of every kind of data what training would read of it."""

import gzip
import json
import os
import re

import pytest

from fledgling.config import UserError
from fledgling.corpora.prepare import read_source
from fledgling.tasks.conversations import load_conversations
from fledgling.tasks.inspected_rows import EXAMPLES
from fledgling.tasks.inspection import inspect_data
from fledgling.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.made_up_sets import write_public_sets

WORDS = re.split(
    " ", "the mill by the river turns its wheel all night and all day while the water runs under the bridge"
)


def turns(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_conversations_of_several_forms_are_counted_marked_and_measured(tmp_path):
    sharegpt = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    rows = [turns(f"Question {n}?", f"Answer {n}.") for n in range(300)]
    unanswered = {"messages": [*turns("a", "b")["messages"], {"role": "user", "content": "c"}]}
    source = write(tmp_path / "own.jsonl", [sharegpt, *rows, unanswered, {"messages": []}, {"text": "x"}])
    tokenizer = Tokenizer.train([], 256 + len(SPECIAL_TOKENS), letter_tokens=False)
    found = inspect_data(source, tokenizer, context=24, data_dir=tmp_path)
    assert found["kind"] == "conversations" and found["rows"] == 302
    assert found["forms"] == {"messages": 301, "ShareGPT": 1}
    assert found["left_out"]["rows"] == 2 and "own.jsonl:303" in found["left_out"]["first"]
    assert found["changed"] == {"without an answer": 1}
    assert len(found["examples"]) == EXAMPLES
    first = found["examples"][0]
    assert [piece["text"] for piece in first["pieces"] if piece["learned"]] == ["Hello.<|assistant_end|>"]
    assert "".join(piece["text"] for piece in first["pieces"]).startswith("<|bos|><|user_start|>Hi<|user_end|>")
    sizes = [5 + len(f"Question {n}?Answer {n}.") for n in range(300)] + [5 + 8, 5 + 2]
    assert found["total"] == sum(sizes) and found["lengths"]["longest"] == max(sizes)
    assert found["cut"] == {
        "context": 24,
        "rows": sum(size > 25 for size in sizes),
        "tokens": sum(max(0, size - 25) for size in sizes),
    }
    assert found["overlap"]["mmlu"].keys() == {"missing"}


@pytest.mark.parametrize("name", ["pairs.jsonl.gz", "pairs.json"])
def test_pairs_are_recognized_and_both_answers_shown(tmp_path, name):
    rows = [{"prompt": f"Say {n}.", "chosen": "Yes.", "rejected": "No."} for n in range(3)]
    content = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    found = inspect_data(f"chat:{tmp_path / name}", data_dir=tmp_path)
    assert found["kind"] == "pairs" and found["unit"] == "bytes" and found["cut"] is None
    learned = [piece["text"] for piece in found["examples"][0]["pieces"] if piece["learned"]]
    assert learned == ["Yes.<|assistant_end|>", "No.<|assistant_end|>"]


def test_pairs_of_the_same_answers_are_left_out(tmp_path):
    pair = {"messages": turns("Hi", "Yes.")["messages"], "rejected_response": "No."}
    source = write(tmp_path / "own.jsonl", [pair, {**pair, "rejected_response": "Yes."}])
    found = inspect_data(source, data_dir=tmp_path)
    assert (found["kind"], found["rows"], found["left_out"]["rows"]) == ("pairs", 1, 1)
    assert "own.jsonl:2: the chosen and the rejected answer are the same" in found["left_out"]["first"]


@pytest.mark.parametrize("name", ["m.json", "m.jsonl", "m.csv", "data.json", "rows.json"])
def test_messages_that_are_rows_are_one_line_and_no_documents(tmp_path, name):
    messages, path = turns("Hi", "Hello.")["messages"], tmp_path / name
    contents = {
        "m.json": json.dumps(messages),
        "m.jsonl": "\n".join(map(json.dumps, messages)),
        "m.csv": "role,content\nuser,Hi\nassistant,Hello.\n",
        "data.json": json.dumps({"data": messages}),
        "rows.json": json.dumps({"data": [{"messages": messages}]}),
    }
    path.write_text(contents[name])
    place = "data" if "data" in contents[name] else "one list"
    for read in (inspect_data, lambda source: load_conversations(source, "own")):
        with pytest.raises(UserError, match=place) as error:
            read(str(path))
        assert f"{name}:1" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"one list|no column text"):
        list(read_source(str(path), None))
    if name == "data.json":
        assert len(load_conversations(path, "own", {"messages": "data"})) == 1


def test_judged_answers_and_columns_of_other_names_are_read(tmp_path):
    source = write(tmp_path / "own.jsonl", [{"q": "Hi", "a": "Hello.", "good": n % 2 == 0} for n in range(4)])
    found = inspect_data(f"{source}?prompt=q&answer=a&label=good", data_dir=tmp_path)
    assert found["kind"] == "judged answers" and found["forms"] == {"desirable": 2, "not desirable": 2}
    assert inspect_data(f"{source}?prompt=q&answer=a", data_dir=tmp_path)["kind"] == "conversations"


def test_repeated_and_nearly_repeated_rows_are_counted(tmp_path):
    pytest.importorskip("rensa")
    text, other = " ".join(WORDS), " ".join([*WORDS[:-1], "bridges"])
    rows = [turns("Tell me.", text), turns("Tell me.", text.upper()), turns("Tell me.", other), turns("So?", "No.")]
    repeats = inspect_data(write(tmp_path / "own.jsonl", rows), data_dir=tmp_path)["repeats"]
    assert (repeats["exact"], repeats["near"]) == (1, 1)
    assert [[place.rpartition(":")[2] for place in pair] for pair in repeats["examples"]] == [["2", "1"]]


def test_documents_of_a_folder_are_counted_with_their_overlap_with_an_exam(tmp_path):
    root = write_public_sets(tmp_path / "data")
    item = next(json.loads(line) for line in (root / "evals/gsm8k/test.jsonl").read_text().splitlines())
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.md").write_text(f"Once: {item['question']} {item['answer']}")
    (folder / "b.txt").write_text(" ".join(WORDS))
    (folder / "c.pdf").write_text("no")
    found = inspect_data(str(folder), data_dir=root)
    assert found["kind"] == "documents" and found["rows"] == 2 and found["learned"] == found["total"]
    assert "passed over 1: 1 .pdf" in found["contents"]
    with_words = inspect_data(str(folder), exams=["gsm8k"], data_dir=root)["overlap"]["gsm8k"]
    assert with_words["items"] > 0 and all(match["row"] == "a.md" for match in with_words["matches"])


def test_more_rows_than_are_read_are_counted(tmp_path):
    source = write(tmp_path / "own.jsonl", [turns(str(n), "x") for n in range(30)])
    found = inspect_data(source, data_dir=tmp_path, max_rows=20)
    assert found["rows"] == 20 and found["more_rows"]
    assert not inspect_data(source, data_dir=tmp_path, max_rows=30)["more_rows"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [("", "it is empty"), ('{"messages": []}\n', "expected a list of messages"), ("{", "not JSON")],
)
def test_data_that_teaches_nothing_is_one_line(tmp_path, content, problem):
    (tmp_path / "own.jsonl").write_text(content)
    with pytest.raises(UserError, match="nothing to learn from") as error:
        inspect_data(str(tmp_path / "own.jsonl"), data_dir=tmp_path)
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_rows_that_are_not_utf8_are_counted_in_a_report_that_can_be_written(tmp_path):
    path = tmp_path / os.fsdecode(b"n\xfcme.csv")
    path.write_bytes(b"question,answer\nWho?,I.\nGr\xfc\xdfe?,Ja.\n")
    found = inspect_data(str(path), data_dir=tmp_path)
    json.dumps(found, ensure_ascii=False).encode()
    assert found["rows"] == 1 and found["left_out"]["rows"] == 1
    assert "csv:2: not UTF-8" in found["left_out"]["first"] and "iconv" in found["left_out"]["first"]


@pytest.mark.parametrize(
    ("named", "problem"),
    [
        ("?prompt=Frgae&answer=Antwort", 'no row has the column "Frgae" that ?prompt= names - did you mean "Frage"?'),
        ("?chosen=x&rejected=Antwort", 'no row has the column "x" that ?chosen= names'),
        ("?label=good", 'no row has the column "good" that ?label= names'),
        ("", "name yours after the path: PATH?text=COLUMN of documents, PATH?prompt=COLUMN&answer=COLUMN of"),
        ("?text=Frage&prompt=Frage", "?prompt= names no column of documents; expected ?text="),
    ],
)
def test_columns_that_are_not_there_or_not_named_are_one_line(tmp_path, named, problem):
    (tmp_path / "own.csv").write_text("Frage,Antwort\nWer?,Ich.\n")
    with pytest.raises(UserError) as error:
        inspect_data(f"{tmp_path / 'own.csv'}{named}", data_dir=tmp_path)
    assert problem in str(error.value) and "own.csv" in str(error.value) and "\n" not in str(error.value)
