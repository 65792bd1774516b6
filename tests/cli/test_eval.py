"""Every verb of `fledgling eval` gives the same result on one rank and on two."""

import json

import pytest
import torch

from fledgling.cli import main
from tests.made_up_core import write_core_bundle


@pytest.mark.parametrize("verb", ["chat", "core", "bpb", "passk"])
def test_two_ranks_give_the_results_of_one(trained_run, tmp_path, verb, monkeypatch, capfd):
    out, data = trained_run
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "text.txt").write_text("A cat sat on a mat, and another cat saw it. " * 400)
    core = ("--data-dir", write_core_bundle(tmp_path / "core"), "--max-per-task", 4, "--dtype", "float32")
    more = {
        "chat": ("--tasks", "arc_easy,gsm8k,spelling", "--questions", 9, "--data-dir", data),
        "core": core,
        "bpb": (tmp_path / "text.txt",),
        "passk": ("--task", "spelling", "--samples", 2, "--k", "1,2", "--questions", 40),
    }[verb]
    words = [str(word) for word in ("eval", verb, out, *more, "--device", "cpu", "--json")]
    out_option = {"chat": "--out", "core": "--out", "bpb": None, "passk": "--out"}[verb]
    results = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for ranks in (1, 2):
        folder = [out_option, str(tmp_path / f"out{ranks}")] if out_option else []
        assert main([*words, *folder, *(["--gpus", "2"] if ranks == 2 else [])]) == 0
        results.append(json.loads(capfd.readouterr().out))
    torch.set_num_threads(threads)
    for result in results if verb == "core" else ():
        for task in result["tasks"]:
            task.pop("seconds")
    assert results[0] == results[1]
