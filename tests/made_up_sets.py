"""Small made-up data sets in the layout of the public ones, so that their tests need no download."""

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
    """Writes rows as JSONL, compressed where the name ends in .gz, or as parquet; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=7)
        return path
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def make_choice_rows(word: str, count: int, **more) -> list[dict]:
    """Returns questions with four choices, of which number % 4 is right."""
    return [
        {
            "question": f"Which {word} stands at place {number}?",
            "choices": [f"{word} {number} {place}" for place in range(4)],
            "answer": number % 4,
            **{key: value(number) for key, value in more.items()},
        }
        for number in range(count)
    ]


def make_word_problem(a: int, b: int) -> dict:
    """Returns a word problem with one marked calculation, whose result has redundant zeros as in GSM8K."""
    return {
        "question": f"Ann has {a} apples and buys {b} more. How many has she?",
        "answer": f"Ann has {a}+{b} = <<{a}+{b}={a + b}.00>>{a + b} apples.\n#### {a + b:,}",
    }


def make_function_row(number: int) -> dict:
    """Returns a function to write, with a helper in its prompt and a test of two cases."""
    return {
        "task_id": f"Made/{number}",
        "prompt": f"import math\n\n\ndef twice(x):\n    return 2 * x\n\n\ndef add_{number}(x):\n"
        f'    """Return twice x plus {number}."""\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return twice(x) + {number}\n",
        "test": f"def check(f):\n    assert f(2) == {4 + number}\n    assert f(0) == {number}\n",
    }


def alternate_subject(number: int) -> str:
    """Returns one of two subjects, alternately."""
    return ("botany", "music")[number % 2]


def write_public_sets(root: Path) -> Path:
    """Writes every public set under `root`, with 12 to 40 rows a split; returns `root`."""
    evals = root / "evals"
    for name in ("arc_easy", "arc_challenge"):
        for split, count in (("train", 30), ("validation", 3), ("test", 12)):
            write_rows(evals / "arc" / f"{name}_{split}.jsonl", make_choice_rows(f"{name} {split} stone", count))
    write_rows(evals / "mmlu" / "mmlu_auxiliary_train.jsonl", make_choice_rows("leaf", 40))
    write_rows(evals / "mmlu" / "mmlu_test.jsonl", make_choice_rows("tree", 24, subject=alternate_subject))
    write_rows(evals / "gsm8k" / "train.jsonl", [make_word_problem(n, 1000 - n) for n in range(40)])
    write_rows(evals / "gsm8k" / "test.jsonl", [make_word_problem(n, 70_000 + n) for n in range(12)])
    write_rows(evals / "humaneval" / "HumanEval.jsonl.gz", [make_function_row(n) for n in range(5)])
    conversations = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"{n}, gladly."}]}
        for n in range(50)
    ]
    write_rows(root / "smoltalk" / "data" / "all" / "train-00000-of-00001.parquet", conversations)
    return root
