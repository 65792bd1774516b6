"""Tests the report: correct numbers, a self-contained page, and no injection or failure from a run's contents."""

import io
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from fledgling.cli import main
from fledgling.record import Recorder
from fledgling.report import build_report, make_evals_table, summarize_run
from fledgling.report.page_footer import is_as_written
from fledgling.report.provenance import reading_rows
from fledgling.report.run_data import load_run_data
from fledgling.report.run_page import eval_rows
from fledgling.report.summary import run_title

from .synthetic_run import make_run

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects elements, attributes and text, and checks that elements close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def page(run) -> Page:
    return Page(build_report(run).read_text("utf-8"))


def assert_self_contained(found: Page) -> None:
    assert not {"script", "img", "image", "iframe", "object", "embed", "link", "a", "form", "use"} & set(found.tags)
    for name, value in found.attributes:
        assert not name.startswith("on") and name not in ("href", "src", "xlink:href"), (name, value)
    assert "url(" not in "".join(found.text)


def test_the_page_shows_everything_and_is_self_contained(run):
    found = page(run)
    assert_self_contained(found)
    text = "".join(found.text)
    for part in ("quickstart", "bits per byte", "counting, test wordings", "60.0 %", "Predicted and measured"):
        assert part in text
    for part in (
        "What is 12 + 30?",
        "12 + 30 = 42.",
        "ab12ab12ab12ab12",
        "compiled for two cores",
        "[pretrain]",
    ):
        assert part in text
    assert "python" in text and "midtrain" in text
    assert found.tags.count("svg") > 20
    assert "prefers-color-scheme: dark" in text


BAD = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 191 }}{% raw %}&lt;[red]\x00\ud83d\u202e"


def test_nothing_in_a_run_is_markup(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain", "sft"), scale=0.05)
    for name in ("evals", "samples", "notices", "metrics"):
        with open(run / "sft" / f"{name}.jsonl", "a") as file:
            line = {
                "step": 3,
                "name": BAD,
                "value": 0.5,
                "prompt": BAD,
                "text": BAD,
                "loss": BAD,
                "stage": BAD,
            }
            file.write(json.dumps(line) + "\n")
    (run / "recipe.toml").write_text(f"name = {json.dumps(BAD[:-3])}\ndescription = '''{BAD[:40]}'''\n")
    (run / "environment.json").write_text(json.dumps({BAD: BAD, "gpus": [BAD], "memory": BAD}))
    (run / "tokenizer/training.json").write_text(json.dumps({"vocab_size": BAD, "fingerprint": BAD}))
    (run / "data/<b>x").mkdir()
    (run / "data/<b>x/manifest.json").write_text(json.dumps({"tokens": BAD, "files": {"tokens.bin": {"sha256": BAD}}}))
    found = page(run)
    assert_self_contained(found)
    text = "".join(found.text)
    assert "alert(1)" in text and "1337" not in text and "{{ 7 * 191 }}" in text
    assert not {"b", "red"} & set(found.tags)
    from rich.console import Console

    printed = io.StringIO()
    Console(width=300, file=printed).print(make_evals_table(run))
    assert "[red]" in printed.getvalue() and not {"\x00", "\u202e"} & set(printed.getvalue())


def test_no_character_of_a_recipe_or_directory_reorders_the_page(tmp_path):
    run = make_run(tmp_path / "run\u202e", stages=("sft",), scale=0.05)
    for text in ('name = "a\u202eb"\ndescription = "c\u2066d"\n', "# a comment \u202e\n"):
        (run / "recipe.toml").write_text(text, encoding="utf-8")
        written = build_report(run).read_text("utf-8")
        assert not {"\u202e", "\u2066"} & set(written) and written.count("\ufffd") >= 2
        assert "\u202e" not in run_title(load_run_data(run))


def test_a_run_whose_name_is_no_utf_8_has_a_report_as_it_was_written(tmp_path):
    run = make_run(tmp_path / "run", stages=("sft",), scale=0.05).rename(tmp_path / os.fsdecode(b"r\xff"))
    (run / "recipe.toml").unlink()
    assert is_as_written(build_report(run).read_bytes().decode("utf-8")) is True


WRONG = (
    b"",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"[" * 50_000,
    b'{"step": NaN, "name": 1, "value": Infinity}',
    b'{"step": -1}',
)
WRONG += (
    b'{"step": 1e400, "loss": []}',
    b'{"files": 3, "tokens": {}, "seconds": "x", "time": 1, "cost": [], "name": []}',
)
WRONG += (b'{"step": 1, "name": "x", "value": 1e308, "low": {}, "n": 1e308, "loss": -1e308, "mfu": "fast"}',)
FILES = (
    "recipe.toml",
    "environment.json",
    "plan.json",
    "tokenizer/training.json",
    "data/embedded-train/manifest.json",
)
FILES += ("sft/metrics.jsonl", "sft/evals.jsonl", "sft/samples.jsonl", "sft/notices.jsonl", "sft/done.json")
FILES += ("sft/checkpoints/step-00000001/model.safetensors",)


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_affects_only_its_own_part(run, tmp_path, name):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    for content in WRONG:
        (copy / name).write_bytes(content)
        assert "What it can do" in "".join(page(copy).text)
        json.dumps(summarize_run(copy), allow_nan=False)
        make_evals_table(copy)
    (copy / name).unlink()
    page(copy)


def test_a_run_that_has_just_started_has_a_report(tmp_path):
    run = tmp_path / "young"
    (run / "pretrain").mkdir(parents=True)
    (run / "pretrain/metrics.jsonl").write_text('{"step": 1, "loss": 7.0}\n{"step": 2, "lo')
    assert_self_contained(page(run))
    assert summarize_run(run)["stages"]["pretrain"]["steps"] == 1
    assert summarize_run(run)["evals"] == []
    assert make_evals_table(run).row_count == 0


def test_the_command_writes_the_page_and_prints_its_numbers(run, capsys):
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "quickstart"
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "counting" in out and out.rstrip().endswith("report.html")
    assert (run / "report.html").is_file()


def test_the_report_needs_no_torch(run):
    script = "import sys; from fledgling.report import build_report; build_report(sys.argv[1])"
    script += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script, str(run)], check=True)


def test_what_the_page_leaves_out_is_reported(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain",), scale=0.02)
    with Recorder(run / "pretrain", "pretrain", 10, quiet=True) as recorder:
        for number in range(70):
            recorder.log_evaluation(10, f"task_{number}", 0.5, n=50)
            recorder.log_sample(10, f"prompt {number}", "answer")
    page = build_report(run).read_text()
    assert "11 more evaluations are in evals.jsonl" in page
    assert "recorded answers are shown; all are in samples.jsonl" in page


def test_n_is_a_range_where_stages_measured_different_numbers(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain", "midtrain"), scale=0.02)
    for stage, count in (("pretrain", 50), ("midtrain", 200)):
        with Recorder(run / stage, stage, 10, quiet=True) as recorder:
            recorder.log_evaluation(10, "task", 0.5, n=count)
    assert {row["name"]: row["n"] for row in eval_rows(load_run_data(run))}["task"] == "50–200"


def test_planned_parameters_are_not_shown_as_counted(tmp_path):
    run = make_run(tmp_path / "run", stages=("pretrain",), scale=0.02)
    assert "planned: no checkpoint is left" in build_report(run).read_text()


def test_what_each_stage_read_of_its_sources_is_a_table(tmp_path):
    run = make_run(tmp_path)
    done = run / "pretrain" / "done.json"
    sources = [{"source": "notes", "rows": 1200, "read": 900, "passes": 0.75, "remaining": 300}, {"source": "torn"}, 7]
    done.write_text(json.dumps({**json.loads(done.read_text()), "sources": sources}))
    assert reading_rows(load_run_data(run)) == [("pretrain", "notes", "900", "1,200", "0.75", "300")]
    page = build_report(run).read_text()
    assert "What was read" in page and "no row is read twice before all are read once" in " ".join(page.split())
    done.write_text(json.dumps({"sources": "nonsense"}))
    assert reading_rows(load_run_data(run)) == [] and "What was read" not in build_report(run).read_text()
