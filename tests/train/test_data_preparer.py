"""A corpus too large for memory, from parquet files to trained steps: the same on two ranks."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fledgling.cli import main
from fledgling.corpora import prepare, tokenization
from fledgling.record import read_jsonl
from fledgling.runtime import device
from fledgling.train import run
from tests.all_stages import make_all_stages_recipe
from tests.ranks import on_ranks, one_thread

LARGE_SOURCE = [
    (prepare, "MAX_IN_MEMORY_BYTES", 1000),
    (prepare, "count_cores", lambda: 1),  # a process of a pool would hold out the product's own fraction
    (prepare, "tokenize_corpus", partial(tokenization.tokenize_corpus, unit_bytes=40_000)),
    (tokenization, "HELD_OUT_FRACTION", 0.2),
    (device, "measure_peak_flops", lambda device, dtype: 1e9),
]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    small = make_all_stages_recipe(tmp_path)
    texts = [path.read_text() for path in sorted((tmp_path / "text").glob("*.txt"))]
    source = tmp_path / "web"
    source.mkdir()
    for number in range(4):
        table = pyarrow.table({"text": texts[number::4]})
        pyarrow.parquet.write_table(table, source / f"shard_{number:05}.parquet", row_group_size=50)
    for module, name, value in LARGE_SOURCE:
        monkeypatch.setattr(module, name, value)
    mixture = {str(source): 1.0}
    return replace(
        small,
        tokenizer=replace(small.tokenizer, sources=(str(source),)),
        pretrain=replace(small.pretrain, mixture=mixture),
        stages=("pretrain",),
    )


def run_pretrain(recipe, out: str) -> None:
    for module, name, value in LARGE_SOURCE:  # in a rank's own process too
        setattr(module, name, value)
    run.run_stage(replace(recipe, run=replace(recipe.run, out=out)), "pretrain", quiet=True)


def test_steps_on_two_ranks_are_those_of_one(recipe, tmp_path):
    with one_thread():
        run_pretrain(recipe, str(tmp_path / "one"))
    [folder] = [path.parent for path in (tmp_path / "one" / "data").glob("*/corpus.json")]
    assert len(list(folder.glob("shard_*"))) >= 4
    shutil.copytree(tmp_path / "one" / "tokenizer", tmp_path / "two" / "tokenizer")
    shutil.copytree(tmp_path / "one" / "data", tmp_path / "two" / "data")
    on_ranks(2, run_pretrain, recipe, str(tmp_path / "two"))
    lines = [
        [(line["loss"], line["gradient_norm"]) for line in read_jsonl(tmp_path / out / "pretrain" / "metrics.jsonl")]
        for out in ("one", "two")
    ]
    assert len(lines[0]) == 4 and lines[0] == lines[1]
    evals = [line["name"] for line in read_jsonl(tmp_path / "one" / "pretrain" / "evals.jsonl")]
    assert "bits_per_byte" in evals, "held-out documents of all files measure it"


def test_data_prepare_prints_what_it_wrote_and_writes_it_once(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fledgling.cli.data.load_recipe", lambda *_: recipe)
    assert main(["data", "prepare", "all_stages", "--workers", "1"]) == 0
    out, err = capsys.readouterr()
    assert "training, " in out and "held out, " in out and "documents/s" in err and "MB/s" in err
    written = {path: path.stat().st_mtime_ns for path in Path(recipe.run.out).rglob("tokens.bin")}
    assert main(["data", "prepare", "all_stages"]) == 0
    second_out, second_err = capsys.readouterr()
    assert second_out == out and "tokenizing" not in second_err and len(written) >= 4
    assert "tokens found again in" in second_err and "4 files (4 .parquet)" in err and "4 files" in second_err
    assert {path: path.stat().st_mtime_ns for path in Path(recipe.run.out).rglob("tokens.bin")} == written
