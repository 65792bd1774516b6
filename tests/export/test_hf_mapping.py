"""Tests which models have a class in transformers."""

import pytest

from fledgling.config import UserError
from fledgling.export import parity, write_hf
from fledgling.export.hf_mapping import from_hf_config
from fledgling.export.read_hf import read_hf
from fledgling.model.flash_norm import fold_norm_weights


def test_a_model_without_a_transformers_class_is_rejected_by_setting(make, tokenizer, tmp_path):
    for family, fields, word in (
        ("llama", {"qk_norm": True}, "qk_norm"),
        ("llama", {"logit_softcap": 15.0}, "logit_softcap"),
        ("llama", {"residual_scalars": True}, "residual_scalars"),
        ("fledgling", {"value_embeddings": 1, "norm": "layer"}, "norm"),
        ("fledgling", {"smear": True, "activation": "geglu"}, "activation"),
        ("gpt2", {"kv_heads": 2}, "key/value heads"),
    ):
        model = make(family, **fields)
        with pytest.raises(UserError, match=word):
            write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
        assert list(tmp_path.iterdir()) == []


def test_folded_and_deferred_norms_export_the_same_model(make, tokenizer, tmp_path):
    model = make("llama", flash_norm=True)
    folded = fold_norm_weights(model.config, model.state_dict())
    out = write_hf.write_hf(tmp_path / "out", model.config, folded, tokenizer, "card")
    assert all((w == 1).all() for name, w in read_hf(out).state.items() if name.endswith("norm.weight"))
    rows = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert all(row.max_difference < 1e-4 and row.greedy_matches == row.greedy_tokens for row in rows)


def test_older_config_keys_are_understood():
    printed = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "pretraining_tp": 1,
    }
    config = from_hf_config(printed)
    assert (config.kv_heads, config.intermediate_size, config.rope_base, config.tie_embeddings) == (
        32,
        11008,
        1e6,
        False,
    )
