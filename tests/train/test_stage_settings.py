"""Settings of a stage that exclude one another, or that no stage would follow, are rejected in one line."""

import pytest

from fledgling.config import UserError, load_recipe
from fledgling.train import run
from fledgling.train.stage_settings import describe_unused_here, require_valid_settings
from tests.fast_run import write_recipe

LORA, TIED = "adapter.method=lora", "optimizer.tied_updates=9"


def require(tmp_path, name, *overrides):
    require_valid_settings(load_recipe("quickstart", [f"run.out={tmp_path}", *overrides]), name)


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        ("sft", [LORA, "optimizer.zero_stage=3"], r"optimizer.zero_stage=3 shards what is trained, and sft trains an"),
        ("sft", [LORA, "sft.quantization_aware=int8"], r'sft.quantization_aware="int8" trains the weights, which'),
        ("sft", ["distill.teacher=runs/t", "distill.stages=[]"], r"distill.stages=\[\]: no stage of this recipe"),
        (
            "pretrain",
            ["distill.teacher=runs/t", 'distill.stages=["sft"]', 'stages=["pretrain"]'],
            r"distill.stages=\['sft'\]: no stage of this recipe \(pretrain\) would learn from distill.teacher",
        ),
        ("sft", [LORA, "adapter.stages=[]"], r"adapter.stages=\[\]: no stage of this recipe"),
        ("pretrain", [LORA, 'stages=["pretrain"]'], r"no stage of this recipe \(pretrain\) would train the adapter"),
        ("sft", ["adapter.init_from=DIR"], r'^adapter.init_from=DIR: adapter.method is "none", so that the'),
        ("pretrain", [TIED, "model.tie_embeddings=true"], r"model.tie_embeddings keeps them one matrix: leave one out"),
        ("pretrain", [TIED, "model.family=gpt2"], r"model.tie_embeddings keeps them one matrix: leave one out"),
        ("pretrain", [TIED, "run.init_from=x"], r"run.init_from gives the weights of both: leave one out"),
        ("sft", ["distill.teacher=runs/t", "sft.mtp_targets=1"], r"sft.mtp_targets=1: a stage with a teacher"),
        ("sft", ["sft.mtp_decay_steps=9"], r"sft.mtp_decay_steps=9 needs mtp_targets, such as 2"),
    ],
)
def test_what_does_not_go_together_is_rejected(stage, overrides, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        require(tmp_path, stage, *overrides)
    assert "\n" not in str(error.value)


def test_what_goes_together_is_not(tmp_path):
    require(tmp_path, "pretrain", LORA, "optimizer.zero_stage=3")
    require(tmp_path, "sft", LORA, "optimizer.zero_stage=2")
    require(tmp_path, "pretrain", "distill.teacher=runs/t", 'distill.stages=["sft"]')
    require(tmp_path, "rl", "distill.teacher=runs/t", "distill.stages=[]", "rl.algorithm=distill")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 1}\n')
    require(tmp_path, "sft", "distill.teacher=runs/t", "distill.stages=[]")  # an older run is resumed with it


def test_what_the_exams_and_the_device_leave_unread_is_reported():
    def lines(*settings: str, device: str = "cpu", ranks: int = 1) -> list[str]:
        return describe_unused_here(load_recipe("quickstart", settings), "pretrain", device, ranks)

    questions = "pretrain.eval_questions=50"
    assert lines(questions) == lines("optimizer.state=8bit") == lines("optimizer.state=host", device="cuda") == []
    assert lines("pretrain.mixture={embedded = 1.0}") == [], "eval_questions was not stated"
    assert lines(questions, "pretrain.mixture={embedded = 1.0}") == [
        "pretrain.eval_questions = 50 is not read: nothing in pretrain.mixture has an exam"
    ]
    assert lines("optimizer.zero_stage=2", ranks=2) == []
    assert lines("optimizer.zero_stage=2") == ["optimizer.zero_stage = 2 is not read: one rank shards nothing"]
    assert lines("optimizer.state=host") == ['optimizer.state = "host" is not read: a CPU has no other memory']


def test_a_stage_of_an_adapter_that_is_unknown_is_rejected():
    with pytest.raises(UserError, match=r'adapter.stages\[0\]: got "sfft", expected one of pretrain, midtrain, sft'):
        load_recipe("quickstart", [LORA, 'adapter.stages=["sfft"]'])


def test_sharded_weights_with_an_adapter_are_rejected_on_one_rank_before_anything_is_written(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path), [LORA, "optimizer.zero_stage=3", 'stages=["sft"]'])
    with pytest.raises(UserError, match=r"set optimizer.zero_stage to 2"):
        run.run_stage(recipe, "sft", quiet=True)
    assert not (tmp_path / "run").exists()
