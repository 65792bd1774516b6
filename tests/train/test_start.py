"""A run that begins with somebody else's weights and tokenizer."""

import json

import pytest
import torch

from fledgling.config import UserError
from fledgling.export import write_hf
from fledgling.infer.runner import load_model
from fledgling.model.config import ModelConfig, config_from_preset
from fledgling.model.transformer import Transformer
from fledgling.record import read_jsonl
from fledgling.record.checkpoint import find_latest_checkpoint, load_checkpoint
from fledgling.text.tokenizer import Tokenizer
from fledgling.train import run
from tests.tiny import tiny


def exported(folder, family: str) -> tuple[Transformer, Tokenizer]:
    """A small random model as a Hugging Face directory in `folder`/theirs."""
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog " * 9], vocab_size=330)
    kv_heads = 4 if family == "gpt2" else 2
    model = Transformer(
        config_from_preset(
            family, vocab_size=tokenizer.vocab_size, depth=1, width=48, heads=4, kv_heads=kv_heads, context=64
        )
    )
    model.initialize(7)
    write_hf.write_hf(folder / "theirs", model.config, model.state_dict(), tokenizer, "card")
    return model, tokenizer


@pytest.mark.parametrize(
    ("family", "stages"), [("llama", '["pretrain", "sft"]'), ("gpt2", '["midtrain"]'), ("fledgling", '["sft"]')]
)
def test_the_first_stage_goes_on_from_a_hugging_face_directory(family, stages, tmp_path):
    model, tokenizer = exported(tmp_path, family)
    options = {"stages": stages, "run.init_from": f'"{tmp_path / "theirs"}"', "optimizer.matrix_lr": 1e-9}
    options |= {f"optimizer.{role}_rate": 1e-9 for role in ("embedding", "head", "scalar")}
    recipe = tiny(tmp_path, **options)
    for stage in recipe.stages:
        assert run.run_stage(recipe, stage, quiet=True)
    found, theirs, state = load_model(tmp_path / "run")
    assert found.config == model.config and state["stage"] == recipe.stages[-1]
    assert theirs.fingerprint() == tokenizer.fingerprint()
    for name, tensor in model.state_dict().items():  # at a rate of nothing, the weights are theirs still
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=1e-6)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["parameters"]["total"] == model.count_parameters()
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run" / recipe.stages[0] / "metrics.jsonl")]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)


def test_it_goes_on_from_a_checkpoint_and_resumes_without_the_source(tmp_path):
    first = tiny(tmp_path, stages='["pretrain"]')
    run.run_stage(first, "pretrain", quiet=True)
    begun = load_checkpoint(find_latest_checkpoint(tmp_path / "run/pretrain/checkpoints")).tensors["model"]
    second = tiny(
        tmp_path, stages='["sft"]', **{"run.init_from": f'"{tmp_path / "run"}"', "run.out": f'"{tmp_path / "second"}"'}
    )
    run.run_stage(second, "sft", quiet=True)
    ended = load_checkpoint(find_latest_checkpoint(tmp_path / "second/sft/checkpoints")).tensors["model"]
    fresh = Transformer(
        ModelConfig.from_dict(
            load_checkpoint(find_latest_checkpoint(tmp_path / "second/sft/checkpoints")).state["model"]
        )
    )
    fresh.initialize(second.seed)
    for name, tensor in fresh.state_dict().items():  # much nearer to where it began than to the seed's weights
        moved = (ended[name] - begun[name]).norm()
        assert 0 < moved < (ended[name] - tensor).norm(), name


def test_a_source_that_is_none_or_has_another_tokenizer(tmp_path):
    recipe = tiny(tmp_path, stages='["pretrain"]', **{"run.init_from": f'"{tmp_path / "nowhere"}"'})
    with pytest.raises(UserError, match="nowhere does not exist"):
        run.run_stage(recipe, "pretrain", quiet=True)
    exported(tmp_path, "llama")
    plain = tiny(tmp_path, stages='["pretrain"]')
    run.run_stage(plain, "pretrain", quiet=True)
    other = tiny(tmp_path, stages='["pretrain"]', **{"run.init_from": f'"{tmp_path / "theirs"}"'})
    with pytest.raises(UserError, match="another tokenizer"):
        run.run_stage(other, "pretrain", resume="never", quiet=True)
