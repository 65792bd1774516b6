"""What a recipe names outside of itself is looked for before the first step of any stage; a fault is one line."""

from dataclasses import replace

import pytest
import torch

from fledgling.config import UserError, load_recipe
from fledgling.plan.plan import make_plan
from fledgling.record.checkpoint import save_checkpoint
from fledgling.runtime.device import DeviceSetup
from fledgling.runtime.world import World
from fledgling.speedrun.dry_run import assume_hardware
from fledgling.train import check_recipe as check_recipe_module
from fledgling.train.check_recipe import check_recipe
from fledgling.train.init_from import find_model_config
from fledgling.train.rl.build import require_valid_rl_config
from tests.fast_run import write_recipe

CPU = torch.device("cpu")
ALONE = World(0, 1, 0, CPU)
SETUP = DeviceSetup(torch.float32, False, 0.0, 2**40)


@pytest.fixture(autouse=True)
def no_traced_step(monkeypatch):
    monkeypatch.setattr(check_recipe_module, "_trace", lambda *arguments: "")  # its first one takes seconds


def find_problems(recipe, stage, world=ALONE, setup=SETUP):
    """Returns the problems of one stage, as a text of one line each."""
    (check,) = check_recipe(recipe, [stage], setup, world)
    assert all("\n" not in problem and len(problem) < 300 for problem in check.problems)
    return "\n".join(check.problems)


def test_everything_that_is_wrong_with_a_run_as_a_whole_is_found_at_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("text")
    settings = [f"run.out={file}", 'run.loggers=["trakio"]', 'tokenizer.sources=["gone"]', "optimizer.deterministic=on"]
    recipe = load_recipe(write_recipe(tmp_path / "a"), settings)
    found = find_problems(recipe, "pretrain", World(0, 3, 0, CPU))
    assert f"run.out={file}: {file} is a file; expected a directory: choose another with --set run.out=DIR" in found
    assert 'unknown logger "trakio"' in found and "tokenizer.sources: gone: no such file or folder" in found
    assert 'optimizer.deterministic is "on" with 3 ranks' in found
    below = load_recipe(tmp_path / "a" / "fast.toml", [f"run.out={file / 'run'}", f'tokenizer.sources=["{file}"]'])
    found = find_problems(below, "pretrain")
    assert f"run.out={file / 'run'}: {file} is a file" in found
    assert f"tokenizer.sources: {file}: cannot read this kind of file" in found
    assert not find_problems(load_recipe(tmp_path / "a" / "fast.toml", [f"run.out={tmp_path / 'run'}"]), "pretrain")
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".fledgling-*")), "nothing is written"


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), ["run.out=/proc/run"])
    assert "cannot write /proc/run: " in find_problems(recipe, "pretrain")


def test_given_weights_that_are_missing_or_of_no_use_are_one_line(tmp_path):
    file = write_recipe(tmp_path)
    (tmp_path / "empty").mkdir()
    for source, line in (
        ("gone", r"run.init_from: .*gone does not exist; expected a checkpoint"),
        ("empty", r"run.init_from: no checkpoint in"),
        ("fast.toml", r"run.init_from: .*fast.toml is a file; expected a directory with config.json"),
    ):
        recipe = load_recipe(file, [f"run.init_from={tmp_path / source}"])
        with pytest.raises(UserError, match=line):
            find_model_config(recipe, tmp_path / "run")
        assert "run.init_from: " in find_problems(recipe, "pretrain")


def test_given_weights_decide_the_model_that_is_checked_and_nothing_is_copied_yet(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), [f"run.init_from={tmp_path / 'source'}", "run.init_context=32"])
    config = replace(recipe.resolve_model(), depth=3)
    state = {"name": "made", "step": 0, "model": config.to_dict()}
    path = save_checkpoint(tmp_path / "source", 0, {"model": {"x": torch.zeros(1)}}, state, {})
    with pytest.raises(UserError, match=r"run.init_from: .* has no tokenizer.json"):
        find_model_config(recipe, tmp_path / "run")
    (tmp_path / "tokenizer.json").write_text("{}")
    path = save_checkpoint(
        tmp_path / "source", 1, {"model": {"x": torch.zeros(1)}}, state, {"tokenizer.json": tmp_path / "tokenizer.json"}
    )
    found = find_model_config(recipe, tmp_path / "run")
    assert (found.depth, found.context) == (3, 32) and path.exists() and not (tmp_path / "run").exists()
    (check,) = check_recipe(recipe, ["pretrain"], SETUP, ALONE)
    assert check.split is not None and check.bytes, "its memory is known"


def test_adapters_teachers_and_pairs_that_do_not_fit_are_found_before_there_is_a_tokenizer(tmp_path):
    file = write_recipe(tmp_path)
    lora = ["adapter.method=lora", 'adapter.stages=["pretrain","sft"]', "adapter.init_from=gone"]
    recipe = load_recipe(file, lora)
    assert "pretrain trains an adapter, and has no weights to adapt: set run.init_from" in find_problems(
        recipe, "pretrain"
    )
    assert "adapter.init_from: gone is not a directory" in find_problems(recipe, "sft")
    (tmp_path / "rows.jsonl").write_text('{"answer": 1}\n')
    wrong = [
        f"dpo.pairs={tmp_path / 'rows.jsonl'}",
        'distill.stages=["sft"]',
        f"distill.teacher={tmp_path / 'teacher'}",
    ]
    recipe = load_recipe(file, wrong)
    config = replace(recipe.resolve_model(), context=32)
    state = {"name": "made", "step": 0, "model": config.to_dict()}
    save_checkpoint(tmp_path / "teacher", 0, {"model": {"x": torch.zeros(1)}}, state, {})
    assert "reads 32 tokens, and rows have 64: set model.context to that" in find_problems(recipe, "sft")
    assert 'rows.jsonl:1: no "chosen" in the columns answer; ' in find_problems(recipe, "dpo")
    recipe = load_recipe(file, ["dpo.objective=kto", "dpo.batch_size=1"])
    assert "dpo.batch_size is 1" in find_problems(recipe, "dpo")
    assert "dpo.pairs is not set" in find_problems(load_recipe(file, ["dpo.pairs=none"]), "dpo")
    recipe = load_recipe(file, ["dpo.objective=reward"])
    assert "let dpo be the last of stages" in find_problems(recipe, "dpo")


def test_rollouts_ahead_of_the_weights_need_one_process_on_a_processor(tmp_path):
    config = load_recipe(write_recipe(tmp_path), ["rl.stale_rounds=2"]).rl
    with pytest.raises(UserError, match=r"rl.stale_rounds is 2 on 2 ranks on cpu: expected one process on a CPU"):
        require_valid_rl_config(config, World(0, 2, 0, CPU))


def test_a_device_that_lacks_what_the_recipe_asks_for_is_one_line(tmp_path):
    run = load_recipe(write_recipe(tmp_path), ["run.device=cuda", "run.fp8=true"])
    with pytest.raises(
        UserError, match=r"run.device=cuda: this machine has none, and run.hardware=cpu is another kind"
    ):
        assume_hardware(run.run)
    with pytest.raises(UserError, match=r"run.fp8: a100-80 multiplies no fp8; expected one of l4, .*run.fp8=false"):
        assume_hardware(replace(run.run, hardware="a100"))
    with pytest.raises(UserError, match=r"run.fp8: cpu multiplies no fp8"):
        make_plan(run)
    _, setup = assume_hardware(replace(run.run, hardware="h100"))
    assert setup.fp8
    narrow = load_recipe(tmp_path / "fast.toml", ["model.width=24", "model.heads=1"])
    found = find_problems(narrow, "pretrain", setup=replace(SETUP, fp8=True))
    assert "run.fp8: a product of 24 x 24; expected multiples of 16" in found


def test_checkpoints_that_are_kept_count_on_the_disk(tmp_path):
    file = write_recipe(tmp_path)
    world, settings = ALONE, ["pretrain.steps=9", "pretrain.save_every=1", "pretrain.keep_checkpoints=3"]
    one, four, two = (
        check_recipe(load_recipe(file, given), ["pretrain"], SETUP, world)[0].checkpoint_bytes
        for given in ([], settings, ["pretrain.steps=2", "pretrain.save_every=1"])
    )
    assert (four, two) == (4 * one, 2 * one), "one is written while the others are kept"
