"""A teacher's answers are a file of conversations that is the same however often it was interrupted."""

import json
from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.infer.engine import Engine
from fledgling.model.transformer import Transformer
from fledgling.tasks import load_source, load_task
from fledgling.train.distill import texts
from fledgling.train.distill.texts import AnswerCounts, AnswerSettings, write_answers
from tests.made_up_sets import write_rows
from tests.train.rl.small_problems import tokenizer

SETTINGS = AnswerSettings(count=32, seed=1, temperature=1.0, max_new_tokens=32)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A model that ends an answer now and then."""
    model = Transformer(ModelConfig(tokenizer().vocab_size, 1, 32, 2, 2, 160))
    model.initialize(0)
    torch.nn.init.normal_(model.head.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    return Engine(model, tokenizer())


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(texts, "GROUP_SIZE", {"cpu": 8, "cuda": 8})


def test_answers_are_conversations_and_an_interrupted_file_is_resumed(engine, tmp_path, monkeypatch):
    whole, stopped, source = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl", load_task("language")
    counts = write_answers(engine, "id", source, SETTINGS, whole)
    assert counts.read == 32 and counts.written == len(whole.read_text().splitlines()) > 3
    assert counts.written + counts.unfinished + counts.too_long == 32

    def stop(done: int, total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_answers(engine, "id", source, SETTINGS, stopped, stop)
    with open(stopped, "a") as file:  # rows of a group whose count was not written any more, the last one torn
        file.write('{"messages": [{"role": "user", "content": "x"}]}\n{"messages": [')
    assert write_answers(engine, "id", source, SETTINGS, stopped) == counts
    assert stopped.read_bytes() == whole.read_bytes()
    prompts = {source.get_train_conversation(n, 1)["messages"][0]["content"] for n in range(32)}
    learned = load_source(f"chat:{whole}")
    assert len(learned) == counts.written
    for index in range(len(learned)):
        user, assistant = learned.get_train_conversation(index, 0)["messages"]
        assert user["content"] in prompts and assistant["role"] == "assistant" and assistant["content"]


def test_a_few_rows_that_are_no_conversation_are_left_out_and_counted(engine, tmp_path):
    good = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
    path = write_rows(tmp_path / "c.jsonl", [good] * 20 + [{"messages": []}] + [good] * 80)
    settings = replace(SETTINGS, count=240)  # the bad row comes twice or three times
    counts = write_answers(engine, "id", load_source(f"chat:{path}"), settings, tmp_path / "a.jsonl")
    assert counts.read == 240 and counts.malformed in (2, 3) and counts.prompts == 1
    assert counts.written + counts.unfinished + counts.too_long + counts.malformed == 240
    assert counts.describe().endswith(f", {counts.malformed} rows are no conversation")


def test_a_file_of_something_else_is_not_resumed(engine, tmp_path):
    out, source = tmp_path / "answers.jsonl", load_task("language")
    small = AnswerSettings(count=8, seed=1, temperature=1.0, max_new_tokens=32)
    write_answers(engine, "id", source, small, out)
    with pytest.raises(UserError, match="was made with teacher id, now it is other: choose another file"):
        write_answers(engine, "other", source, small, out)
    with pytest.raises(UserError, match=r"was made with temperature 1.0, now it is 0.1"):
        write_answers(engine, "id", source, replace(small, temperature=0.1), out)
    rounded = Engine(engine.source, engine.tokenizer, dtype=torch.bfloat16)
    with pytest.raises(UserError, match="was made with dtype float32, now it is bfloat16"):
        write_answers(rounded, "id", source, small, out)
    facts = out.with_suffix(".json").read_text()
    out.with_suffix(".json").write_text(json.dumps({**json.loads(facts), "prompts": "of another text"}))
    with pytest.raises(UserError, match="was made with prompts of another text, now it is"):  # the source was edited
        write_answers(engine, "id", source, small, out)
    counted = json.loads(facts)
    counted["counts"]["written"] += 3
    out.with_suffix(".json").write_text(json.dumps(counted))
    with pytest.raises(UserError, match=r"conversations, and answers.json counts \d+: put the file back"):  # it was cut
        write_answers(engine, "id", source, small, out)
    out.with_suffix(".json").write_text(json.dumps({"counts": 3}))
    with pytest.raises(UserError, match="does not say from what"):
        write_answers(engine, "id", source, small, out)
    out.with_suffix(".json").unlink()
    out.touch()
    with pytest.raises(UserError, match=r"exists, and no answers.json next to it"):
        write_answers(engine, "id", source, small, out)


def write_one_prompt(folder):
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}]
    (folder / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_source(f"chat:{folder / 'one.jsonl'}")


def test_a_prompt_that_is_read_again_is_no_other_prompt(engine, tmp_path):
    counts = write_answers(engine, "id", write_one_prompt(tmp_path), SETTINGS, tmp_path / "out.jsonl")
    assert (counts.read, counts.prompts, counts.rows) == (32, 1, 1)
    assert f"{counts.written} conversations of 32 answers to 1 prompt (32 passes); left out" in counts.describe()
    assert "of 5 prompts; left out" in AnswerCounts(read=5, written=2, prompts=5).describe()


def test_at_temperature_zero_a_source_is_read_once(engine, tmp_path):
    settings = AnswerSettings(count=40, temperature=0.0, max_new_tokens=1)
    with pytest.raises(UserError, match="0 conversations of 1 prompt; left out: 1 answers did not end"):
        write_answers(engine, "id", write_one_prompt(tmp_path), settings, tmp_path / "out.jsonl")


def test_answers_that_cannot_be_learned_from_are_an_error_and_no_file(engine, tmp_path):
    out, settings = tmp_path / "out.jsonl", AnswerSettings(count=4, temperature=1.0, max_new_tokens=1)
    for _ in range(2):
        with pytest.raises(UserError, match="is not written, nothing can be learned from it: 0 conversations of 4"):
            write_answers(engine, "id", write_one_prompt(tmp_path), settings, out)
        assert not out.exists() and not out.with_suffix(".json").exists(), "another setting may be tried"
