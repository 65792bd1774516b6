"""The smallest run that has everything: text made up here, real tasks, every stage."""

import functools
import json
import random
from pathlib import Path

from fledgling.config import Recipe, load_recipe

TASKS = "arithmetic = 0.2, counting = 0.1, spelling = 0.1, identity = 0.1"
CONSONANTS, VOWELS = (*"bcdfglmnprstv", "st", "tr"), (*"aeiou", "ea", "ou", "é")


@functools.cache
def made_up_documents(count: int = 120, characters: int = 1500) -> tuple[str, ...]:
    """Documents of sentences and small functions over 400 made-up words, some frequent, most rare (Zipf's law).

    They do not depend on any file that changes, so that the losses and held-out documents of a test do not either.
    """
    draw = random.Random(7)
    words = ["".join(draw.choice(part) for part in (CONSONANTS, VOWELS) * draw.randint(1, 3)) for _ in range(400)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    documents = []
    for _ in range(count):
        paragraphs: list[str] = []
        while sum(map(len, paragraphs)) < characters:
            chosen = draw.choices(words, weights, k=draw.randint(4, 14))
            if draw.random() < 0.2:
                name, first, second, *_ = chosen
                sign, number = draw.choice("+-*"), draw.randint(0, 99)
                paragraphs.append(f"def {name}({first}, {second}):\n    return {first} {sign} {second} * {number}\n")
            else:
                paragraphs.append(" ".join(chosen).capitalize() + draw.choice([".\n", "?\n", ". "]))
        documents.append("".join(paragraphs)[:characters])
    return tuple(documents)


def text_file(folder: Path) -> Path:
    """Writes the made-up documents, one file each; returns their folder."""
    target = folder / "text"
    target.mkdir(parents=True, exist_ok=True)
    for index, document in enumerate(made_up_documents()):
        (target / f"{index:04}.txt").write_text(document, encoding="utf-8")
    return target


def make_all_stages_recipe(folder: Path, **overrides: object) -> Recipe:
    """Writes a recipe of a few seconds, which runs in `folder`/run, and the files that it reads; returns it."""
    text = text_file(folder)
    pairs = folder / "pairs.jsonl"
    rows = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "no " * (n % 5 + 1)} for n in range(20)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reward = folder / "rewards.py"
    reward.write_text(
        "def vowels(question, answer):\n    return sum(map(answer.count, 'aeiou')) / 9\n", encoding="utf-8"
    )
    file = folder / "all_stages.toml"
    stage = (
        "steps = 4\nbatch_tokens = 512\nmicro_batch_size = 2\neval_questions = 3\nwarmup_steps = 1\nsave_every = 2\n"
    )
    mixed = f'mixture = {{"{text}" = 0.5, {TASKS}}}\n'
    file.write_text(
        f'name = "all_stages"\nseed = 3\n[tokenizer]\nvocab_size = 420\nsources = ["{text}"]\n'
        f"[model]\ndepth = 2\nwidth = 32\nheads = 2\ncontext = 128\n"
        f'[pretrain]\n{stage}{mixed}[midtrain]\n{stage}{mixed}[sft]\n{stage}train_on = "assistant"\n{mixed}'
        f'[dpo]\nsteps = 4\npairs = "{pairs}"\nbatch_size = 4\nmicro_batch_size = 1\n'
        "eval_questions = 3\nsave_every = 2\n"
        f"[rl]\nsteps = 4\nmicro_batch_size = 2\neval_questions = 3\nsave_every = 2\n"
        f"prompts_per_round = 3\ngroup_size = 4\n"
        f"max_new_tokens = 16\nlearning_rate = 0.1\ntasks = {{counting = 1.0}}\n"
        f'rewards = {{task = 1.0, "{reward}:vowels" = 1.0}}\n'
        f'[run]\nout = "{folder / "run"}"\ndevice = "cpu"\ndtype = "float32"\ncompile = "off"\nthreads = 1\n'
    )
    return load_recipe(file, [f"{key}={value}" for key, value in overrides.items()])
