"""Whatever stages a run has, a source gives every row before any row twice, on any ranks, resumed or not."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledgling.data.shards import ShardWriter, TokenShard
from fledgling.data.stream import MixtureStream, RowSource
from fledgling.train.source_positions import SourcePositions, describe_reading, read_positions
from fledgling.train.stage_rows import merge_equal_sources

CONTEXT = 16
NAMES = {0: "text", 1: "other"}


def make_source(folder, name, first, documents):
    with ShardWriter(folder / name, 2000, tokenizer="t") as writer:
        for n in range(documents):
            writer.add_document([first + n] * (10 + n % 7))
    return RowSource(TokenShard.open(folder / name), "crop", CONTEXT, seed=5, bos=1999, max_section_documents=11)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return [make_source(folder, "text", 0, 40), make_source(folder, "other", 500, 9)]


def make_streams(sources, weights, positions, rows_per_step, ranks):
    starts = positions.find_starts(sources)
    mixture = list(zip(sources, weights, strict=True))
    return [
        MixtureStream(mixture, rows_per_step, 2, None, 7, r, ranks, prefetch=False, starts=starts) for r in range(ranks)
    ]


STAGE = st.fixed_dictionaries(
    {
        "weights": st.tuples(st.integers(1, 9), st.integers(1, 3)),
        "rows_per_step": st.integers(1, 6),
        "steps": st.integers(1, 8),
        "ranks": st.integers(1, 3),
        "stops_at": st.integers(0, 9),
        "ranks_after": st.integers(1, 3),
    }
)


@settings(max_examples=30, deadline=None)
@given(stages=st.lists(STAGE, min_size=1, max_size=4))
def test_any_stages_on_any_ranks_read_every_row_before_any_twice(sources, stages):
    all_rows = [{tuple(source.read_row(i)[0][:-1].tolist()) for i in range(len(source))} for source in sources]
    assert [len(rows) for rows in all_rows] == [len(source) for source in sources]
    counts, before = Counter(), {}
    for stage in stages:
        positions = SourcePositions(before, NAMES)
        arguments = (sources, stage["weights"])
        streams = make_streams(*arguments, positions, stage["rows_per_step"], stage["ranks"])
        for step in range(stage["steps"]):
            if step == stage["stops_at"]:
                state = {"positions": positions.state_dict(streams[0]), "stream": streams[0].state_dict()}
                state = json.loads(json.dumps(state))
                positions = SourcePositions(read_positions(state, resumes=True), NAMES)
                streams = make_streams(*arguments, positions, stage["rows_per_step"], stage["ranks_after"])
                for stream in streams:
                    stream.load_state_dict(state["stream"])
            for stream in streams:
                counts.update(tuple(row.tolist()) for batch in stream.next() for row in batch.tokens)
            for rows in all_rows:
                read = [counts[row] for row in rows]
                assert max(read) - min(read) <= 1, "a row was read again before all were read"
        before = read_positions(json.loads(json.dumps({"positions": positions.state_dict(streams[0])})), resumes=False)
        for index, each in enumerate(positions.count_reading("sft", streams[0])):
            read = [counts[row] for row in all_rows[index]]
            assert each["remaining"] == read.count(0) and each["passes"] == pytest.approx(
                sum(read) / len(read), abs=1e-4
            )
            assert each["source"] == NAMES[index] and each["read"] <= stage["steps"] * stage["rows_per_step"]


def test_two_names_of_one_text_are_one_source(sources, tmp_path):
    copy = make_source(tmp_path, "copy", 0, 40)
    lines = []
    mixture = [(sources[0], 0.5), (sources[1], 0.2), (copy, 0.3)]
    merged, names = merge_equal_sources(mixture, {0: "text", 1: "other", 2: "./text"}, lines.append)
    assert [(source.key, weight) for source, weight in merged] == [(sources[0].key, 0.8), (sources[1].key, 0.2)]
    assert names == NAMES and lines == ["./text holds the same rows as text: they are read as one source"]


def test_one_line_says_what_was_read_how_often(sources):
    positions = SourcePositions({sources[0].key: {"source": "text", "row": 3}}, {0: "text"})
    [stream] = make_streams(sources, (1, 1), positions, 4, 1)
    for _ in range(5):
        stream.next()
    rows, others = len(sources[0]), len(sources[1])
    line = describe_reading("sft", positions.count_reading("sft", stream))
    assert line == (
        f"sft: has read text: 10 rows, of {rows} in all stages {rows - 13} not read yet; "
        f"sft tasks: 10 rows, of {others} in all stages {10 / others:.1f} times"
    )
    assert describe_reading("rl", []) == ""
