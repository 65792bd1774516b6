"""Tests the report: correct numbers, a self-contained page, and no injection or failure from a run's contents."""

import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from fledgling.cli import main
from fledgling.config import UserError
from fledgling.report import build_report, make_evals_table, summarize_run

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


def test_the_last_value_of_each_stage_with_its_baseline(run):
    found = summarize_run(run)
    values = {(e["stage"], e["name"]): e for e in found["evals"]}
    assert len(values) == len(found["evals"])
    last = {(e["stage"], e["name"]): e for e in found["history"]}
    assert values == last
    assert set(values["sft", "counting"]) == {
        "stage",
        "step",
        "name",
        "value",
        "low",
        "high",
        "n",
        "baseline",
    }
    assert values["sft", "counting"]["baseline"] == 0.6 and values["sft", "counting"]["step"] == 40
    assert list(found["stages"]) == ["pretrain", "midtrain", "sft", "rl"]
    pretrain = found["stages"]["pretrain"]
    assert pretrain["steps"] == 50 and pretrain["tokens"] == 50 * 4096 and pretrain["finished"]
    assert 17_000 < pretrain["tokens_per_second"] < 19_000, "the compiling step was counted"
    assert pretrain["saving"] == pytest.approx({"stall": 2 * 0.01 + 0.21, "writer": 3 * 0.2})
    assert pretrain["hours"] == pytest.approx(50 * 4096 / 18_000 / 3600, rel=0.2)


def test_predicted_and_measured_have_the_same_keys(run, tmp_path):
    found = summarize_run(run)
    assert set(found["predicted"]) == set(found["measured"]) >= {"pretrain.hours", "pretrain.tokens", "pretrain.usd"}
    bare = summarize_run(make_run(tmp_path / "bare", scale=0.05, planned=False))
    assert bare["predicted"] == bare["measured"] == {}


def test_the_page_shows_everything_and_is_self_contained(run):
    found = page(run)
    assert_self_contained(found)
    text = "".join(found.text)
    for part in ("quickstart", "bits per byte", "counting, new wordings", "60.0 %", "Predicted and measured"):
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


def test_repeated_steps_count_once(tmp_path):
    run = tmp_path / "again"
    (run / "sft").mkdir(parents=True)
    lines = [{"step": s, "name": "x", "value": v} for s, v in ((0, 0.1), (5, 0.2), (0, 0.3))]
    (run / "sft/evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(e["step"], e["value"]) for e in summarize_run(run)["history"]] == [(0, 0.3), (5, 0.2)]
    assert [e["value"] for e in summarize_run(run)["evals"]] == [0.2]


def test_parameters_are_counted_from_the_checkpoint(tmp_path):
    import torch
    from safetensors.torch import save_file

    run = make_run(tmp_path / "run", stages=("pretrain",), scale=0.05)
    directory = run / "pretrain/checkpoints/step-00000008"
    directory.mkdir(parents=True)
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, directory / "model.safetensors")
    assert summarize_run(run)["measured"]["parameters"] == 17


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_missing_run_is_one_line(tmp_path, make, capsys):
    make(tmp_path / "run")
    for look in (build_report, summarize_run, make_evals_table):
        with pytest.raises(UserError, match=r"run .*(does not exist|is a file|nothing to report yet)"):
            look(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 1
    assert re.fullmatch(r"error: run .*\n", capsys.readouterr().err)


def test_the_command(run, capsys):
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
