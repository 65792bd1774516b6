"""`scaling inference` from the command line: samples are saved, and a stopped command resumes."""

import json


def test_stopped_sampling_resumes_with_the_same_samples(trained_run, run_command, tmp_path):
    options = ("--task", "spelling", "--samples", 2, "--questions", 3, "--hold-out", 1, "--device", "cpu", "--json")
    words = ("scaling", "inference", trained_run[0], *options, "--out", tmp_path / "out")
    code, out, _ = run_command(*words)
    assert code == 0 and len(json.loads(out)["models"]) == 1
    [file] = (tmp_path / "out").glob("draws-spelling-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 4 and json.loads(lines[0])["flops_per_token"] > 0
    assert len(json.loads(lines[1])["tokens"]) == len(json.loads(lines[1])["answers"]) == 2
    file.write_text("".join(lines[:2]))
    assert run_command(*words)[1] == out and file.read_text().splitlines(keepends=True) == lines
