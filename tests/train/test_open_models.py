"""From an open model to an adapter and back: sft with LoRA on a class of transformers, merged, exported and loaded."""

import pytest
import torch

from fledgling.config import load_recipe
from fledgling.export.write_hf import write_hf
from fledgling.infer.runner import load_model
from fledgling.record.checkpoint import find_latest_checkpoint
from fledgling.text.tokenizer import Tokenizer
from fledgling.train import run
from fledgling.train.hooks import NO_EVALS
from tests.export.test_open_classes import CASES, random_class
from tests.fast_run import write_recipe
from tests.ranks import one_thread

ROW = torch.arange(1, 40)[None]


@pytest.mark.parametrize("name", CASES)
def test_an_adapted_class_is_the_same_here_in_transformers_and_in_peft(name, tmp_path):
    from peft import PeftModel  # imports of a second, which other workers do not need
    from transformers import AutoModelForCausalLM

    random_class(name).save_pretrained(tmp_path / "source")
    Tokenizer.train(["the quick brown fox jumps over 12 lazy dogs " * 9], 330).save(tmp_path / "source/tokenizer.json")
    settings = {
        **{"stages": '["sft"]', "run.init_from": tmp_path / "source", "sft.steps": 2, "sft.eval_questions": 1},
        **{"adapter.method": "dora" if name in ("gemma3", "gpt_neox", "phi3") else "lora", "adapter.rank": 3},
        **{"optimizer.adapter_lr": 0.02, "pretrain.batch_tokens": 512, "sft.batch_tokens": 512},
    }
    recipe = load_recipe(write_recipe(tmp_path / "work"), [f"{key}={value}" for key, value in settings.items()])
    with one_thread():
        assert run.run_stage(recipe, "sft", quiet=True, hooks=NO_EVALS)
    out = tmp_path / "work" / "run"
    model, tokenizer, _ = load_model(out)
    write_hf(tmp_path / "merged", model.config, model.state_dict(), tokenizer, "card")
    source = AutoModelForCausalLM.from_pretrained(tmp_path / "source", attn_implementation="eager").eval()
    with torch.inference_mode():
        adapted_logits, before = model.compute_logits(model(ROW)), source(ROW).logits
        assert (adapted_logits - before).abs().max() > 0.01, "it was trained"
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
        torch.testing.assert_close(merged(ROW).logits, adapted_logits, rtol=1e-4, atol=1e-4)
        adapted = PeftModel.from_pretrained(source, find_latest_checkpoint(out / "sft/checkpoints")).eval()
        torch.testing.assert_close(adapted(ROW).logits, adapted_logits, rtol=1e-4, atol=1e-4)
