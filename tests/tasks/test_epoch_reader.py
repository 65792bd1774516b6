"""Rows that are no conversation are left out wherever a source is read, as long as they are few."""

import pytest

from fledgling.config import UserError
from fledgling.tasks import load_source, load_task
from fledgling.tasks.epoch_reader import EpochReader, sample_conversations
from tests.made_up_sets import write_rows

GOOD = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
BAD = {"messages": GOOD["messages"][:1]}  # without an answer


@pytest.fixture
def source(tmp_path):
    rows = [BAD if index % 100 == 50 else GOOD for index in range(400)]
    return load_source(f"chat:{write_rows(tmp_path / 'chats.jsonl', rows)}")


@pytest.mark.parametrize("seed", range(6))
def test_a_sample_is_the_beginning_of_what_training_reads(source, seed):
    reader = EpochReader(source, seed)
    read = list(reader)
    assert (len(read), len(reader.left_out), reader.read) == (396, 4, 400)
    assert reader.describe().startswith("4 of 400 rows left out (first: ") and "no message" in reader.describe()
    assert sample_conversations(source, seed, 250) == read[:250] and sample_conversations(source, seed, 900) == read


def test_more_than_one_bad_row_in_a_hundred_of_an_epoch_is_an_error_in_any_number_of_epochs(source, tmp_path):
    reader = EpochReader(source, 0, first=390, limit=1200)
    numbers = [number for number, _ in reader.iterate_numbered()]
    assert sorted([*numbers, *reader.left_out]) == list(range(390, 1590)) and 8 < len(reader.left_out) < 16
    write_rows(tmp_path / "smoltalk.jsonl", [GOOD] * 100 + [BAD] * 2)
    with pytest.raises(UserError, match=r"smoltalk.jsonl:10\d: no message of the assistant"):
        list(EpochReader(load_source("smoltalk", tmp_path), 0))


def test_a_source_without_end_is_read_as_far_as_the_limit():
    task = load_task("counting")
    assert sample_conversations(task, 3, 5) == [task.get_train_conversation(index, 3) for index in range(5)]
