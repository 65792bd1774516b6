"""The file of past runs: shipped ones can be read, the user's are added, corrupt lines are left out."""

import json
from dataclasses import replace

import pytest

from fledgling.config import load_recipe
from fledgling.plan.comparable_runs import select_runs
from fledgling.plan.past_runs import (
    FIRST_BITS,
    SHIPPED,
    PastRun,
    append_past_run,
    describe_data,
    group_dependent,
    identify_first_step,
    load_past_runs,
    select_text,
    user_file,
)

RUN = PastRun(
    "2026-11-27", "quickstart", "embedded", "cpu", 60.0, 10, 20, 0.5, 1e9, {"seconds": 50.0}, {"seconds": 55.0}
)


def test_the_shipped_runs_are_of_the_quickstart():
    runs = load_past_runs((SHIPPED,))
    assert len(runs) == len(SHIPPED.read_text(encoding="utf-8").splitlines()), "none is corrupt"
    assert {select_text(run.data) for run in runs} == {select_text(describe_data(load_recipe("quickstart")))}


def test_a_users_run_is_added_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEDGLING_CACHE", str(tmp_path / "deep" / "cache"))
    before = load_past_runs()
    append_past_run(RUN)
    append_past_run(RUN)
    assert user_file().parent == tmp_path / "deep" / "cache"
    assert load_past_runs() == [*before, RUN]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[" * 100_000,
        "[1]",
        '{"date": 1}',
        json.dumps({**vars(RUN), "budget": -1.0}),
        json.dumps({**vars(RUN), "measured": {"seconds": "long"}}),
        json.dumps({**vars(RUN), "measured": {"seconds": float("nan")}}),
        json.dumps({**vars(RUN), "predicted": [1]}),
        json.dumps({**vars(RUN), "tokens": 10**400}),
        json.dumps({**vars(RUN), "measured": {"seconds": -0.3}}),
    ],
    ids=lambda line: line[:20],
)
def test_a_corrupt_line_is_left_out(line, tmp_path):
    file = tmp_path / "past_runs.jsonl"
    file.write_text(line + "\n" + json.dumps(vars(RUN)) + "\n", encoding="utf-8")
    assert load_past_runs((file,)) == [RUN]


@pytest.mark.parametrize("torn", [60, -1], ids=["torn", "without the end of its line"])
def test_a_run_is_kept_after_a_line_that_was_not_finished(torn, tmp_path):
    """After a kill or a full disk the next run was appended to the torn line, and lost with it."""
    file, runs = tmp_path / "past_runs.jsonl", [replace(RUN, run=f"{name}\u2028") for name in "abc"]
    append_past_run(runs[0], file)
    append_past_run(runs[1], file)
    end = file.read_text().index("\n") + 1
    file.write_text(file.read_text()[: end + torn if torn > 0 else torn])
    append_past_run(runs[2], file)
    assert load_past_runs((file,)) == (runs if torn < 0 else [runs[0], runs[2]])


def test_a_run_without_known_passes_is_kept_and_fits_no_law(tmp_path):
    file, measured = tmp_path / "past_runs.jsonl", {"seconds": 55.0, FIRST_BITS: 2.0}
    older = replace(RUN, measured=measured, passes=0.0, run="a")  # as versions recorded it that did not know
    for run in (older, replace(older, passes=None, run="b"), replace(older, passes=2.25, run="c")):
        append_past_run(run, file)
    runs = load_past_runs((file,))
    assert [run.passes for run in runs] == [None, None, 2.25]
    assert [run.run for run in select_runs(runs, RUN.data, FIRST_BITS)] == ["c"]


def test_copies_of_a_run_that_were_finished_apart_count_once(tmp_path):
    file = tmp_path / "past_runs.jsonl"
    for seconds, bits in ((24.9, 2.125), (5.75, 2.125), (6.2, 2.5)):
        append_past_run(PastRun(**{**vars(RUN), "measured": {"seconds": seconds, "bits_per_byte": bits}}), file)
    assert [run.measured["seconds"] for run in load_past_runs((file,))] == [5.75, 6.2]


def test_of_a_huge_file_the_newest_runs_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("fledgling.plan.past_runs.MAX_BYTES", 1000)
    file = tmp_path / "past_runs.jsonl"
    for budget in range(1, 100):
        append_past_run(PastRun(**{**vars(RUN), "budget": float(budget)}), file)
    assert [run.budget for run in load_past_runs((file,))][-1] == 99.0 and len(load_past_runs((file,))) < 10


def test_a_resumed_copy_is_the_same_run_and_the_same_beginning_at_another_time_is_not_independent(tmp_path):
    file, line = tmp_path / "past_runs.jsonl", {"step": 1, "loss": 5.5, "data": "3f", "tokens": 64, "time": 1.0}
    first, again = identify_first_step(line), identify_first_step({**line, "time": 2.0})
    for tokens, begun in ((20, first), (33, first), (20, again)):
        measured = {"seconds": float(tokens), "bits_per_byte": 1 / tokens}
        append_past_run(PastRun(**{**vars(RUN), "tokens": tokens, "measured": measured, **begun}), file)
    copy, other = load_past_runs((file,))
    assert (copy.tokens, other.tokens) == (33, 20), "what the copy added counts, and no second run"
    assert group_dependent([copy, RUN, other, RUN]) == [[copy, other], [RUN], [RUN]]
