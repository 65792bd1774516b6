"""One position a source runs through all stages: later stages continue where earlier ones stopped, exactly."""

import json
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.corpora import prepare
from fledgling.data.shards import ShardWriter, TokenShard
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import find_latest_checkpoint, load_checkpoint, read_checkpoint_state
from fledgling.runtime import device
from fledgling.train import run
from fledgling.train.data_preparer import DataPreparer
from fledgling.train.hooks import NO_EVALS
from fledgling.train.init_from import import_checkpoint
from fledgling.train.loop import TrainingStopped
from fledgling.train.saver import CheckpointSaver
from fledgling.train.source_positions import SetPart, SourcePositions, carry_positions, read_positions
from tests.all_stages import make_all_stages_recipe
from tests.made_up_sets import write_rows

CONTEXT = 16


def make_source(folder, name="text", documents=40, first=0):
    with ShardWriter(folder / name, 1000, tokenizer="t") as writer:
        for n in range(documents):
            writer.add_document([first + n] * (10 + n % 7))
    return RowSource(TokenShard.open(folder / name), "crop", CONTEXT, seed=5, bos=999)


def make_stream(sources, positions, steps=3, rank=0, size=1):
    starts = positions.find_starts([source for source, _ in sources])
    return MixtureStream(sources, 4, 2, steps, 7, rank, size, prefetch=False, starts=starts)


def read_all(stream):
    """Returns the tokens of all rows of a stream, in order."""
    return [row.tolist() for batches in stream for batch in batches for row in batch.tokens]


def through_json(value):
    return json.loads(json.dumps(value))


def test_three_stages_read_what_one_long_stage_reads(tmp_path):
    source = make_source(tmp_path)
    [*long] = read_all(make_stream([(source, 1.0)], SourcePositions({}, {0: "text"}), steps=9))
    rows, before = [], {}
    for _ in range(3):
        positions = SourcePositions(before, {0: "text"})
        stream = make_stream([(source, 1.0)], positions)
        rows += read_all(stream)
        before = read_positions({"positions": through_json(positions.state_dict(stream))}, resumes=False)
    assert rows == long and before == {source.key: {"source": "text", "row": 36}}
    distinct = {tuple(row) for row in rows[: len(source)]}
    assert len(distinct) == len(source) < 36, "every row once before the first is read again"


def test_a_stage_resumes_from_its_checkpoint_on_any_number_of_ranks(tmp_path):
    sources = [(make_source(tmp_path), 0.7), (make_source(tmp_path, "other", first=500), 0.3)]
    before = {sources[0][0].key: {"source": "text", "row": 11}, "elsewhere": {"source": "x", "row": 3}}
    positions = SourcePositions(before, {0: "text", 1: "other"})
    stream = make_stream(sources, positions)
    first, rest = read_all([stream.next()]), None
    state = through_json({"positions": positions.state_dict(stream), "stream": stream.state_dict()})
    rest = read_all(stream)
    for size in (1, 2):
        again = SourcePositions(read_positions(state, resumes=True), {0: "text", 1: "other"})
        ranks = [make_stream(sources, again, rank=rank, size=size) for rank in range(size)]
        for one in ranks:
            one.load_state_dict(state["stream"])
        steps = [[batches for one in ranks for batches in one.next()] for _ in range(2)]
        assert read_all(steps) == rest and first not in rest
    now = positions.state_dict(stream)["now"]
    taken = [entry["row"] for entry in now.values()]
    assert now["elsewhere"] == before["elsewhere"] and sum(taken) == 11 + 3 + 12


def test_an_edited_text_begins_at_its_first_row_and_a_line_says_so(tmp_path):
    old, new = make_source(tmp_path, "old"), make_source(tmp_path, "new", first=100)
    positions = SourcePositions({old.key: {"source": "text", "row": 9}}, {0: "text"})
    assert positions.find_starts([new]) == [0] and positions.find_starts([old]) == [9]
    lines = list(positions.describe("sft", make_stream([(new, 1.0)], positions), 3))
    assert any("is not what earlier stages read" in line for line in lines)


def test_what_is_read_again_is_reported_with_its_passes(tmp_path):
    source = make_source(tmp_path)
    rows = len(source)
    first = SourcePositions({}, {0: "text"})
    [line] = first.describe("pretrain", make_stream([(source, 1.0)], first), rows)
    assert line == f"pretrain: text: {4 * rows} rows of {rows}: each is read 4.0 times, passes 1 to 4"
    assert not list(first.describe("pretrain", make_stream([(source, 1.0)], first), rows // 4))
    later = SourcePositions({source.key: {"source": "text", "row": rows - 2}}, {0: "text"})
    [line] = later.describe("sft", make_stream([(source, 1.0)], later), 1)
    assert f"sft: text: continues at row {rows - 2} of {rows}" in line and "4 rows, passes 1 to 2" in line


def test_a_stage_that_reads_no_source_hands_positions_on():
    positions = {"k": {"source": "text", "row": 4}}
    assert carry_positions(positions)() == {"start": positions, "now": positions}
    assert read_positions({"stream": {"step": 3}}, resumes=False) == {}, "an older checkpoint says nothing"


def test_a_set_that_is_prepared_in_parts_continues_with_the_next_conversations(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("fledgling.train.data_preparer.CONVERSATIONS_PER_BATCH", 10)
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Item {n}?"},
                {"role": "assistant", "content": "Y" * (1 + 7 * n % 20)},
            ]
        }
        for n in range(50)
    ]
    write_rows(tmp_path / "smoltalk.jsonl", rows)
    recipe = make_all_stages_recipe(tmp_path, **{"run.data_dir": tmp_path, "sft.mixture": "{smoltalk = 1.0}"})
    preparer = DataPreparer(recipe, tmp_path / "run")
    tokenizer, positions, counts, ahead, spanned = preparer.load_or_train_tokenizer(), {}, Counter(), [], 0
    for share in (0.5, 0.3, 1.0, 0.6, 0.7, 0.4, 0.8):  # of a part's rows that a stage reads: more are prepared
        shard, part = preparer.conversation_shard("smoltalk", 300, tokenizer, positions)
        again, _ = preparer.conversation_shard("smoltalk", 300, tokenizer, positions)
        assert again.directory == shard.directory, "a resumed stage finds its part"
        end, in_order = tokenizer.assistant_end, {"shuffled": False, "breaks": part.breaks}
        source = RowSource(shard, "whole", 64, 5, tokenizer.bos, end, **in_order)
        rows = max(1, int(share * len(source)))
        for row in range(rows):
            counts.update(tokenizer.decode(source.read_row(row)[0].tolist()).split("<|bos|>"))
        counts[""] = 0  # padding
        reads = [count for text, count in counts.items() if text]
        spanned += part.first % 50 + part.span > 50
        fewest = min(reads) if len(reads) == 50 else 0
        assert max(reads) - fewest <= 1, "no conversation twice before all are read"
        stage = SourcePositions(positions, {}, {0: part})
        stream = MixtureStream([(source, 1.0)], 1, 1, rows, 7, prefetch=False)
        for _ in range(rows):
            stream.next()
        positions = through_json(stage.state_dict(stream))["now"]
        [entry] = positions.values()
        assert entry["source"] == "smoltalk"
        ahead += entry.get("ahead", [])
    assert spanned, "a part has conversations of two passes"
    assert len(reads) == 50 and max(reads) == 2 and ahead, "rows take shorter conversations ahead of longer ones"


def test_a_conversation_of_several_documents_is_read_when_all_of_them_are(tmp_path):
    """Chat templates that rewrite the history make them: each row here is one document."""
    with ShardWriter(tmp_path / "set", 1000, tokenizer="t") as writer:
        for number in range(6):
            writer.add_document([number] * CONTEXT)
    source = RowSource(TokenShard.open(tmp_path / "set"), "whole", CONTEXT, 5, 999, 998, shuffled=False)
    part = SetPart("set", "key", first=10, span=4, left_out=frozenset({12}), documents=(1, 3, 2))
    assert part.held == [10, 11, 11, 11, 13, 13]
    order = [int(source.read_row(row)[0][0]) for row in range(len(source))]
    for rows in range(1, 7):
        whole = {n for n in part.held if {d for d, held in enumerate(part.held) if held == n} <= set(order[:rows])}
        entry = part.find_position(source, rows)
        assert entry["row"] == (min(set(part.held) - whole) if rows < 6 else 14)
        assert set(entry.get("ahead", [])) == {n for n in whole if n > entry["row"]}


@pytest.mark.parametrize("change", ["edited", "gone", "small"])
def test_a_resumed_stage_keeps_its_part_of_a_set_that_is_another_by_now(change, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("fledgling.train.data_preparer.CONVERSATIONS_PER_BATCH", 10)
    pairs = [(f"Item {n}?", "Y" * (1 + n)) for n in range(30)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]
    write_rows(tmp_path / "smoltalk.jsonl", rows)
    recipe, messages = (
        make_all_stages_recipe(tmp_path, **{"run.data_dir": tmp_path, "sft.mixture": "{smoltalk = 1.0}"}),
        [],
    )
    first = DataPreparer(recipe, tmp_path / "run")
    tokenizer = first.load_or_train_tokenizer()
    _, part = first.conversation_shard("smoltalk", 100, tokenizer)
    positions = {part.key: {"source": "smoltalk", "row": 7, "ahead": [9]}}
    shard, part = first.conversation_shard("smoltalk", 100, tokenizer, positions)
    assert (part.first, part.skipped) == (7, {9})
    if change == "gone":
        (tmp_path / "smoltalk.jsonl").unlink()
    else:
        write_rows(tmp_path / "smoltalk.jsonl", rows[: 3 if change == "small" else 29])
        monkeypatch.setattr(prepare, "MAX_IN_MEMORY_BYTES", 1000 if change == "small" else 100)
    later = DataPreparer(recipe, tmp_path / "run", messages.append)
    later.documents.prepared.pinned = first.documents.prepared.used_inputs
    again, same = later.conversation_shard("smoltalk", 100, tokenizer, positions)
    assert (again.directory, same) == (shard.directory, part), messages
    assert any(" of 30 a pass" in line for line in messages), "of the file that the part was made of"
    if change == "gone":
        with pytest.raises(
            UserError, match=r"fledgling data fetch smoltalk.*tokens of it in 2 versions"
        ):  # which part it is, it does not know
            DataPreparer(recipe, tmp_path / "run").conversation_shard("smoltalk", 100, tokenizer, positions)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A recipe whose pretraining is done."""
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    recipe = make_all_stages_recipe(tmp_path, **{"rl.steps": 1, "rl.prompts_per_round": 1})
    train(recipe, "pretrain")
    return recipe


def train(recipe, stage, monkeypatch=None, stop_at=0):
    if stop_at:
        seen = []
        monkeypatch.setattr(CheckpointSaver, "failed", property(lambda saver: seen.append(0) or len(seen) >= stop_at))
    with pytest.raises(TrainingStopped) if stop_at else nullcontext():
        run.run_stage(recipe, stage, quiet=True, hooks=NO_EVALS)


def read_state(recipe, stage):
    return read_checkpoint_state(find_latest_checkpoint(Path(recipe.run.out) / stage / "checkpoints"))


def test_midtraining_continues_after_pretraining_and_exactly_after_a_stop(trained, tmp_path, monkeypatch):
    copy = replace(trained, run=replace(trained.run, out=str(tmp_path / "copy")))
    shutil.copytree(trained.run.out, copy.run.out)
    train(trained, "midtrain")
    train(copy, "midtrain", monkeypatch, stop_at=2)
    monkeypatch.undo()
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e9)
    train(copy, "midtrain")
    losses = [
        [line["loss"] for line in read_jsonl(Path(recipe.run.out) / "midtrain" / "metrics.jsonl")]
        for recipe in (trained, copy)
    ]
    assert len(losses[0]) == 4 and losses[0] == losses[1]
    assert read_state(trained, "midtrain")["positions"] == read_state(copy, "midtrain")["positions"]
    [first] = read_state(trained, "pretrain")["positions"]["now"].values()
    positions = read_state(trained, "midtrain")["positions"]
    [start], [now] = positions["start"].values(), positions["now"].values()
    assert start == first and first["row"] == 8 and now["row"] == 16, "half of the 16 rows of each stage"
    notices = [line["text"] for line in read_jsonl(Path(trained.run.out) / "midtrain" / "notices.jsonl")]
    assert any("continues at row 8 of" in text for text in notices)

    imported = import_checkpoint(Path(trained.run.out), tmp_path / "init", trained.run)
    assert read_positions(load_checkpoint(imported, ("model",)).state, resumes=False) == positions["now"]
    train(replace(trained, stages=("pretrain", "midtrain", "rl")), "rl")
    assert read_state(trained, "rl")["positions"]["now"] == positions["now"]


def test_a_stage_that_can_learn_nothing_is_an_error_and_not_done(trained, tmp_path):
    def sft(prompt_lengths):
        rows = [
            {"messages": [{"role": "user", "content": "word " * n}, {"role": "assistant", "content": "Yes."}]}
            for n in prompt_lengths
        ]
        write_rows(tmp_path / "own.jsonl", rows)
        mixture = {f"chat:{tmp_path / 'own.jsonl'}": 1.0}
        train(replace(trained, stages=("pretrain", "sft"), sft=replace(trained.sft, mixture=mixture, steps=4)), "sft")

    with pytest.raises(
        UserError, match=r"own.jsonl: the prompts of all 20 conversations fill model.context, 128 tokens"
    ):
        sft([300] * 20)
    assert not (Path(trained.run.out) / "sft" / "done.json").exists()
    sft([300, 5] * 10)  # the steps read every row once, so the short ones too
    notices = [line["text"] for line in read_jsonl(Path(trained.run.out) / "sft" / "notices.jsonl")]
    assert any("10 of 20 conversations are longer than a row" in t and "of 10 only a part" in t for t in notices)
    assert all(line["passes"] > 0 for line in read_jsonl(Path(trained.run.out) / "sft" / "metrics.jsonl"))
