"""The smallest run that has everything: real text (from this package's source), real tasks, every stage."""

import json
from pathlib import Path

import fledgling
from fledgling.config import Recipe, load_recipe

TASKS = "arithmetic = 0.2, counting = 0.1, spelling = 0.1, identity = 0.1"


def text_file(folder: Path) -> Path:
    """Every eighth part of the package's source, as small documents: enough for every stage, and quick to prepare."""
    target = folder / "text"
    target.mkdir(parents=True, exist_ok=True)
    sources = [path.read_text(encoding="utf-8") for path in sorted(Path(fledgling.__file__).parent.rglob("*.py"))]
    parts = [source[start : start + 1500] for source in sources for start in range(0, len(source), 1500)]
    for index, part in enumerate(parts[::8]):
        (target / f"{index:04}.txt").write_text(part, encoding="utf-8")
    return target


def tiny(folder: Path, **overrides: object) -> Recipe:
    """A recipe of a few seconds that runs in `folder`/run."""
    text = text_file(folder)
    pairs = folder / "pairs.jsonl"
    rows = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "no " * (n % 5 + 1)} for n in range(20)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reward = folder / "rewards.py"
    reward.write_text(
        "def vowels(question, answer):\n    return sum(map(answer.count, 'aeiou')) / 9\n", encoding="utf-8"
    )
    file = folder / "tiny.toml"
    stage = (
        "steps = 4\nbatch_tokens = 512\nmicro_batch_size = 2\neval_questions = 3\nwarmup_steps = 1\nsave_every = 2\n"
    )
    mixed = f'mixture = {{"{text}" = 0.5, {TASKS}}}\n'
    file.write_text(
        f'name = "tiny"\nseed = 3\n[tokenizer]\nvocab_size = 420\nsources = ["{text}"]\n'
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
