"""A run of a fraction of a second a stage: one layer, one step, little text. For tests that walk many paths."""

import json
import random
import re
from pathlib import Path

WORDS = re.split(
    " ", "river mill bridge morning door number letter window it's They'll 12 345 (two) garden; winter: \n"
)
SEED = 3  # a row of 64 bytes cuts most conversations; with this seed the first two rows have answers to learn from


def write_pairs(file: Path, count: int = 8) -> Path:
    """Writes pairs of one sentence each."""
    rows = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "no " * (n % 3 + 1)} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_recipe(folder: Path) -> Path:
    """Writes fast.toml, which runs in `folder`/run, with its text, pairs and a custom reward; returns its path."""
    text = folder / "text"
    text.mkdir(parents=True)
    draw = random.Random(0)
    for number in range(60):
        (text / f"{number:02}.txt").write_text(" ".join(draw.choices(WORDS, k=80)), encoding="utf-8")
    write_pairs(folder / "pairs.jsonl")
    (folder / "rewards.py").write_text(
        "def vowels(question, answer):\n    return sum(map(answer.count, 'aeiou')) / 9\n"
    )
    stage = "steps = 1\nbatch_tokens = 128\nmicro_batch_size = 1\neval_questions = 1\nwarmup_steps = 0\n"
    conversations = "mixture = {identity = 1.0}\n"
    file = folder / "fast.toml"
    file.write_text(
        f'seed = {SEED}\nstages = ["pretrain", "midtrain", "sft", "dpo", "rl"]\n'
        f'[tokenizer]\nvocab_size = 330\nsources = ["{text}"]\n'
        "[model]\ndepth = 1\nwidth = 64\nheads = 2\ncontext = 64\n"
        f'[pretrain]\n{stage}mixture = {{"{text}" = 1.0}}\n[midtrain]\n{stage}{conversations}'
        f"[sft]\n{stage}{conversations}"
        f'[dpo]\nsteps = 1\npairs = "{folder / "pairs.jsonl"}"\nbatch_size = 3\nmicro_batch_size = 4\n'
        "eval_questions = 1\n"
        "[rl]\nsteps = 1\nmicro_batch_size = 2\neval_questions = 1\nprompts_per_round = 2\ngroup_size = 2\n"
        "max_new_tokens = 3\ntasks = {counting = 1.0}\n"
        f'[run]\nout = "{folder / "run"}"\ndevice = "cpu"\ndtype = "float32"\ncompile = "off"\nthreads = 1\n',
        encoding="utf-8",
    )
    return file
