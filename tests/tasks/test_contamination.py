"""Contamination: test splits and item files are searched for in documents, training splits and conversations."""

import json

import pytest

from fledgling.config import UserError
from fledgling.tasks.contamination import measure_contamination
from tests.made_up_sets import write_public_sets, write_rows

SENTENCE = "The orbit of each planet about the Sun is an ellipse with the Sun at one focus."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_public_sets(tmp_path_factory.mktemp("sets"))


def test_items_of_a_test_split_are_found_in_documents(data, tmp_path):
    row = json.loads((data / "evals/gsm8k/test.jsonl").read_text().splitlines()[3])
    texts = ["Nothing of interest.", f"An example: {row['question']}"]
    source = write_rows(tmp_path / "text.jsonl", [{"text": text} for text in texts])
    calls = []
    report = measure_contamination([str(source)], ["gsm8k"], [], 9, data, lambda *call: calls.append(call))
    [match] = report["sets"]["gsm8k"]["matches"]
    assert (match["item"], match["origin"]) == (3, "text.jsonl:2") and report["sets"]["gsm8k"]["overlapping"] == 1
    assert report["documents"] == 2 and report["bytes"] >= sum(map(len, texts)) and not calls, "too small for a call"


def test_items_of_a_file_are_found_in_conversations(data, tmp_path):
    items = write_rows(tmp_path / "items.jsonl", [{"a": "short"}, {"deep": [{"text": SENTENCE}]}])
    chats = [{"messages": [{"role": "user", "content": SENTENCE}, {"role": "assistant", "content": "Yes."}]}]
    filler = [{"messages": [{"role": role, "content": "Hi."} for role in ("user", "assistant")]}] * 100
    source = write_rows(tmp_path / "chats.jsonl", [*chats, *filler, {"messages": []}])  # one bad row is left out
    report = measure_contamination([f"chat:{source}"], [], [str(items)], data_dir=data)
    [item_set] = report["sets"].values()
    assert (item_set["items"], item_set["searchable"]) == (2, 1), "one is shorter than a run: unknown, not clean"
    assert [match["item"] for match in item_set["matches"]] == [1]


def test_generated_tasks_and_empty_requests_are_rejected(data):
    with pytest.raises(UserError, match="spelling is generated"):
        measure_contamination(["gsm8k"], ["spelling"], [], data_dir=data)
    with pytest.raises(UserError, match="spelling is generated without end"):
        measure_contamination(["spelling"], ["gsm8k"], [], data_dir=data)
    with pytest.raises(UserError, match="nothing to search for"):
        measure_contamination(["gsm8k"], [], [], data_dir=data)
