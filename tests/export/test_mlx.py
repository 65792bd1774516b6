"""mlx-lm's nanochat class computes what our family computes: by its arithmetic in numpy, and itself where installed."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fledgling.config import UserError
from fledgling.export.mlx import write_mlx
from fledgling.export.parity import compare_mlx
from tests.export.test_open_classes import CASES, random_class

EPS = 1e-5  # of mlx_lm/models/nanochat.py


def rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def rotate(x, base):
    """x (T, H, D): halves, by minus the angle, as negated frequencies do."""
    time, _, width = x.shape
    half = width // 2
    angles = np.arange(time)[:, None] * -np.exp(-np.arange(half) * np.log(base) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = np.split(x, 2, -1)
    return np.concatenate((first * cos - second * sin, first * sin + second * cos), -1)


def run_as_mlx_does(t, config, tokens):
    """The logits (T, V) of the class `Model` in nanochat.py."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    time, width = len(tokens), config["hidden_size"] // heads
    x = rms(t["transformer.wte.weight"][tokens])
    for layer in range(config["num_hidden_layers"]):
        h = f"transformer.h.{layer}"
        y = rms(x)
        q, k, v = (y @ t[f"{h}.attn.c_{part}.weight"].T for part in "qkv")
        q, k, v = q.reshape(time, heads, width), k.reshape(time, kv, width), v.reshape(time, kv, width)
        q, k = rms(rotate(q, config["rope_theta"])), rms(rotate(k, config["rope_theta"]))
        k, v = (np.repeat(part, heads // kv, 1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
        scores[:, np.triu(np.ones((time, time), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(time, -1)
        x = x + mixed @ t[f"{h}.attn.c_proj.weight"].T
        y = np.maximum(rms(x) @ t[f"{h}.mlp.c_fc.weight"].T, 0) ** 2
        x = x + y @ t[f"{h}.mlp.c_proj.weight"].T
    return 15 * np.tanh(rms(x) @ t["lm_head.weight"].T / 15)


@pytest.fixture
def model(make):
    model = make("fledgling", kv_heads=2)
    with torch.no_grad():
        model.embedding.weight *= 0.02  # so small that epsilon counts
        for block in model.blocks:
            block.attention.q_proj.weight *= 0.01
    return model


def test_names_and_epsilon_are_those_of_the_class(model, tokenizer, tmp_path):
    write_mlx(tmp_path / "out", model.config, model.state_dict(), tokenizer)
    tensors = {name: value.astype(np.float64) for name, value in load_file(tmp_path / "out/model.safetensors").items()}
    tokens = torch.randint(330, (40,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.compute_logits(model(tokens[None]))[0].numpy()
    config = json.loads((tmp_path / "out/config.json").read_text())
    np.testing.assert_allclose(run_as_mlx_does(tensors, config, tokens.numpy()), expected, atol=1e-4)
    plain = {**tensors, "transformer.wte.weight": tensors["transformer.wte.weight"] / 10**0.5}
    assert np.abs(run_as_mlx_does(plain, config, tokens.numpy()) - expected).max() > 1e-3, "the scale matters here"
    assert "chat_template" in json.loads((tmp_path / "out/tokenizer_config.json").read_text())


def test_mlx_lm_itself_writes_the_same_tokens(model, tokenizer, tmp_path):
    pytest.importorskip("mlx_lm", reason='mlx-lm is not installed: pip install "mlx[cpu]" mlx-lm')
    write_mlx(tmp_path / "out", model.config, model.state_dict(), tokenizer)
    (found,) = compare_mlx(model, tmp_path / "out", tokenizer.bos)
    assert found.max_difference < 1e-3 and found.greedy_matches + found.greedy_ties == found.greedy_tokens


@pytest.mark.parametrize("name", ["llama", "llama, yarn", "qwen3", "smollm3", "olmo2", "phi3", "gpt_neox", "gemma3"])
def test_mlx_lm_reads_an_open_class(name, tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("mlx_lm", reason='mlx-lm is not installed: pip install "mlx[cpu]" mlx-lm')
    from fledgling.export.read_hf import read_hf
    from fledgling.model.transformer import Transformer

    kind, keys = CASES[name]
    keys = {key: keys[key] for key in keys if key != "final_logit_softcapping"}
    keys |= {"intermediate_size": 4 * keys["hidden_size"]} if name == "gpt_neox" else {}
    keys |= {"hidden_size": 64} if name == "gemma3" else {}  # mlx-lm rounds its square root to bfloat16
    monkeypatch.setitem(CASES, name, (kind, keys))
    random_class(name).save_pretrained(tmp_path / "hf")
    tokenizer.save(tmp_path / "hf" / "tokenizer.json")
    source = read_hf(tmp_path / "hf")
    model = Transformer(source.config).eval()
    model.load_state_dict(source.state)
    write_mlx(tmp_path / "out", model.config, model.state_dict(), tokenizer)
    (found,) = compare_mlx(model, tmp_path / "out", tokenizer.bos)
    assert found.max_difference < 1e-3


def test_what_the_class_is_not_is_named(make, tokenizer, tmp_path):
    for fields, word in (
        ({"residual_scalars": True}, "residual_scalars"),
        ({"logit_softcap": 0.0}, "logit_softcap is 0.0"),
        ({"tie_embeddings": True}, "tie_embeddings"),
    ):
        model = make("fledgling", **fields)
        with pytest.raises(UserError, match=word):
            write_mlx(tmp_path / "out", model.config, model.state_dict(), tokenizer)
    assert not list(tmp_path.iterdir())
