"""Single flipped bits over all files of a checkpoint: python -m tests.campaigns.flips --count 500 --seed 1

Every flip changes one bit of one file of the newest checkpoint of a stage. Checks of each: `verify_checkpoint`,
`load_checkpoint` and `fledgling checkpoint verify` reject it and name the file, a run would resume from the checkpoint
before, and with the bit restored the checkpoint is valid again. A flip that makes another version's number of the
format is named as that, and nothing falls back: such a checkpoint may be whole. The files take turns, so that small
ones are hit as often as large ones.
"""

import argparse
import contextlib
import io
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from fledgling.cli import main as command
from fledgling.config import UserError
from fledgling.record import checkpoint
from fledgling.record.rng_state import get_rng_state

OTHER_FORMAT = re.compile(rb'"format": "fledgling checkpoint \d+"')


def make_stage(folder: Path) -> Path:
    """Makes a stage with two checkpoints that have every file of a real one; returns their directory."""
    directory, source = folder / "pretrain" / "checkpoints", folder / "tokenizer.json"
    folder.mkdir(exist_ok=True)
    source.write_text(json.dumps({"vocabulary": list(range(300))}))
    for step in (300, 600):
        generator = torch.Generator().manual_seed(step)
        model = {f"blocks.{i}.weight": torch.randn(24, 24, generator=generator) for i in range(4)}
        tensors = {
            "model": model,
            "optimizer": {f"{name}.velocity": value * 2 for name, value in model.items()},
            "random": get_rng_state(),
        }
        state = {"stage": "pretrain", "step": step, "stream": {"step": step}, "recipe": 'name = "made up"\n' * 20}
        checkpoint.save_checkpoint(directory, step, tensors, state, {"tokenizer.json": source})
    return directory


def run_verify_command(directory: Path) -> tuple[int, list[str]]:
    """Returns the exit code of `fledgling checkpoint verify`, and the corrupt files that it names."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = command(["checkpoint", "verify", str(directory), "--json"])
    return code, [
        f"{name} {problem}"
        for report in json.loads(out.getvalue())["checkpoints"]
        for name, problem in report["files"].items()
        if problem
    ]


def flip(directory: Path, file: Path, bit: int) -> list[str]:
    """Flips bit number `bit` of `file`, runs the checks and restores it; returns the checks that failed."""
    content, problems = file.read_bytes(), []
    place = f"{file.name}, bit {bit}"
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    for function in (checkpoint.verify_checkpoint, checkpoint.load_checkpoint):
        try:
            function(file.parent)
            problems.append(f"{place}: {function.__name__} found nothing")
        except UserError as error:
            if file.name not in str(error):
                problems.append(f"{place}: {function.__name__} does not name the file: {error}")
    warned: list[str] = []
    try:
        newest = checkpoint.find_latest_checkpoint(directory, warn=warned.append)
        falls_back = newest is not None and newest.name == "step-00000300"
    except checkpoint.UnreadableCheckpoint as error:
        newest, falls_back = None, OTHER_FORMAT.search(bytes(changed)) is not None
        warned.append(str(error))
    if not falls_back or len(warned) != 1 or file.name not in warned[0]:
        problems.append(f"{place}: fell back to {newest} and warned {warned}")
    code, named = run_verify_command(directory)
    if code != 1 or not any(file.name in line for line in named):
        problems.append(f"{place}: the command ended with {code} and named {named}")
    file.write_bytes(content)
    return problems


def run_campaign(folder: Path, count: int, seed: int) -> tuple[Counter, list[str]]:
    """Flips `count` bits; returns how many of each file, and the checks that failed."""
    directory, generator = make_stage(folder), random.Random(seed)
    files = sorted((directory / "step-00000600").iterdir())
    hit, problems, last_log = Counter(), [], time.monotonic()
    for number in range(count):
        file = files[number % len(files)]
        problems += flip(directory, file, generator.randrange(8 * file.stat().st_size))
        hit[file.name] += 1
        if time.monotonic() - last_log > 2:
            last_log = time.monotonic()
            print(f"flip {number + 1}/{count}, {len(problems)} failed checks", file=sys.stderr)
    if run_verify_command(directory) != (0, []):
        problems.append("with every bit restored something is corrupt")
    return hit, problems


def main() -> int:
    """Flips the bits and prints the counts; returns 1 when a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hit, problems = run_campaign(Path(folder), options.count, options.seed)
    for name, count in sorted(hit.items()):
        print(f"{name:22} {count:4} bits flipped")
    print(f"{hit.total()} flips: {'all detected and named, all runs fall back' if not problems else 'CHECKS FAILED'}")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
