"""Small made-up sets in the layout of the public ones, so that every test of them runs anywhere."""

import gzip
import json
import os
from pathlib import Path

import pytest

REAL = os.environ.get("FLEDGLING_DATA")
needs_real_data = pytest.mark.skipif(
    not REAL or not (Path(REAL) / "evals").is_dir(), reason="FLEDGLING_DATA names no folder with evals/"
)


def write_rows(path: Path, rows: list) -> Path:
    """Write rows as JSONL, packed where the name ends in .gz, or as parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
        return path
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def choice_rows(word: str, count: int, **more) -> list[dict]:
    """Questions of four choices whose right one is `number % 4`."""
    return [
        {
            "question": f"Which {word} stands at place {number}?",
            "choices": [f"{word} {number} {place}" for place in range(4)],
            "answer": number % 4,
            **{key: value(number) for key, value in more.items()},
        }
        for number in range(count)
    ]


def problem(a: int, b: int) -> dict:
    """A word problem with one marked calculation, its result written as GSM8K now and then writes it."""
    return {
        "question": f"Ann has {a} apples and buys {b} more. How many has she?",
        "answer": f"Ann has {a}+{b} = <<{a}+{b}={a + b}.00>>{a + b} apples.\n#### {a + b:,}",
    }


def function(number: int) -> dict:
    """A function to write, with a helper in its prompt and a test of two cases."""
    return {
        "task_id": f"Made/{number}",
        "prompt": f"import math\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef add_{number}(x):\n"
        f'    """Return twice x plus {number}."""\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return twice(x) + {number}\n",
        "test": f"def check(f):\n    assert f(2) == {4 + number}\n    assert f(0) == {number}\n",
    }


def subject(number: int) -> str:
    """Two subjects by turns."""
    return ("botany", "music")[number % 2]


def made_up_sets(root: Path) -> Path:
    """Every public set under `root`, small: 12 to 40 rows a split."""
    evals = root / "evals"
    for name in ("arc_easy", "arc_challenge"):
        for split, count in (("train", 30), ("validation", 3), ("test", 12)):
            write_rows(evals / "arc" / f"{name}_{split}.jsonl", choice_rows(f"{name} {split} stone", count))
    write_rows(evals / "mmlu" / "mmlu_auxiliary_train.jsonl", choice_rows("leaf", 40))
    write_rows(evals / "mmlu" / "mmlu_test.jsonl", choice_rows("tree", 24, subject=subject))
    write_rows(evals / "gsm8k" / "train.jsonl", [problem(n, 1000 - n) for n in range(40)])
    write_rows(evals / "gsm8k" / "test.jsonl", [problem(n, 70_000 + n) for n in range(12)])
    write_rows(evals / "humaneval" / "HumanEval.jsonl.gz", [function(n) for n in range(5)])
    talks = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}, gladly."}]}
        for n in range(50)
    ]
    write_rows(root / "smoltalk" / "data" / "all" / "train-00000-of-00001.parquet", talks)
    return root
