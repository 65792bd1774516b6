"""Logs of CORE: replayed without a model, continued when torn, rejected when foreign."""

import json
from pathlib import Path

import pytest

from fledgling.config import UserError
from fledgling.evals.core import run_core
from fledgling.evals.core_log import CoreLog, read_core_log, replay_core_log
from fledgling.evals.core_results import CoreSettings, CoreTaskResult
from fledgling.evals.likelihood import Scorer


def run_logged(engine, tasks, path: Path, settings: CoreSettings | None = None, **more) -> list[CoreTaskResult]:
    """Runs CORE with a log."""
    log = CoreLog(path)
    try:
        return run_core(Scorer(engine), list(tasks.values()), settings or CoreSettings(), log=log, **more)
    finally:
        log.close()


def scores(results: list[CoreTaskResult]) -> list[tuple]:
    return [(r.label, r.n, r.correct, r.accuracy, r.low, r.high, r.baseline, r.cropped) for r in results]


@pytest.mark.parametrize("convention", ["nanochat", "foundry"])
def test_a_log_is_replayed_without_a_model(core_engine, core_tasks, tmp_path, convention):
    path = tmp_path / "log.jsonl"
    results = run_logged(core_engine, core_tasks, path, CoreSettings(None, convention))
    assert scores(replay_core_log(path)) == scores(results)
    item = next(line for line in map(json.loads, path.read_text().splitlines()) if line.get("task") == "language")
    assert item["shots"] == "" or "where they eat" in item["shots"]
    assert isinstance(item["predicted"], str) and len(item["logprobs"]) == 1


def test_a_task_whose_log_is_torn_is_run_again(core_engine, core_tasks, tmp_path):
    path, done = tmp_path / "log.jsonl", tmp_path / "done.jsonl"
    first = run_logged(core_engine, core_tasks, path, finished=done)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:20])
    assert len(CoreLog(path).keys) == len(core_tasks) - 1
    again = run_logged(core_engine, core_tasks, path, finished=done)
    assert scores(again) == scores(first) == scores(replay_core_log(path))
    assert len(path.read_text().splitlines()) == len(lines) + 3, (
        "one more task: its first line and four items; two lines were lost"
    )


def test_a_file_that_is_no_log_raises_an_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"task": "a"}\n')
    with pytest.raises(UserError, match=r"x.jsonl:1: not a line"):
        read_core_log(path)
    path.write_text("")
    with pytest.raises(UserError, match="contains no logged evaluation"):
        read_core_log(path)
