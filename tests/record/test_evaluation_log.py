"""Evaluations are appended by one rule and in one shape, by every writer; lines of older versions count."""

from dataclasses import asdict, fields

import pytest

from fledgling.evals.measurement import Measurement
from fledgling.evals.session import record_measurements
from fledgling.record import Recorder, read_jsonl
from fledgling.record.evaluation_log import EVALUATION_FIELDS
from fledgling.record.jsonl import JsonlWriter


def record_in_training(stage_dir, step, measurements):
    with Recorder(stage_dir, stage_dir.name, 10, quiet=True) as recorder:
        for measurement in measurements:
            recorder.log_evaluation(step, **asdict(measurement))


WRITERS = [record_in_training, record_measurements]


@pytest.mark.parametrize("record", WRITERS)
def test_a_measurement_over_fewer_cases_or_of_a_part_is_not_appended(record, tmp_path):
    stage_dir = tmp_path / "sft"
    record(stage_dir, 3, [Measurement("core", 0.2, n=100), Measurement("mmlu", 0.5, n=100, subject="law")])
    record(stage_dir, 3, [Measurement("core", 0.9, n=99), Measurement("arc_easy", 0.3, n=5)])
    record(stage_dir, 3, [Measurement("core", 0.4, n=100), Measurement("core", 0.5, n=99)])
    record(stage_dir, 4, [Measurement("core", 0.1, n=1)])
    lines = [(line["step"], line["name"], line["value"]) for line in read_jsonl(stage_dir / "evals.jsonl")]
    assert lines == [(3, "core", 0.2), (3, "arc_easy", 0.3), (3, "core", 0.4), (4, "core", 0.1)]


def test_both_writers_write_the_same_line_with_every_field(tmp_path):
    measurement = Measurement("spelling", 0.5, 0.4, 0.6, 200, 0.1, tools="calculator", clusters=24)
    for number, record in enumerate(WRITERS):
        record(tmp_path / str(number) / "sft", 2, [measurement])
    first, second = ((tmp_path / number / "sft/evals.jsonl").read_text() for number in ("0", "1"))
    assert first == second
    [line] = read_jsonl(tmp_path / "0/sft/evals.jsonl")
    assert list(line) == ["stage", "step", *EVALUATION_FIELDS]
    assert EVALUATION_FIELDS.keys() == {field.name for field in fields(Measurement)} - {"subject"}


@pytest.mark.parametrize("record", WRITERS)
def test_a_name_with_a_slash_is_no_part_and_is_appended(record, tmp_path):
    stage_dir = tmp_path / "sft"
    record(stage_dir, 3, [Measurement("questions:/home/quiz.jsonl", 0.5, n=12)])
    assert [line["name"] for line in read_jsonl(stage_dir / "evals.jsonl")] == ["questions:/home/quiz.jsonl"]


@pytest.mark.parametrize("record", WRITERS)
def test_lines_of_older_versions_and_corrupt_ones_count_as_far_as_they_say(record, tmp_path):
    stage_dir = tmp_path / "sft"
    writer = JsonlWriter(stage_dir / "evals.jsonl")
    for line in ({"name": "core", "n": 100}, {"name": "bits_per_byte", "value": 1.5}, {"name": ["core"], "n": 10**9}):
        writer.append({"stage": "sft", "step": 3, **line})
    writer.close()
    record(stage_dir, 3, [Measurement("core", 0.1, n=99), Measurement("bits_per_byte", 1.4, n=8)])
    assert [line.get("value") for line in read_jsonl(stage_dir / "evals.jsonl")] == [None, 1.5, None, 1.4]


def test_a_stage_that_is_taken_back_records_its_steps_again(tmp_path):
    with Recorder(tmp_path / "rl", "rl", 10, quiet=True) as recorder:
        recorder.log_evaluation(5, "counting", 0.5, n=200)
        recorder.rewind(4)
        recorder.log_evaluation(5, "counting", 0.25, n=50)
    assert [(line["value"], line["n"]) for line in read_jsonl(tmp_path / "rl/evals.jsonl")] == [(0.25, 50)]
