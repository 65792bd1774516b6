"""A run that starts from given weights and their tokenizer."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch

from fledgling.config import ModelConfig, UserError, load_recipe
from fledgling.export import write_hf
from fledgling.infer.runner import load_model
from fledgling.model.transformer import Transformer
from fledgling.plan.past_runs import describe_data, select_text
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import find_latest_checkpoint, load_checkpoint
from fledgling.text.tokenizer import Tokenizer
from fledgling.train import run
from fledgling.train.copied_source import describe_changed_source
from fledgling.train.init_from import find_init_checkpoint, recipe_from_checkpoint, take_given_model
from tests.all_stages import make_all_stages_recipe


def export_random_model(folder, family: str, preset: str = "nanochat-2026") -> tuple[Transformer, Tokenizer]:
    """A small random model as a Hugging Face directory in `folder`/source."""
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog " * 9], vocab_size=330)
    kv_heads = 4 if family == "gpt2" else 2
    model = Transformer(ModelConfig(tokenizer.vocab_size, 1, 48, 4, kv_heads, 64, family=family, preset=preset))
    model.initialize(7)
    write_hf.write_hf(folder / "source", model.config, model.state_dict(), tokenizer, "card")
    return model, tokenizer


@pytest.mark.parametrize(
    ("family", "preset", "stages"),
    [
        ("llama", "nanochat-2026", '["pretrain", "sft"]'),
        ("gpt2", "nanochat-2026", '["midtrain"]'),
        ("fledgling", "nanochat-2025", '["sft"]'),
        ("fledgling", "nanochat-2026", '["sft"]'),
    ],
)
def test_the_first_stage_starts_from_a_hugging_face_directory(family, preset, stages, tmp_path):
    model, tokenizer = export_random_model(tmp_path, family, preset)
    options = {"stages": stages, "run.init_from": f'"{tmp_path / "source"}"', "optimizer.matrix_lr": 1e-9}
    options |= {f"optimizer.{role}_lr": 1e-9 for role in ("embedding", "head", "scalar")}
    recipe = make_all_stages_recipe(tmp_path, **options)
    for stage in recipe.stages:
        assert run.run_stage(recipe, stage, quiet=True)
    loaded, loaded_tokenizer, state = load_model(tmp_path / "run")
    assert loaded.config == model.config and state["stage"] == recipe.stages[-1]
    assert loaded_tokenizer.fingerprint() == tokenizer.fingerprint()
    for name, tensor in model.state_dict().items():  # at a learning rate near 0, the weights do not change
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=1e-6)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["parameters"]["total"] == model.count_parameters()
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / recipe.stages[0] / "metrics.jsonl")]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)


@pytest.mark.parametrize("preset", ["nanochat-2025", "nanochat-2026"])
def test_a_run_starts_from_a_checkpoint(tmp_path, preset):
    first = make_all_stages_recipe(tmp_path, stages='["pretrain"]', **{"model.preset": preset})
    run.run_stage(first, "pretrain", quiet=True)
    initial = load_checkpoint(find_latest_checkpoint(tmp_path / "run/pretrain/checkpoints")).tensors["model"]
    second = make_all_stages_recipe(
        tmp_path, stages='["sft"]', **{"run.init_from": f'"{tmp_path / "run"}"', "run.out": f'"{tmp_path / "second"}"'}
    )
    run.run_stage(second, "sft", quiet=True)
    final = load_checkpoint(find_latest_checkpoint(tmp_path / "second/sft/checkpoints")).tensors["model"]
    fresh = Transformer(
        ModelConfig.from_dict(
            load_checkpoint(find_latest_checkpoint(tmp_path / "second/sft/checkpoints")).state["model"]
        )
    )
    fresh.initialize(second.seed)
    for name, tensor in fresh.state_dict().items():  # closer to the initial weights than to the seed's
        moved, same_start = (final[name] - initial[name]).norm(), bool((tensor == tensor.flatten()[0]).all())
        assert moved > 0 and (same_start or moved < (final[name] - tensor).norm()), name


def test_a_source_is_copied_once_and_another_one_is_rejected(tmp_path):
    first, _ = export_random_model(tmp_path, "llama")
    run_dir = tmp_path / "run"
    recipe = load_recipe("quickstart", [f"run.init_from={tmp_path / 'source'}"])
    path = find_init_checkpoint(recipe.run, run_dir)
    changed = partial(describe_changed_source, run_dir / "init", "run.init_from")
    assert changed() == []
    for name in ("run.init_context=32", "run.init_rope=yarn"):
        with pytest.raises(UserError, match=rf"was copied with {name.partition('=')[0]} .*: delete"):
            find_init_checkpoint(load_recipe("quickstart", [f"run.init_from={tmp_path / 'source'}", name]).run, run_dir)
    (tmp_path / "source" / "config.json").write_text("{}")
    assert changed() == [
        f"run.init_from: {tmp_path / 'source'} has changed since it was copied into the run: its copy is used, "
        f"{run_dir / 'init'}"
    ]
    shutil.rmtree(tmp_path / "source")  # moved, or trained further
    assert changed() == []
    assert find_init_checkpoint(recipe.run, run_dir) == path
    moved = run_dir.rename(tmp_path / "moved")
    copied = find_init_checkpoint(recipe.run, moved)
    assert copied.is_relative_to(moved)
    from_checkpoint = load_recipe("quickstart", [f"run.init_from={copied}"])
    second = find_init_checkpoint(from_checkpoint.run, tmp_path / "second")
    shutil.rmtree(moved)
    weights = load_checkpoint(find_init_checkpoint(from_checkpoint.run, tmp_path / "second")).tensors["model"]
    assert second.is_relative_to(tmp_path / "second") and all(
        weights[name].equal(tensor) for name, tensor in first.state_dict().items()
    )
    for other in ("run.init_from=another", "run.init_from=none"):
        with pytest.raises(UserError, match=r"holds the weights of .*delete .*or choose another directory"):
            find_init_checkpoint(load_recipe("quickstart", [other]).run, tmp_path / "second")


def test_what_the_given_weights_decide_is_named(tmp_path):
    export_random_model(tmp_path, "llama")
    recipe = load_recipe("quickstart", [f"run.init_from={tmp_path / 'source'}", "model.depth=3"])
    lines: list[str] = []
    path = find_init_checkpoint(recipe.run, tmp_path / "run")
    assert recipe_from_checkpoint(recipe, path, lines.append).model.depth == 1
    assert len(lines) == 1 and "run.init_from decides [model]: depth" in lines[0]


def test_a_missing_source_and_another_tokenizer_are_errors(tmp_path):
    recipe = make_all_stages_recipe(tmp_path, stages='["pretrain"]', **{"run.init_from": f'"{tmp_path / "nowhere"}"'})
    with pytest.raises(UserError, match="nowhere does not exist"):
        run.run_stage(recipe, "pretrain", quiet=True)
    export_random_model(tmp_path, "llama")
    plain = make_all_stages_recipe(tmp_path, stages='["pretrain"]')
    run.run_stage(plain, "pretrain", quiet=True)
    other = make_all_stages_recipe(tmp_path, stages='["pretrain"]', **{"run.init_from": f'"{tmp_path / "source"}"'})
    with pytest.raises(UserError, match="another tokenizer"):
        run.run_stage(other, "pretrain", resume="never", quiet=True)


def test_given_weights_can_have_a_shorter_or_a_longer_context(tmp_path):
    model, _ = export_random_model(tmp_path, "llama")
    source = [f"run.init_from={tmp_path / 'source'}"]
    for number, (settings, expected) in enumerate(
        [
            (["run.init_context=32"], (32, "default", 1.0, 0)),
            (["run.init_context=128"], (128, "default", 1.0, 0)),
            (["run.init_context=128", "run.init_rope=yarn"], (128, "yarn", 2.0, 64)),
        ]
    ):
        recipe = load_recipe("quickstart", [*source, *settings])
        path = find_init_checkpoint(recipe.run, tmp_path / str(number))
        config = recipe_from_checkpoint(recipe, path).model
        assert (config.context, config.rope_type, config.rope_factor, config.rope_original_context) == expected
        Transformer(config.resolve(model.config.vocab_size)).load_state_dict(
            load_checkpoint(path, ("model",)).tensors["model"]
        )
    with pytest.raises(UserError, match="is scaled already"):
        config.with_context(256, "ntk")
    export_random_model(tmp_path / "learned", "gpt2")
    learned = load_recipe("quickstart", [f"run.init_from={tmp_path / 'learned' / 'source'}", "run.init_context=32"])
    with pytest.raises(UserError, match="has 64 learned positions"):
        find_init_checkpoint(learned.run, tmp_path / "gpt2")


def test_a_budget_is_measured_and_forecast_with_the_given_model(tmp_path):
    model, _ = export_random_model(tmp_path, "fledgling")
    recipe = load_recipe("quickstart", [f"run.init_from={tmp_path / 'source'}", f"run.out={tmp_path / 'run'}"])
    taken = take_given_model(recipe)
    assert taken.resolve_model() == model.config and taken.tokenizer.vocab_size == model.config.vocab_size
    plain = load_recipe("quickstart")
    assert take_given_model(plain) is plain
    texts = {select_text(describe_data(each)) for each in (plain, replace(plain, run=taken.run))}
    assert len(texts) == 2, "what was learned before is in no law of runs from the seed"
