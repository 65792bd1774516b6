"""A model card says which teacher, adapter, given weights and budget its weights came from."""

import json
import shutil

import pytest
import torch

from fledgling.config import ModelConfig, dump_toml, load_recipe
from fledgling.export.card_origin import describe_origin
from fledgling.export.model_card import render_model_card
from fledgling.record import checkpoint
from fledgling.record.parent import describe_parent
from fledgling.text.tokenizer import Tokenizer

DISTILLED = ["distill.teacher=/home/me/runs/teacher", 'distill.stages=["pretrain", "sft"]']
LORA = ["adapter.method=lora", "adapter.rank=4", 'adapter.stages=["rl"]']
STAGES = 'stages=["pretrain", "sft", "rl"]'


def state_of(stage, *overrides, digest=None):
    data = {"distill.teacher": {"digest": digest}} if digest else {}
    return {"stage": stage, "step": 3, "recipe": dump_toml(load_recipe("quickstart", overrides)), "data": data}


def test_each_stage_is_described_by_its_own_checkpoint(tmp_path):
    for stage, options in (("pretrain", DISTILLED), ("midtrain", DISTILLED), ("sft", [])):
        state = state_of(stage, STAGES, *options, digest="0123456789abcdef" if options else None)
        checkpoint.save_checkpoint(tmp_path / stage / "checkpoints", 3, {"model": {"w": torch.zeros(1)}}, state)
    (tmp_path / "forecast.json").write_text(json.dumps({"budget": {"seconds": 720.0, "text": "--minutes 12"}}))
    rows = dict(describe_origin(state_of("rl", STAGES, *DISTILLED, *LORA), tmp_path))
    assert rows == {
        "pretrain": "learned from the teacher `runs/teacher` (weights 0123456789ab)",
        "rl": "trained an adapter, merged here: lora of rank 4",
        "budget of the run": "`--minutes 12`",
    }, "sft was trained without a teacher, midtrain is no stage of this run, and no home directory is published"


def test_a_reward_model_is_named_as_one():
    settings = ('stages=["pretrain", "dpo"]', "dpo.pairs=pairs.jsonl")
    rows = dict(describe_origin(state_of("dpo", *settings, "dpo.objective=reward"), None))
    assert rows == {"dpo": "trained as a reward model, whose head is not in these files"}
    assert not describe_origin(state_of("dpo", *settings), None)


def save_stage(run, stage, value, parent=None, *overrides, digest=None):
    """Saves a checkpoint whose weights are `value`, which began from the checkpoint `parent`; returns its state too."""
    state = state_of(stage, STAGES, *overrides, digest=digest) | {"parent": describe_parent(parent)}
    tensors = {"model": {"w": torch.full((1,), float(value))}}
    saved = checkpoint.save_checkpoint(run / stage / "checkpoints", 3, tensors, state)
    (run / stage / "done.json").write_text("{}")
    return saved, state


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("first", [True, False], ids=["with a teacher at first", "with a teacher later"])
def test_a_stage_that_was_restarted_says_nothing_of_earlier_weights(tmp_path, stage, first):
    teacher = lambda name, now: DISTILLED if name == stage and now else []  # noqa: E731
    pretrained, _ = save_stage(tmp_path, "pretrain", 1, None, *teacher("pretrain", first))
    tuned, _ = save_stage(tmp_path, "sft", 2, pretrained, *teacher("sft", first))
    _, state = save_stage(tmp_path, "rl", 3, tuned)
    was_there = dict(describe_origin(state, tmp_path))
    assert was_there == ({stage: "learned from the teacher `runs/teacher`"} if first else {})
    shutil.rmtree(tmp_path / stage)
    save_stage(tmp_path, stage, 4, pretrained if stage == "sft" else None, *teacher(stage, not first))
    unknown = "pretrain, sft" if stage == "sft" else "pretrain"
    assert describe_origin(state, tmp_path) == [
        (unknown, "not known: the run no longer has the weights that came of it")
    ]


def test_weights_of_an_earlier_checkpoint_or_kept_for_an_adapter_are_found_by_their_digest(tmp_path):
    pretrained, _ = save_stage(tmp_path, "pretrain", 1, None, *DISTILLED)
    _, state = save_stage(tmp_path, "sft", 2, pretrained)
    moved = tmp_path / "bases/pretrain/step-00000003-0123456789ab"
    moved.parent.mkdir(parents=True)
    pretrained.rename(moved)
    save_stage(tmp_path, "pretrain", 4)
    assert describe_origin(state, tmp_path) == [("pretrain", "learned from the teacher `runs/teacher`")]


def test_a_state_that_names_nonsense_as_its_parent_ends(tmp_path):
    saved, _ = save_stage(tmp_path, "sft", 2)
    later = describe_parent(saved)
    for parent in (3, [], {}, {"weights": 3}, {"stage": [], "weights": "a"}, {"stage": "sft", "weights": "a"}, later):
        assert describe_origin(state_of("sft") | {"parent": parent}, tmp_path) == []


def test_without_a_run_the_state_alone_says_it_and_a_plain_run_says_nothing():
    rows = dict(describe_origin(state_of("sft", *DISTILLED, "run.init_from=./gpt2"), None))
    assert rows == {"began from": "`./gpt2`", "sft": "learned from the teacher `runs/teacher`"}
    assert describe_origin(state_of("sft"), None) == [] == describe_origin({"name": "imported"}, None)


def test_what_a_corrupt_run_says_stays_in_its_cell(tmp_path):
    for text in ("[1]", '{"budget": 3}', '{"budget": {"text": 3}}', "[" * 3000):
        (tmp_path / "forecast.json").write_text(text)
        assert describe_origin(state_of("sft"), tmp_path) == []
    (tmp_path / "forecast.json").write_text(json.dumps({"budget": {"text": "a|b`\n" * 99}}))
    ((_, budget),) = describe_origin(state_of("sft"), tmp_path)
    assert len(budget) < 90 and not {"|", "\n"} & set(budget)


def test_the_card_has_the_rows():
    config = ModelConfig(vocab_size=330, depth=1, width=32, heads=2, kv_heads=2, context=64, intermediate_size=96)
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], vocab_size=330)
    card = render_model_card(config, 1, tokenizer, state_of("sft", *DISTILLED), None)
    assert "| sft | learned from the teacher `runs/teacher` |" in card
