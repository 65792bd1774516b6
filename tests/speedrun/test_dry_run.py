"""Before the first step of a recipe every stage of it is checked; a dry run does only that."""

import json
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fledgling.cli import main
from fledgling.config import UserError, load_recipe
from fledgling.kernels.quantized_tensor import has_quantized_weights
from fledgling.plan.plan import PlanSettings, make_plan
from fledgling.plan.training_step import TrainingStep
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.speedrun.dry_run import dry_run, format_dry_run, try_stages
from fledgling.speedrun.stages import run_stages
from fledgling.train import check_recipe as check_recipe_module
from fledgling.train.check_recipe import check_recipe
from fledgling.train.source_sizes import count_source_sizes
from fledgling.train.training_speed import measure_training_speed
from fledgling.train.trial_step import make_trial_step, trace_step
from tests.fast_run import WORDS, write_recipe
from tests.made_up_sets import write_public_sets, write_rows
from tests.ranks import one_thread


@pytest.fixture(autouse=True)
def single_thread():
    with one_thread():
        yield


def write_shipped_data(root):
    """Writes everything that d12-1gpu and d20-8xh100 read, made up and small; returns the folder."""
    data = write_public_sets(root)
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=80)) for _ in range(60)]
    write_rows(data / "fineweb-edu" / "a.jsonl", [{"text": text} for text in texts])
    return data


def scaled_down(name, tmp_path):
    """Overrides that make a shipped recipe tiny; what it leaves open stays open."""
    data = write_shipped_data(tmp_path / "data")
    stages = ("pretrain", "midtrain", "sft", "rl")
    small = [f"run.data_dir={data}", f"run.out={tmp_path / 'run'}", "run.device=cpu", "run.dtype=float32"]
    small += ["run.compile=off", "run.threads=1", "run.ranks=1", "run.hardware=cpu"]
    small += ["tokenizer.vocab_size=330", "tokenizer.max_characters=20000", "model.depth=1", "model.width=32"]
    small += ["model.heads=2", "model.kv_heads=2", "model.context=256", "pretrain.steps=2", "pretrain.core_every=0"]
    small += [f"{stage}.batch_tokens=1024" for stage in ("pretrain", "midtrain")]
    small += [f"{stage}.micro_batch_size=4" for stage in stages] + [f"{stage}.eval_questions=2" for stage in stages]
    return [*small, "rl.max_new_tokens=3", "rl.group_size=2"]


@pytest.mark.parametrize("name", ["d12-1gpu", "d20-8xh100"])
def test_a_shipped_recipe_passes_the_dry_run_of_every_stage_at_its_full_size(name, tmp_path, monkeypatch):
    recipe = load_recipe(name, [f"run.data_dir={write_shipped_data(tmp_path / 'data')}", f"run.out={tmp_path / 'run'}"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if name.startswith("d12"):
        recipe = replace(recipe, run=replace(recipe.run, device="cuda"))
    outcome = dry_run(recipe)
    checks = outcome.checks
    assert f"{recipe.run.ranks} x h100, which the recipe names: this machine has no cuda" in format_dry_run(outcome)
    assert [check.stage for check in checks] == list(recipe.stages)
    assert [check.problems for check in checks] == [()] * 4
    pretrain, _, sft, rl = checks
    assert pretrain.steps > 1000 and sft.steps >= 1 and rl.steps == 40 // 16
    assert all(0 < check.bytes < 80 * 2**30 for check in checks)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["d12-1gpu", "d20-8xh100"])
def test_a_scaled_down_recipe_runs_to_its_report(name, tmp_path, capsys):
    arguments = [name, *(part for value in scaled_down(name, tmp_path) for part in ("--set", value))]
    assert main(["speedrun", *arguments, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert table.count(" ok\n") == 4 and not (tmp_path / "run").exists()
    assert main(["speedrun", *arguments]) == 0
    assert (tmp_path / "run" / "report.html").exists()
    rl = [json.loads(line) for line in (tmp_path / "run" / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert len(rl) == 2, "40 prompts, 16 a round"
    recipe = load_recipe(tmp_path / "run")
    sft = check_all(recipe, 2**40, World(0, 1, 0, torch.device("cpu")))[2]  # with the run's tokenizer
    lines = (tmp_path / "run" / "sft" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["tokens"] == 256 * sft.rows and abs(len(lines) - sft.steps) <= 1
    capsys.readouterr()
    assert main(["speedrun", *arguments, "--dry-run"]) == 0 and "all is done" in capsys.readouterr().out


def test_the_checks_count_the_rows_that_the_examples_of_pretraining_fill(tmp_path):
    """They counted those of the depth's batch."""
    settings = ["pretrain.batch_tokens=none", "pretrain.examples_per_step=4", "pretrain.mixture={identity = 1.0}"]
    recipe = load_recipe(write_recipe(tmp_path), settings)
    pretrain = check_all(recipe, 2**40, World(0, 1, 0, torch.device("cpu")))[0]
    planned = make_plan(recipe, PlanSettings(sizes=count_source_sizes(recipe)))["stages"]["pretrain"]
    assert (pretrain.rows, pretrain.steps) == (planned["rows_per_step"], 1) and pretrain.rows <= 4
    documents = load_recipe(write_recipe(tmp_path / "documents"), settings[:2])
    unknown = check_all(documents, 2**40, World(0, 1, 0, torch.device("cpu")))[0]
    assert unknown.rows is None and "its steps are known once its text is prepared" in unknown.notices


WRONG = {
    "a stage without end": (["rl.steps=none"], r"rl: rl.steps is not set, and its tasks have no end \(counting are"),
    "a mixture without end": (["sft.steps=none"], r"sft: sft.steps is not set, and its mixture has no end"),
    "a missing file": (['sft.mixture={"chat:no.jsonl" = 1.0}'], r"cannot read no.jsonl: no such file"),
    "a folder of pairs": (["dpo.pairs=."], r"dpo: dpo.pairs: cannot read .: it is a folder; expected .jsonl"),
    "missing pairs": (["dpo.pairs=gone.jsonl"], r"dpo: dpo.pairs: cannot read gone.jsonl"),
    "prompts without room": (["model.context=4", "rl.max_new_tokens=3"], r"rl: all of 64 sampled prompts are longer"),
    "settings of rl": (["rl.minibatches=9"], r"rl: rl.minibatches is 9: expected at most rl.prompts_per_round"),
    "an unknown reward": (["rl.rewards={taste=1.0}"], r'rl: rl.rewards: unknown "taste"'),
    "a reward that is not there": (
        ['rl.rewards={"none.py:taste"=1.0}'],
        r'rl: reward "none.py:taste" cannot be loaded',
    ),
    "a batch of no rows": (["sft.batch_tokens=100"], r"sft: sft.batch_tokens: got 100, expected whole rows of 64"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_late_stage_is_one_line_before_the_first_step(what, tmp_path, capsys):
    settings, line = WRONG[what]
    recipe = load_recipe(write_recipe(tmp_path), settings)
    with pytest.raises(UserError, match=line) as caught:
        run_stages(recipe, quiet=True)
    assert not (tmp_path / "run").exists(), "nothing was prepared or trained"
    assert all(len(text) < 400 for text in str(caught.value).splitlines())
    outcome = dry_run(recipe)
    assert not outcome.is_sound and [check.stage for check in outcome.checks] == list(recipe.stages)
    assert str(caught.value).splitlines()[0].partition(": ")[2] in format_dry_run(outcome)


def test_pairs_that_cannot_be_read_are_a_problem_before_there_is_a_tokenizer(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,gut,schlecht\nHi,Hello.,no\n" * 2)
    recipe = load_recipe(write_recipe(tmp_path), [f"dpo.pairs={tmp_path / 'p.csv'}?chosen=gut"])
    with pytest.raises(UserError, match=r'dpo: .*p.csv:1: no "rejected" in the columns prompt, schlecht, chosen'):
        run_stages(recipe, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_few_bad_rows_of_a_chat_file_change_no_check(tmp_path):
    """With some seeds one of the sampled rows is bad; the run reads the file without it."""
    good = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
    path = write_rows(tmp_path / "c.jsonl", [{"messages": []} if n % 100 == 50 else good for n in range(400)])
    settings = [f'sft.mixture={{"chat:{path}" = 1.0}}', "sft.steps=none"]
    file, found = write_recipe(tmp_path), []
    for seed in range(8):
        recipe = load_recipe(file, [*settings, f"seed={seed}"])
        [check] = [
            each for each in check_all(recipe, 2**40, World(0, 1, 0, torch.device("meta"))) if each.stage == "sft"
        ]
        found.append((check.problems, check.steps))
        assert count_source_sizes(recipe)[f"chat:{path}"].examples == 400
    assert not found[0][0] and found[0][1] and len(set(found)) == 1


def test_a_disk_too_small_for_the_last_checkpoints_is_a_problem_of_the_stage_that_fills_it(tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path))
    world = World(0, 1, 0, torch.device("meta"))
    size = check_all(recipe, 2**40, world)[0].checkpoint_bytes
    assert size > 4 * 2 * 330 * 64, "weights and state"
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=int(2.5 * size)))
    problems = {check.stage: check.problems for check in check_all(recipe, 2**40, world) if check.problems}
    assert list(problems) == ["sft"] and "make space, or set run.out to another disk" in problems["sft"][0]


def test_programs_to_write_need_the_sandbox(tmp_path, monkeypatch):
    def no_sandbox():
        raise UserError("sandbox: needs Linux 5.13")

    monkeypatch.setattr(check_recipe_module, "get_layers", no_sandbox)
    settings = ["sft.mixture={humaneval=1.0}", f"run.data_dir={write_public_sets(tmp_path / 'data')}"]
    checks = dry_run(load_recipe(write_recipe(tmp_path), settings)).checks
    assert ["sandbox: needs Linux 5.13" in check.problems for check in checks] == [False, False, True, True, True]


def test_no_room_for_one_row_is_reported_for_the_stage_that_needs_it(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["rl.kl_weight=0.1", "rl.micro_batch_size=none"])
    world = World(0, 1, 0, torch.device("meta"))
    step = {name: check.bytes for name, check in zip(recipe.stages, check_all(recipe, 2**40, world), strict=True)}
    assert step["rl"] > step["pretrain"], "it holds a reference model"
    limit = int(1.05 * step["pretrain"]) + 2**30 + 1000  # with the planner's slack, but without a reference model
    checks = check_all(recipe, limit, world)
    assert [bool(check.problems) for check in checks] == [name in ("dpo", "rl") for name in recipe.stages]
    assert "GiB and there are" in checks[-1].problems[0]


def check_all(recipe, memory, world):
    return check_recipe(recipe, recipe.stages, DeviceSetup(torch.float32, False, 0.0, memory), world)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("stage", ["pretrain", "dpo", "rl"])
def test_a_traced_step_fails_where_a_real_one_would(stage, algorithm, tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path), [f"rl.algorithm={algorithm}", "rl.kl_weight=0.1"])
    config = recipe.resolve_model()
    trace_step(recipe, stage, config, torch.bfloat16)
    monkeypatch.setattr("fledgling.model.transformer.Transformer.compute_logits", lambda model, hidden: hidden)
    monkeypatch.setattr("fledgling.model.transformer.Transformer.forward", lambda model, tokens, ids: tokens @ ids)
    with pytest.raises(RuntimeError):
        trace_step(recipe, stage, config, torch.bfloat16)


def test_a_trial_makes_a_step_and_a_checkpoint_of_each_stage_and_leaves_nothing(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["adapter.method=lora", 'adapter.stages=["sft"]', "rl.kl_weight=0.1"])
    world, setup = World(0, 1, 0, torch.device("cpu")), DeviceSetup(torch.float32, False, 0.0, 2**40)
    outcome = try_stages(recipe, check_recipe(recipe, recipe.stages, setup, world), setup, world)
    assert outcome.is_sound and list(outcome.trials) == list(recipe.stages)
    before = sorted(tmp_path.rglob("*"))
    sizes = {name: trial.checkpoint_bytes for name, trial in outcome.trials.items()}
    assert all(trial.seconds > 0 and trial.peak_bytes > 0 for trial in outcome.trials.values())
    assert sizes["pretrain"] > 4 * 3 * 330 * 64, "weights and both moments of the embedding"
    assert sizes["sft"] < sizes["midtrain"], "an adapter alone"
    planned = {check.stage: check.checkpoint_bytes for check in outcome.checks}
    assert all(planned[name] == pytest.approx(sizes[name], rel=0.3, abs=40_000) for name in sizes)
    assert sorted(tmp_path.rglob("*")) == before and "a step took" in format_dry_run(outcome)


def test_a_step_that_fails_at_full_size_is_a_problem_of_its_stage(tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path), ['stages=["pretrain"]'])
    world, setup = World(0, 1, 0, torch.device("cpu")), DeviceSetup(torch.float32, False, 0.0, 2**40)
    checks = check_recipe(recipe, recipe.stages, setup, world)

    def run_out_of_memory(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("fledgling.speedrun.dry_run.make_trial_step", run_out_of_memory)
    outcome = try_stages(recipe, checks, setup, world)
    assert not outcome.is_sound and "out of memory" in outcome.checks[0].problems[0]


def test_what_is_measured_recomputes_activations_where_the_run_would(tmp_path, monkeypatch):
    """Otherwise a step that fits only so fails in the trial, and before the first step of a run with a budget."""
    recipe = load_recipe(write_recipe(tmp_path), ["run.recompute=on"])
    world, setup = World(0, 1, 0, torch.device("cpu")), DeviceSetup(torch.float32, False, 0.0, 2**40)
    made = []

    def record(stage, model, *arguments):
        made.append(model.recompute)
        raise RuntimeError("recorded")

    for module in ("trial_step", "training_speed"):
        monkeypatch.setattr(f"fledgling.train.{module}.train_step", record)
    checks = check_recipe(recipe, ["pretrain"], setup, world)
    assert "recorded" in try_stages(recipe, checks, setup, world).checks[0].problems[0]
    with pytest.raises(UserError, match="recorded"):
        measure_training_speed(recipe, world, setup)
    assert made[-2:] == [True, True]


def test_the_trial_of_an_adapter_has_the_rounded_matrices_of_its_stage(tmp_path, monkeypatch):
    """The trial trained an adapter of whole matrices, compiled, whose memory and time are not those of QLoRA."""
    adapter = ["adapter.method=lora", "adapter.rank=2", "adapter.quantization=int8"]
    recipe = load_recipe(write_recipe(tmp_path), [*adapter, "model.width=128", "model.heads=1"])
    seen = []

    def record(stage, model, *arguments):
        seen.append(has_quantized_weights(model))
        raise RuntimeError("recorded")

    monkeypatch.setattr("fledgling.train.trial_step.train_step", record)
    world, setup = World(0, 1, 0, torch.device("cpu")), DeviceSetup(torch.float32, False, 0.0, 2**40)
    for stage in ("pretrain", "sft"):
        with pytest.raises(RuntimeError, match="recorded"):
            step = TrainingStep(1, 64, "float32")
            make_trial_step(recipe, stage, recipe.resolve_model(), setup, world, step, tmp_path)
    assert seen == [False, True]


def test_the_memory_of_a_trial_is_that_of_its_step(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path))
    config, setup = recipe.resolve_model(), DeviceSetup(torch.float32, False, 0.0, 2**40)
    world = World(0, 1, 0, torch.device("cpu"))
    few, many = (
        make_trial_step(recipe, "pretrain", config, setup, world, TrainingStep(rows, 64, "float32"), tmp_path)
        for rows in (1, 16)
    )
    assert many.peak_bytes > few.peak_bytes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n',
            "use it as chat:",
        ),
        ("", "no document in it"),
    ],
)
def test_documents_that_are_none_are_named_before_the_first_stage(tmp_path, text, reason):
    """A later stage would fail over them once the earlier ones are paid for."""
    (tmp_path / "mine.jsonl").write_text(text)
    mixture = f'sft.mixture={{"{tmp_path / "mine.jsonl"}" = 1.0}}'
    checks = check_all(load_recipe(write_recipe(tmp_path), [mixture]), 2**40, World(0, 1, 0, torch.device("meta")))
    problems = {check.stage: check.problems for check in checks}
    assert reason in problems["sft"][0] and not problems["pretrain"]
