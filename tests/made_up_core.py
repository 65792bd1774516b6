"""A CORE bundle with a few items for each task, in the published layout: every kind, with and without examples."""

import json
from pathlib import Path

CAPITALS = [("Italy", "Rome"), ("France", "Paris"), ("Spain", "Madrid"), ("Greece", "Athens")]
CHOICE = [
    {"query": f"Question: The capital of {country}?", "choices": [f"{right} city", "Rom", "Oslo is it"], "gold": 0}
    for country, right in CAPITALS
]
LETTERS = [
    {"query": f"Pick {letter}.\nA. yes\nB. no\nAnswer: ", "choices": ["A", "B"], "gold": index % 2}
    for index, letter in enumerate("stuvwx")
]
SCHEMA = [
    {
        "context_options": [
            "The cup fell off the table because the cup",
            "The cup fell off the table because the table",
        ],
        "continuation": "was round.",
        "gold": 0,
    },
    {
        "context_options": ["Ann thanked Sue because Ann", "Ann thanked Sue because Sue"],
        "continuation": "had helped her.",
        "gold": 1,
    },
    {
        "context_options": ["The dog chased the cat and the dog", "The dog chased the cat and the cat"],
        "continuation": "got away.",
        "gold": 1,
    },
]
LANGUAGE = [
    {"context": f" {country} is where they eat in\nAnswer: ", "continuation": right, "category": country[0]}
    for country, right in CAPITALS
]
FILES = {
    "facts/choice.jsonl": CHOICE,
    "facts/letters.jsonl": LETTERS,
    "words/schema.jsonl": SCHEMA,
    "words/language.jsonl": LANGUAGE,
}
TASKS = """icl_tasks:
-
  label: choice
  dataset_uri: facts/choice.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: choice_zeroshot
  dataset_uri: facts/choice.jsonl
  num_fewshot: [0]
  icl_task_type: multiple_choice
-
  label: letters
  dataset_uri: facts/letters.jsonl
  num_fewshot: [1]
  icl_task_type: multiple_choice
-
  label: schema
  dataset_uri: words/schema.jsonl
  num_fewshot: [0]
  icl_task_type: schema
-
  label: schema_shots
  dataset_uri: words/schema.jsonl
  num_fewshot: [1]
  icl_task_type: schema
-
  label: language
  dataset_uri: words/language.jsonl
  num_fewshot: [2]
  icl_task_type: language_modeling
  has_categories: true
-
  label: language_zeroshot
  dataset_uri: words/language.jsonl
  num_fewshot: [0]
  icl_task_type: language_modeling
"""
BASELINES = {
    "choice": 33, "choice_zeroshot": 33, "letters": 50, "schema": 50, "schema_shots": 50,
    "language": 0, "language_zeroshot": 0,
}  # fmt: skip


def write_core_bundle(root: Path) -> Path:
    """Writes the bundle to root/core and returns root, the value of --data-dir."""
    folder = root / "core"
    for name, rows in FILES.items():
        file = folder / "eval_data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "core.yaml").write_text(TASKS, encoding="utf-8")
    lines = ["Eval Task,Random baseline", *(f"{name},{value}" for name, value in BASELINES.items())]
    (folder / "eval_meta_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
