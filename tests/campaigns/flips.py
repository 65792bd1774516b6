"""Single flipped bits over all files of a checkpoint: python -m tests.campaigns.flips --count 500 --seed 1

Every flip: one bit of one file of the newest checkpoint of a stage. Asked of each: `verify`, `load` and
`fledgling checkpoint verify` refuse it and name the file, the run would go on from the checkpoint before, and with
the bit put back all is whole again. The files take turns, so that small ones are hit as often as large ones.
"""

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from fledgling.cli import main as command
from fledgling.config import UserError
from fledgling.record import checkpoint


def stage_of(folder: Path) -> Path:
    """A stage directory with two checkpoints that have everything a real one has; returns their directory."""
    directory, source = folder / "pretrain" / "checkpoints", folder / "tokenizer.json"
    folder.mkdir(exist_ok=True)
    source.write_text(json.dumps({"vocabulary": list(range(300))}))
    for step in (300, 600):
        draw = torch.Generator().manual_seed(step)
        model = {f"blocks.{i}.weight": torch.randn(24, 24, generator=draw) for i in range(4)}
        tensors = {
            "model": model,
            "optimizer": {f"{name}.velocity": value * 2 for name, value in model.items()},
            "random": checkpoint.get_rng_state(),
        }
        state = {"stage": "pretrain", "step": step, "stream": {"step": step}, "recipe": 'name = "made up"\n' * 20}
        checkpoint.save_checkpoint(directory, step, tensors, state, {"tokenizer.json": source})
    return directory


def told_by_the_command(directory: Path) -> tuple[int, list[str]]:
    """The exit code of `fledgling checkpoint verify`, and the files that it names."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = command(["checkpoint", "verify", str(directory), "--json"])
    return code, [
        f"{name} {problem}"
        for told in json.loads(out.getvalue())["checkpoints"]
        for name, problem in told["files"].items()
        if problem
    ]


def flip(directory: Path, file: Path, chance: random.Random) -> list[str]:
    """Flip one bit of `file`, ask everybody, put it back; returns the promises that were broken."""
    content, problems = file.read_bytes(), []
    bit = chance.randrange(8 * len(content))
    where = f"{file.name}, bit {bit}"
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    for look in (checkpoint.verify_checkpoint, checkpoint.load_checkpoint):
        try:
            look(file.parent)
            problems.append(f"{where}: {look.__name__} saw nothing")
        except UserError as told:
            if file.name not in str(told):
                problems.append(f"{where}: {look.__name__} does not name the file: {told}")
    warned: list[str] = []
    newest = checkpoint.find_latest_checkpoint(directory, warn=warned.append)
    if newest is None or newest.name != "step-00000300" or len(warned) != 1 or file.name not in warned[0]:
        problems.append(f"{where}: fell back to {newest} and said {warned}")
    code, named = told_by_the_command(directory)
    if code != 1 or not any(file.name in line for line in named):
        problems.append(f"{where}: the command ended with {code} and named {named}")
    file.write_bytes(content)
    return problems


def campaign(folder: Path, count: int, seed: int) -> tuple[Counter, list[str]]:
    """Flip `count` bits; returns how many of each file, and the promises that were broken."""
    directory, chance = stage_of(folder), random.Random(seed)
    files = sorted((directory / "step-00000600").iterdir())
    hit, problems, said = Counter(), [], time.monotonic()
    for number in range(count):
        file = files[number % len(files)]
        problems += flip(directory, file, chance)
        hit[file.name] += 1
        if time.monotonic() - said > 2:
            said = time.monotonic()
            print(f"flip {number + 1}/{count}, {len(problems)} broken promises", file=sys.stderr)
    if told_by_the_command(directory) != (0, []):
        problems.append("with every bit put back something is damaged")
    return hit, problems


def main() -> int:
    """Flip, print, and say by the exit code whether every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hit, problems = campaign(Path(folder), asked.count, asked.seed)
    for name, count in sorted(hit.items()):
        print(f"{name:22} {count:4} bits flipped")
    print(f"{hit.total()} flips: {'all detected, named and fallen back from' if not problems else 'PROMISES BROKEN'}")
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
