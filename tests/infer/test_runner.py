"""Loading a model from a checkpoint; one whose weights do not fit its description is rejected in one line."""

import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.infer.runner import load_model
from fledgling.model.transformer import Transformer
from fledgling.record import checkpoint
from fledgling.text.tokenizer import Tokenizer


def test_a_model_is_loaded_with_its_tokenizer_and_state(tmp_path):
    tokenizer = Tokenizer.train(["some text to learn letters from"] * 20, 320)
    tokenizer.save(tmp_path / "tokenizer.json")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        depth=2,
        width=32,
        heads=2,
        kv_heads=2,
        context=16,
        family="fledgling",
    )
    model = Transformer(config)
    model.initialize(0)
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}

    def saved(state):
        return checkpoint.save_checkpoint(tmp_path / "sft/checkpoints", 1, {"model": model.state_dict()}, state, files)

    saved({"model": config.to_dict()})
    loaded, loaded_tokenizer, state = load_model(tmp_path / "sft")
    assert not loaded.training and state["model"]["depth"] == 2
    assert loaded_tokenizer.fingerprint() == tokenizer.fingerprint()
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(loaded(tokens), model(tokens))
    assert next(load_model(tmp_path / "sft", dtype=torch.bfloat16)[0].parameters()).dtype == torch.bfloat16
    for wrong in ({"depth": 3}, {"depth": 10**12}, {"width": 64}, {"depth": "x"}, {"nonsense": 1}):
        saved({"model": config.to_dict() | wrong})
        with pytest.raises(UserError) as error:
            load_model(tmp_path / "sft")
        assert "\n" not in str(error.value)
    saved({})
    with pytest.raises(UserError, match="do not fit"):
        load_model(tmp_path / "sft")
