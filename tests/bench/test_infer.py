"""The inference benchmark on a tiny model: shares follow from the times, and two backends run the same model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fledgling.bench import infer
from fledgling.bench.infer import find_exceeded_limits, format_inference_table, measure_inference
from fledgling.bench.sized_recipe import PLAIN, with_model_size
from fledgling.cli import main
from fledgling.config import load_recipe
from fledgling.export.llama_cpp import describe_llama_library

RUN = ["run.dtype=float32", "run.device=cpu", "run.threads=1"]


def test_results_state_their_shares_of_the_limits():
    pytest.importorskip("transformers")
    recipe = with_model_size(load_recipe("quickstart", [*PLAIN, *RUN]), depth=2, vocab_size=300, context=64)
    result = measure_inference(recipe, batches=(1, 3), contexts=(8, 20), tokens=5, repeats=2)
    rows, limits = result["rows"], result["limits"]
    row_cases = [(row["engine"], row["batch"], row["context"]) for row in rows]
    cases = [(1, 8), (3, 8), (1, 20)]
    names = ("fledgling", "fledgling int8", "fledgling int4", "transformers")
    assert row_cases == [(engine, *case) for case in cases for engine in names]
    for row in rows:
        seconds = row["batch"] / row["tokens_per_second"]
        assert row["share_of_bandwidth"] == pytest.approx(
            row["bytes_per_step"] / seconds / limits["bytes_per_second"][row["engine"]]
        )
        assert 0 < row["share_of_flops"] < 1 and 0 < row["prefill_share_of_flops"] < 1
        assert row["tokens_per_second_best"] >= row["tokens_per_second"] > 0
        assert row["prefill_tokens_per_second"] == pytest.approx(
            row["batch"] * row["context"] / row["time_to_first_token"]
        )
    # two layers of 12 x 128^2 matrices and a head of 300 x 128, float32; keys and values of 8 + 2.5 tokens
    matrices, cache = 2 * 12 * 128**2 + 300 * 128, 2 * 10 * 2 * 128 * 4
    scales = {"fledgling int8": 1 + 2 / 64, "fledgling int4": 0.5 + 2 / 32}
    assert [row["bytes_per_step"] for row in rows[:4]] == [scales.get(name, 4) * matrices + cache for name in names]
    assert result["logits_differ"] < 1e-3
    assert "transformers" in format_inference_table(result)


def test_a_share_above_one_is_reported():
    """Weights in a cache, or a limit measured on a busy machine: the share is no share of this limit."""
    row = {"engine": "fledgling", "batch": 1, "context": 8, "share_of_bandwidth": 1.2, "share_of_bandwidth_best": 0.9}
    row |= {"share_of_flops": 0.1, "prefill_share_of_flops": 0.2}
    (note,) = find_exceeded_limits([row, {**row, "batch": 8, "share_of_bandwidth": 0.8}])
    assert note.startswith("share of bandwidth above 100 %: fledgling 1 x 8;")
    assert find_exceeded_limits([{**row, "share_of_bandwidth": 1.0}]) == []


def test_a_limit_that_is_exceeded_is_measured_again(monkeypatch):
    measured = iter([1.0, *[1e15] * 10])
    monkeypatch.setattr(infer, "measure_stream_bandwidth", lambda device, size: next(measured))
    monkeypatch.setattr(infer, "measure_peak_flops", lambda device, dtype: 1e15)
    recipe = with_model_size(load_recipe("quickstart", [*PLAIN, *RUN]), depth=1, vocab_size=64, context=16)
    result = measure_inference(recipe, batches=(1,), contexts=(4,), tokens=2, repeats=1, peers=False, bits=(16,))
    assert result["limits"]["bytes_per_second"] == {"fledgling": 1e15} and result["notes"] == []
    monkeypatch.setattr(infer, "measure_stream_bandwidth", lambda device, size: 1.0)
    result = measure_inference(recipe, batches=(1,), contexts=(4,), tokens=2, repeats=1, peers=False, bits=(16,))
    assert "share of bandwidth above 100 %" in format_inference_table(result)


def test_llama_cpp_is_compared_case_by_case():
    speeds = {
        "fledgling": 30.0,
        "fledgling int8": 40.0,
        "llama.cpp f16": 20.0,
        "llama.cpp q8_0": 50.0,
        "transformers": 9.0,
    }
    rows = [{"engine": name, "batch": 1, "context": 8, "tokens_per_second": speed} for name, speed in speeds.items()]
    (line,) = infer.format_peer_ratios([*rows, {**rows[0], "batch": 4}])
    assert line == "1 x 8, each further token, fledgling against llama.cpp: 1.50 x f16, 0.80 x q8_0"


def test_llama_cpp_is_named_with_its_package_and_instructions():
    library = SimpleNamespace(
        distribution="numpy", llama_print_system_info=lambda: b"CPU : AVX2 = 1 | FMA = 0 | LLAMAFILE = 1 | "
    )
    assert describe_llama_library(library) == f"llama.cpp (numpy {np.__version__}; AVX2 LLAMAFILE)"


def test_json_is_printed_without_peers(capsys):
    words = [
        "--bits",
        "16",
        "--depth",
        "1",
        "--vocab-size",
        "64",
        "--batch",
        "1",
        "2",
        "--context",
        "4",
        "--tokens",
        "2",
        "--no-peers",
    ]
    sets = [word for key in RUN for word in ("--set", key)]
    assert main(["bench", "infer", *words, "--repeats", "1", *sets, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["batch"] for row in result["rows"]] == [1, 2] and result["logits_differ"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "batch: got 0, expected at least 1"),
        (["--tokens", "1"], "tokens: got 1, expected at least 2"),
        (["--context", "0"], "context: got 0"),
        (["--repeats", "0"], "repeats: got 0"),
        (["--bits", "3"], "bits: got 3, expected some of 16, 8 and 4"),
    ],
)
def test_a_usage_error_is_one_line(words, message, capsys):
    assert main(["bench", "infer", *words]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_llama_cpp_is_a_backend():
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    overrides = [*RUN, "model.family=llama", "model.intermediate_size=384"]
    recipe = with_model_size(load_recipe("quickstart", overrides), depth=2, vocab_size=300, context=64)
    rows = measure_inference(recipe, batches=(1, 2), contexts=(8,), tokens=3, repeats=1)["rows"]
    llama_cpp = {row["engine"]: row for row in rows if row["engine"].startswith("llama.cpp") and row["batch"] == 1}
    assert list(llama_cpp) == ["llama.cpp f16", "llama.cpp q8_0", "llama.cpp q4_0"]
    assert all(row["batch"] == 1 or "llama.cpp" not in row["engine"] for row in rows)
    matrices, cache = 2 * (4 * 128**2 + 3 * 128 * 384) + 300 * 128, 2 * 9 * 2 * 128 * 4
    assert llama_cpp["llama.cpp q8_0"]["bytes_per_step"] == matrices * 34 / 32 + 5 * 128 * 4 + cache
