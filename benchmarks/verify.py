"""Tampered copies of a small run: is each caught, and named? Honest runs: is there a false alarm?

A copy is tampered with in one of three ways: a value is changed (edited), the manifests are made to fit as well
(manifest), or all hashes are, the seals too (forged), which only replayed steps can show. Forged copies leave out
what `docs/verify.md` says cannot be found: clocks, and the moments of a last checkpoint.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fledgling.config import Recipe, load_recipe
from fledgling.data.batch import Batch
from fledgling.record.atomic_directory import MANIFEST, describe_files
from fledgling.record.seal import seal_run, seal_stage
from fledgling.report import build_report
from fledgling.speedrun.stages import run_stages
from fledgling.train.hooks import NO_EVALS
from fledgling.train.run import run_stage
from fledgling.train.stage import Stage, Stream
from fledgling.verify import verify_run
from fledgling.verify.files import list_stage_checkpoints, list_stages

WAYS = ("edited", "manifest", "forged")
STEPS = 6  # of each stage; a checkpoint every other step, of which the last two are kept


def make_recipe(folder: Path, seed: int) -> Recipe:
    """Returns the recipe of a run of seconds in `folder`/run: pretraining, fine-tuning and RL on generated text."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, text = random.Random(0), folder / "text.jsonl"
    words = ["red", "blue", "river", "stone", "walks", "sings", "over", "under", "the", "a", "bird", "tree"]
    rows = (json.dumps({"text": " ".join(chance.choices(words, k=60))}) for _ in range(300))
    text.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    stage = {"steps": STEPS, "save_every": 2, "micro_batch_size": 2, "eval_questions": 4, "warmup_steps": 1}
    mixture = f'{{"{text}" = 0.5, arithmetic = 0.25, counting = 0.25}}'
    settings = [
        f"seed={seed}",
        'stages=["pretrain", "sft", "rl"]',
        f'tokenizer={{vocab_size = 420, sources = ["{text}"]}}',
        "model={depth = 1, width = 32, heads = 2, context = 64}",
        "run.device=cpu",
        "run.dtype=float32",
        "run.compile=off",
        "run.threads=1",
        f"run.out={folder / 'run'}",
        *(f"{name}.{key}={value}" for name in ("pretrain", "sft", "rl") for key, value in stage.items()),
        *(f"{name}.{key}=0" for name in ("pretrain", "sft", "rl") for key in ("eval_every", "sample_every")),
        *(f"{name}.{key}" for name in ("pretrain", "sft") for key in ("batch_tokens=256", f"mixture={mixture}")),
        "rl.prompts_per_round=2",
        "rl.group_size=4",
        "rl.max_new_tokens=8",
        "rl.tasks={counting = 1.0}",
    ]
    return load_recipe("quickstart", settings)


def make_run(folder: Path, seed: int) -> Path:
    """Trains the run of `make_recipe` and returns its directory, with a report."""
    recipe = make_recipe(folder, seed)
    with redirect_stderr(StringIO()):
        run_stages(recipe, quiet=True)
    run = Path(recipe.run.out)
    build_report(run)
    return run


# ---- tampering -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tampered:
    """What was done to a copy, and texts of which some problem must contain one: where it is."""

    kind: str
    way: str
    place: str
    expected: tuple[str, ...]


def choose_checkpoint(run: Path, chance: random.Random, with_last: bool = True) -> Path:
    """Returns a random checkpoint of a random stage."""
    paths = list_stage_checkpoints(run, chance.choice(list_stages(run)))
    return chance.choice(paths if with_last else paths[:-1])


def change_tensor(path: Path, chance: random.Random) -> str:
    """Negates a value of a random floating-point tensor that is not zero; returns its name."""
    tensors = load_file(path)
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.any()]
    name = chance.choice(names)
    values = tensors[name].view(-1)
    index = chance.choice(values.nonzero().view(-1).tolist())
    values[index] = -values[index]
    save_file(tensors, path)
    return f"{path.name} {name}[{index}]"


def rewrite_manifest(directory: Path) -> None:
    """Makes the manifest of a checkpoint or shard fit its files."""
    manifest = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).unlink()
    (directory / MANIFEST).write_text(json.dumps(manifest | {"files": describe_files(directory)}))


def cover(run: Path, changed: Sequence[Path], way: str) -> None:
    """Makes the manifests of changed directories fit, and the seals too, as far as `way` says."""
    for directory in changed if way != "edited" else ():
        rewrite_manifest(directory)
    if way == "forged":
        for stage in list_stages(run):
            seal_stage(run / stage)
        seal_run(run)


def tamper_weight(run: Path, other: Path, way: str, chance: random.Random) -> Tampered:
    path = choose_checkpoint(run, chance)
    place = change_tensor(path / "model.safetensors", chance)
    cover(run, [path], way)
    stage = path.parent.parent.name
    return Tampered(
        "a weight", way, f"{stage}/{path.name} {place}", (path.name,) if way != "forged" else (f"{stage} step",)
    )


def tamper_moment(run: Path, other: Path, way: str, chance: random.Random) -> Tampered:
    path = choose_checkpoint(run, chance, with_last=way != "forged")
    place = change_tensor(path / "optimizer.safetensors", chance)
    cover(run, [path], way)
    stage = path.parent.parent.name
    return Tampered(
        "a moment", way, f"{stage}/{path.name} {place}", (path.name,) if way != "forged" else (f"{stage} step",)
    )


def tamper_token(run: Path, other: Path, way: str, chance: random.Random) -> Tampered:
    """Changes a token of prepared data; a forged one in the first document's shard, which is read."""
    manifests = sorted((run / "data").rglob(MANIFEST))
    if way == "forged":
        manifests = [path for path in manifests if "tasks" in path.parent.name]
    directory = chance.choice([path.parent for path in manifests if path.with_name("tokens.bin").stat().st_size])
    tokens = bytearray((directory / "tokens.bin").read_bytes())
    positions = range(0, len(tokens), 2) if way != "forged" else range(0, 2 * 40, 2)
    position = chance.choice(positions)
    tokens[position : position + 2] = ((int.from_bytes(tokens[position : position + 2], "little") + 1) % 250).to_bytes(
        2, "little"
    )
    (directory / "tokens.bin").write_bytes(tokens)
    cover(run, [directory], way)
    fingerprint = str(describe_files(directory)["tokens.bin"]["sha256"])[:16]  # in the report; not every token is read
    expected = (directory.name,) if way != "forged" else ("read other tokens", fingerprint)
    return Tampered("a token of a shard", way, f"{directory.name} token {position // 2}", expected)


def tamper_metrics(run: Path, other: Path, way: str, chance: random.Random) -> Tampered:
    stage = chance.choice(list_stages(run))
    path = run / stage / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = chance.randrange(len(lines))
    names = [name for name, value in lines[number].items() if isinstance(value, float)]
    name = chance.choice(names if way == "edited" else ["loss", "gradient_norm", "lr_multiplier"])
    lines[number][name] = lines[number][name] * 0.999 + 1e-6
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cover(run, [], way)
    expected = (f"{stage}/metrics.jsonl: line {number + 1}" if way != "forged" else f"{stage} step {number + 1}",)
    return Tampered("a line of metrics", way, f"{stage} line {number + 1} {name}", expected)


def tamper_checkpoint(run: Path, other: Path, way: str, chance: random.Random) -> Tampered:
    """Puts the checkpoint of another run, complete and valid, in the place of one."""
    path = choose_checkpoint(run, chance)
    shutil.rmtree(path)
    shutil.copytree(other / path.relative_to(run), path)
    cover(run, [], way)
    stage = path.parent.parent.name
    return Tampered("a swapped checkpoint", way, f"{stage}/{path.name}", (stage,))


def tamper_seed(run: Path, other: Path, way: str, chance: random.Random) -> Tampered:
    """Puts another run in the place of the whole one, and lets it claim this one's seed."""
    recipe = (run / "recipe.toml").read_text()
    shutil.rmtree(run)
    shutil.copytree(other, run)
    (run / "recipe.toml").write_text(recipe)
    changed = []
    for stage in list_stages(run) if way != "edited" else ():
        for path in list_stage_checkpoints(run, stage):
            state = json.loads((path / "state.json").read_text())
            (path / "state.json").write_text(json.dumps(state | {"recipe": recipe}))
            changed.append(path)
    cover(run, changed, way)
    return Tampered("another seed", way, "whole run", ("seed",))


class SwappedStep:
    """A stream whose step number `at` reads the data of step `other`."""

    def __init__(self, stream: Stream, at: int, other: int) -> None:
        self.stream, self.at, self.other, self.made = stream, at, other, 0

    def next(self) -> list[Batch]:
        """Returns the micro-batches of the next step."""
        self.made += 1
        if self.made != self.at + 1:
            return self.stream.next()
        state = self.stream.state_dict()
        self.stream.load_state_dict({**state, "step": state["step"] + self.other - self.at})
        batches = self.stream.next()
        self.stream.load_state_dict({**state, "step": state["step"] + 1})
        return batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def tamper_order(run: Path, other: Path, way: str, chance: random.Random) -> Tampered:
    """Really trains a stage with the data of another step at one step; its hashes are honest."""
    stage, at = chance.choice(("pretrain", "sft")), chance.randrange(STEPS - 1)
    stages = list_stages(run)
    for later in stages[stages.index(stage) :]:
        shutil.rmtree(run / later)

    def adapt(built: Stage) -> Stage:
        return replace(built, batches=SwappedStep(built.batches, at, at + 1))

    with redirect_stderr(StringIO()):
        run_stage(load_recipe(str(run)), stage, quiet=True, hooks=replace(NO_EVALS, adapt_stage=adapt))
    (run / "report.html").unlink(missing_ok=True)
    place = f"{stage} step {at + 1}"
    return Tampered("another data order", "forged", place, (f"{place} read other tokens",))


KINDS: tuple[Callable[[Path, Path, str, random.Random], Tampered], ...] = (
    tamper_weight,
    tamper_moment,
    tamper_token,
    tamper_metrics,
    tamper_checkpoint,
    tamper_seed,
    tamper_order,
)


# ---- measuring -----------------------------------------------------------------------------------


def measure_verify(copies: int, honest: int, seed: int, draws: int) -> dict[str, Any]:
    """Returns one row for each tampered copy, and one for each honest run.

    Args:
        copies: tampered copies, of all kinds and ways in turn.
        honest: runs with seeds of their own.
        draws: steps that are drawn in each.
    """
    chance, rows, alarms = random.Random(seed), [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run, other = make_run(root / "a", seed), make_run(root / "b", seed + 1)
        for number in range(copies):
            kind, way = KINDS[number % len(KINDS)], WAYS[number // len(KINDS) % len(WAYS)]
            shutil.rmtree(root / "copy", ignore_errors=True)
            shutil.copytree(run, root / "copy")
            tampered = kind(root / "copy", other, way, chance)
            result = verify_run(root / "copy", draws, 600.0, seed=number)
            problems = [f"{check['name']}: {text}" for check in result["checks"] for text in check["problems"]]
            is_named = any(expected in text for expected in tampered.expected for text in problems)
            rows.append({**vars(tampered), "caught": not result["holds"], "named": is_named, "problems": problems[:4]})
            _show(number, copies, "tampered")
        for number in range(honest):
            shutil.rmtree(root / "honest", ignore_errors=True)
            result = verify_run(make_run(root / "honest", 1000 + seed + number), draws, 600.0, seed=number)
            problems = [f"{check['name']}: {text}" for check in result["checks"] for text in check["problems"]]
            replayed = sum(check["checked"] for check in result["checks"] if check["name"] == "steps replayed")
            alarms.append({"seed": 1000 + seed + number, "problems": problems, "steps": replayed})
            _show(number, honest, "honest")
    return {"copies": rows, "honest": alarms, "draws": draws}


def _show(number: int, total: int, what: str) -> None:
    print(f"{what} {number + 1}/{total}", file=sys.stderr)


def format_verify(result: dict[str, Any]) -> str:
    """Returns the counts by kind and way, and what was missed."""
    lines = [f"{'':24}{'way':12}{'copies':>7}{'caught':>8}{'named':>7}"]
    for kind, way in dict.fromkeys((row["kind"], row["way"]) for row in result["copies"]):
        rows = [row for row in result["copies"] if (row["kind"], row["way"]) == (kind, way)]
        caught, named = sum(row["caught"] for row in rows), sum(row["named"] for row in rows)
        lines.append(f"{kind:24}{way:12}{len(rows):>7}{caught:>8}{named:>7}")
    copies = result["copies"]
    lines.append(
        f"{len(copies)} tampered copies: {sum(row['caught'] for row in copies)} caught, "
        f"{sum(row['named'] for row in copies)} named"
    )
    lines += [f"missed: {row['kind']} ({row['way']}), {row['place']}" for row in copies if not row["caught"]]
    lines += [f"not named: {row['place']}: {row['problems']}" for row in copies if row["caught"] and not row["named"]]
    alarms = [row for row in result["honest"] if row["problems"]]
    lines.append(f"{len(result['honest'])} honest runs: {len(alarms)} false alarms")
    lines += [f"false alarm: seed {row['seed']}: {row['problems'][0]}" for row in alarms]
    return "\n".join(lines)
