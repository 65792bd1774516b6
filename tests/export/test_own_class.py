"""A model that no class of transformers holds carries its own code: loaded from there, it is the same model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fledgling.config import UserError
from fledgling.export import parity, write_hf
from fledgling.export.hf_mapping import from_hf_config, to_hf_config
from fledgling.export.own_class import needs_own_class
from fledgling.export.read_hf import read_hf
from fledgling.model.transformer import Transformer
from fledgling.record.tensor_names import RENAMED_TENSORS

STREAM = {"depth": 6, "residual_scalars": True, "skip_scalars": True, "back_out": True, "smear": True}
HEADS = {"value_embeddings": 2, "value_gates": True, "head_gates": True, "exclusive_attention": True}
EVERYTHING = {
    **STREAM,
    **HEADS,
    "logit_shift": 4.0,
    "window_pattern": "SL",
    "window_size": 7,
    "flash_norm": True,
    "kv_heads": 2,
}


def export(model: Transformer, tokenizer, folder):
    return write_hf.write_hf(folder / "out", model.config, model.state_dict(), tokenizer, "card")


def load(directory, monkeypatch, tmp_path):
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=True, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize(
    "fields",
    [
        EVERYTHING,
        {"preset": "nanochat-2026", "depth": 2},
        {"activation": "swiglu", "tie_embeddings": True, "value_embeddings": 1},
        {"qk_norm": False},
    ],
    ids=["everything", "a pattern longer than the model", "swiglu", "no qk-norm"],
)
def test_transformers_computes_the_same_logits_from_the_directory(fields, make, tokenizer, tmp_path, monkeypatch):
    model = make("fledgling", **fields)
    out = export(model, tokenizer, tmp_path)
    assert {"modeling_fledgling.py", "config.json"} <= {path.name for path in out.iterdir()}
    other = load(out, monkeypatch, tmp_path)
    row = parity.compare_logits(model, lambda t: other(torch.tensor([t])).logits[0], "", tokenizer.bos_or_none)
    assert row.max_difference < 1e-4 and row.greedy_matches == row.greedy_tokens
    again = read_hf(out)
    assert again.config.to_dict() == {**model.config.to_dict(), "flash_norm": False}
    assert all(torch.equal(again.state[name], value) for name, value in model.state_dict().items())


def test_an_export_of_an_older_version_is_read_under_the_names_of_today(make, tokenizer, tmp_path):
    model = make("fledgling", **STREAM)
    out = export(model, tokenizer, tmp_path)
    stored = load_file(out / "model.safetensors")
    for old, new in RENAMED_TENSORS.items():
        assert any(name.startswith(f"model.{new}") for name in stored)
        older = {name.replace(f"model.{new}", f"model.{old}", 1): tensor for name, tensor in stored.items()}
        save_file(older, out / "model.safetensors")
        state = read_hf(out).state
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        both = {**older, **stored}  # of which neither is chosen
        save_file({name: tensor.clone() for name, tensor in both.items()}, out / "model.safetensors")
        with pytest.raises(UserError, match=f"model.{old}.* is left over"):
            read_hf(out)


def test_a_directory_of_before_there_were_presets_is_read(make):
    config = make("fledgling", **STREAM).config
    values = to_hf_config(config)
    assert from_hf_config(values) == config
    del values["preset"]
    assert from_hf_config(values) == config, "which is what its parts say"
    with pytest.raises(UserError, match=r"model\.preset 'x"):
        from_hf_config({**values, "preset": "x" * 1000})


def test_its_cache_and_its_padding_give_the_same_tokens(make, tokenizer, tmp_path, monkeypatch):
    model = make("fledgling", **EVERYTHING)
    model.smear.scale.weight.data.fill_(3.0)  # so large that a token of padding before the first one is noticed
    other = load(export(model, tokenizer, tmp_path), monkeypatch, tmp_path)
    prompts = [[5, 9, 200, 31], [17]]
    expected = [parity.generate_greedy(model, prompt, 12) for prompt in prompts]
    padded = torch.tensor([prompts[0], [0, 0, 0, *prompts[1]]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]])
    for use_cache in (True, False):
        found = other.generate(
            padded, attention_mask=mask, do_sample=False, max_new_tokens=12, use_cache=use_cache, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
        assert found[:, 4:].tolist() == expected, use_cache


def test_a_plain_model_keeps_the_class_of_transformers(make, tokenizer, tmp_path):
    model = make("fledgling")
    out = export(model, tokenizer, tmp_path)
    assert not needs_own_class(model.config) and not (out / "modeling_fledgling.py").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["NanoChatForCausalLM"] and "auto_map" not in config


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("window_pattern", "SL" * 1000, "window_pattern"),
        ("window_pattern", "SX", "SX"),
        ("value_embeddings", True, "value_embeddings"),
        ("logit_shift", 2, "logit_shift"),
        ("logit_shift", float("nan"), "logit_shift"),
        ("hidden_size", 1 << 30, "hidden_size"),
        ("hidden_act", "tanh", "hidden_act"),
        ("num_hidden_layers", None, "num_hidden_layers"),
    ],
)
def test_an_edited_configuration_is_rejected_by_key(key, value, word, make):
    values = to_hf_config(make("fledgling", smear=True).config)
    with pytest.raises(UserError, match=word):
        from_hf_config({**values, key: value})
