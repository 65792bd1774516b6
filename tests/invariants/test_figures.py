"""The table of figures in docs/evaluation.md is true: its tests exist, and nothing that is recorded is missing."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fledgling.infer.request import Completion
from fledgling.record import read_jsonl
from fledgling.report.summary import summarize_run
from fledgling.serve import metrics
from fledgling.tasks import PUBLIC_TASKS, SKILLS
from fledgling.train import queued_step
from fledgling.train.health import Health
from fledgling.train.rl.collapse import measure_round
from fledgling.train.totals import Totals
from tests.report.synthetic_run import make_run

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("## Every figure")[1].split("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in SECTION.splitlines() if line.startswith("|")
]
ROWS = [row for row in ROWS if row[0] != "figure" and not row[0].startswith("---")]
NAMES = {name for row in ROWS for name in re.findall(r"`([^`]+)`", row[0])}
EXAM_ROWS = r"^\| (arithmetic|spelling),|\| arithmetic \| spelling \|"  # of a table of scores, or its columns


def is_described(name: str) -> bool:
    """Returns whether a key of metrics.jsonl or a name of evals.jsonl is in the table, as itself or as its pattern."""
    patterns = [re.sub(r"^bits_per_byte of .*", "bits_per_byte of COMPRESSOR", name)]
    patterns += [re.sub(r"^zeros_layer_\d+$", "zeros_layer_NN", name), re.sub(r"^reward_.*", "reward_PART", name)]
    for task in (*SKILLS, *PUBLIC_TASKS):
        if name.startswith(task):
            patterns.append(re.sub(r"@\d+$", "@K", "TASK" + name.removeprefix(task)))
    return any(pattern in NAMES for pattern in patterns)


def list_recorded_names(run: Path) -> set[str]:
    """Returns the keys of every metrics line and the names of every evaluation of a run."""
    names = {key for path in run.glob("*/metrics.jsonl") for line in read_jsonl(path) for key in line}
    return names | {line["name"] for path in run.glob("*/evals.jsonl") for line in read_jsonl(path)}


def check_every_recorded_name_is_described(run: Path) -> None:
    """Asserts that the table has every figure that a run has recorded (a whole one: tests/end_to_end)."""
    missing = sorted(name for name in list_recorded_names(run) if not is_described(name))
    assert not missing, f"docs/evaluation.md, Every figure, has no row for {', '.join(missing)}"


def test_there_are_rows_in_four_columns():
    assert len(ROWS) > 50 and all(len(row) == 4 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_the_named_test_exists(row):
    (file, name), *_ = re.findall(r"`([\w/]+\.py)::([\w*]+)`", row[3])
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^\s*def {name if name != '*' else 'test_'}", source, re.MULTILINE), row[3]


def test_a_run_of_every_stage_has_no_figure_that_the_table_lacks(tmp_path):
    run = make_run(tmp_path / "run", scale=0.02)
    check_every_recorded_name_is_described(run)
    assert {"bits_per_byte", "loss", "reward"} <= list_recorded_names(run)
    for stage in summarize_run(run)["stages"].values():
        assert set(stage) <= NAMES, set(stage) - NAMES


def test_what_the_loop_records_of_a_step_is_described():
    """Read from the source of the loop, so that a new keyword is noticed without a run."""
    tree = ast.parse(Path(queued_step.__file__).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and "log_metrics" in ast.unparse(node.func)]
    names = [keyword.arg for call in calls for keyword in call.keywords if keyword.arg]
    assert {"loss", "seconds"} <= set(names) and not [name for name in names if not is_described(name)]


def test_what_stages_add_to_a_step_is_described():
    answer = Completion(tokens=[1, 2], finish_reason="stop", logprobs=[-1.0, -2.0], forced=[False, False])
    measured = measure_round(np.ones((1, 1)), {"task": np.ones((1, 1)), "style": np.ones((1, 1))}, [answer])
    counted = [field.name for part in (Totals, Health) for field in fields(part) if field.name != "bad"]
    missing = [name for name in (*measured, *counted) if not is_described(name)]
    assert not missing


def test_an_unknown_figure_is_missing():
    assert not is_described("vibes") and not is_described("arithmetic_vibes")
    assert (
        is_described("arithmetic_test")
        and is_described("identity_dev")
        and is_described("zeros_layer_07")
        and is_described("spelling_pass@10")
    )


def test_every_figure_of_the_server_is_described():
    counters = {f"fledgling_{name}_total" for name in (*metrics.COUNTERS, *metrics.STATS)}
    source = Path(metrics.__file__).read_text(encoding="utf-8")
    gauges = set(re.findall(r'GaugeMetricFamily\(\s*"(\w+)"', source))
    assert len(gauges) >= 4 and counters | gauges <= NAMES, (counters | gauges) - NAMES


def read_final_scores(text: str) -> dict[str, float]:
    """Returns the final score of each exam in the quickstart's table of docs/benchmarks.md, in percent, by its row."""
    table = re.search(r"(?:^\|.*\n)+", text.split("## Quickstart")[1], re.MULTILINE)
    lines = table[0].splitlines()
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    final = header.index("rl")
    return {row[0]: float(row[final].split()[0]) for row in rows if not row[0].startswith("bits per byte")}


def test_the_readme_shows_the_worst_exam_and_the_strongest_compressor():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    benchmarks = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    scores = read_final_scores(benchmarks)
    for name, score in (min(scores.items(), key=lambda pair: pair[1]), max(scores.items(), key=lambda pair: pair[1])):
        assert f"{score:.1f} %" in readme, f"README.md does not show {name}, {score} %"
    assert "with the calculator" in readme
    (ppmd,) = re.findall(r"PPMd order 16 (\d\.\d+)", benchmarks.split("## Quickstart")[1].split("\n## ")[0])
    assert f"PPMd order 16: {ppmd}" in readme


def find_scores_without_tools(text: str) -> list[str]:
    """Returns the first lines of the tables of exams before which their section does not say what tools there were."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    scores = [table for table in tables if re.search(EXAM_ROWS, table, re.MULTILINE)]
    sections = [(table, re.split(r"\n##+ ", text.split(table)[0])[-1]) for table in scores]
    return [table.splitlines()[0] for table, before in sections if "with the calculator" not in before]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_a_table_of_exams_says_its_tools(page):
    assert find_scores_without_tools(page.read_text(encoding="utf-8")) == []


def test_a_table_without_its_tools_is_seen():
    table = "| exam | score |\n|---|---|\n| arithmetic, test | 1 |\n"
    assert find_scores_without_tools(f"## a\nwith the calculator\n## b\n{table}") == ["| exam | score |"]
    assert find_scores_without_tools(f"## a\nwith the calculator\n{table}") == []
