"""The GPU check runs on a CPU with small shapes: parts fail separately, errors are kept, and time is limited."""

import json

import pytest

from fledgling.bench import gpu, gpu_runs
from fledgling.cli import main
from fledgling.runtime.accelerator import is_available
from fledgling.runtime.device import choose_dtype, name_dtype


def test_parts_run_in_small_and_one_that_fails_stops_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu.PARTS, "broken", 60)  # no such part exists in the process that runs it
    assert (
        main(["bench", "gpu", "--out", str(tmp_path), "--tiny", "--minutes", "4", "--parts", "broken,peaks,head"]) == 1
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["broken", "peaks", "head"]
    assert results["broken"]["state"] == "failed (1)" and "KeyError: 'broken'" in results["broken"]["error"]
    assert results["peaks"]["state"] == results["head"]["state"] == "ok"
    assert all(row["tflops"] > 0 for row in results["head"]["rows"])
    reported = capsys.readouterr().out
    assert "broken: failed (1)" in reported and f"{name_dtype(choose_dtype(gpu.get_device()))} product" in reported


def test_no_part_runs_when_the_time_is_over(tmp_path):
    results = gpu.run_gpu_check(tmp_path, 0.01, ["peaks"], tiny=True)
    assert results == {"peaks": {"state": "skipped", "rows": [], "error": "no time left"}}


def test_a_part_is_stopped_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "peaks", 1)
    monkeypatch.setattr(gpu, "MIN_PART_SECONDS", 0)
    assert gpu.run_gpu_check(tmp_path, 1, ["peaks"], tiny=True)["peaks"]["state"] == "out of time"


def test_wrong_parts_and_minutes_are_one_line(tmp_path, capsys):
    assert main(["bench", "gpu", "--out", str(tmp_path), "--parts", "peak"]) == 1
    assert main(["bench", "gpu", "--out", str(tmp_path), "--minutes", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: --parts peak: expected some of peaks, tests")


def test_a_tiny_run_reads_little_text_and_harvests_none(tmp_path):
    """Preparing the embedded text took a core longer than the limit of the part."""
    recipe = gpu_runs.load_small_recipe(tmp_path, gpu_runs.list_tiny_changes(tmp_path))
    sizes = [file.stat().st_size for file in (tmp_path / "text").iterdir()]
    assert gpu_runs.TINY_TEXT_BYTES < sum(sizes) < 2 * gpu_runs.TINY_TEXT_BYTES
    mixtures = [recipe.stage_config(name).mixture for name in recipe.stages]
    read = {*recipe.tokenizer.sources, *recipe.rl.tasks, *(name for mixture in mixtures for name in mixture)}
    assert read == {str(tmp_path / "text"), "arithmetic"}


@pytest.mark.skipif(is_available("cuda"), reason="there is a GPU")
def test_without_a_gpu_the_full_shapes_are_rejected_at_once(tmp_path, capsys):
    assert main(["bench", "gpu", "--out", str(tmp_path / "out")]) == 1
    assert (
        "found no CUDA device (NVIDIA or AMD); expected one, or --tiny" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )
