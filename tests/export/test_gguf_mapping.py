"""Which architecture of llama.cpp a model is; its tensors read by that architecture's own arithmetic, in numpy."""

import numpy as np
import pytest
import torch

from fledgling.config import ModelConfig, UserError, load_recipe
from fledgling.export import gguf
from fledgling.export.gguf_architectures import choose_architecture
from fledgling.export.gguf_mapping import list_tensors, order_rows, restore_rows, to_gguf_tensor
from fledgling.export.gguf_vocabulary import pre_tokenizer_name
from fledgling.text.tokenizer import Tokenizer
from tests.export.conftest import TEXT, random_model

PLAIN = {"activation": "swiglu", "logit_softcap": 0.0}  # of our own family
MODELS = {
    "llama": ("llama", {"kv_heads": 2}),
    "llama, tied, with biases": ("llama", {"tie_embeddings": True, "bias": True, "rope_base": 50_000.0}),
    "llama, attention's biases": ("llama", {"bias": True, "mlp_bias": False}),
    "llama, the feed-forward's biases": ("llama", {"mlp_bias": True}),
    "llama, ours": ("fledgling", {**PLAIN, "qk_norm": False}),
    "qwen3": ("llama", {"kv_heads": 2, "qk_norm": True, "rope_direction": 1}),
    "qwen3, ours": ("fledgling", {**PLAIN, "kv_heads": 2}),
    "qwen3, tied": ("fledgling", {**PLAIN, "tie_embeddings": True, "embedding_norm": False, "norm": "rms_weighted"}),
    "arcee": ("fledgling", {"logit_softcap": 0.0, "qk_norm": False}),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tie_embeddings": False}),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def rotate(x, base, pairs):
    """x (T, H, D): neighbouring pairs or halves, by +angle."""
    time, _, width = x.shape
    angles = np.arange(time)[:, None] * base ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = (x[..., 0::2], x[..., 1::2]) if pairs else np.split(x, 2, -1)
    turned = first * cos - second * sin, second * cos + first * sin
    return np.stack(turned, -1).reshape(x.shape) if pairs else np.concatenate(turned, -1)


def run_as_llama_cpp_does(t, config, name, tokens):
    """Logits (T, V) of the tensors `t` of a file, computed as the architecture is defined."""

    def linear(x, stem):
        y = x @ t[f"{stem}.weight"].T
        return y + t[f"{stem}.bias"] if f"{stem}.bias" in t else y

    def norm(x, stem):
        if name == "gpt2":
            return layer_norm(x, t[f"{stem}.weight"], t[f"{stem}.bias"], config.norm_eps)
        return rms(x, t[f"{stem}.weight"], config.norm_eps)

    time, heads, kv, width = len(tokens), config.heads, config.kv_heads, config.head_width
    x = t["token_embd.weight"][tokens]
    if name == "gpt2":
        x = x + t["position_embd.weight"][:time]
    for layer in range(config.depth):
        blk = f"blk.{layer}"
        y = norm(x, f"{blk}.attn_norm")
        if name == "gpt2":
            q, k, v = np.split(linear(y, f"{blk}.attn_qkv"), 3, -1)
        else:
            q, k, v = (linear(y, f"{blk}.attn_{part}") for part in "qkv")
        q, k, v = q.reshape(time, heads, width), k.reshape(time, kv, width), v.reshape(time, kv, width)
        if name == "qwen3":
            q = rms(q, t[f"{blk}.attn_q_norm.weight"], config.norm_eps)
            k = rms(k, t[f"{blk}.attn_k_norm.weight"], config.norm_eps)
        if name != "gpt2":
            q, k = (rotate(part, config.rope_base, pairs=name != "qwen3") for part in (q, k))
        k, v = (np.repeat(part, heads // kv, 1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
        scores[:, np.triu(np.ones((time, time), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(time, -1)
        x = x + linear(mixed, f"{blk}.attn_output")
        y = norm(x, f"{blk}.ffn_norm")
        up = linear(y, f"{blk}.ffn_up")
        if name in ("llama", "qwen3"):
            gate = linear(y, f"{blk}.ffn_gate")
            up = gate * sigmoid(gate) * up
        elif name == "arcee":
            up = np.maximum(up, 0) ** 2
        else:
            up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + linear(up, f"{blk}.ffn_down")
    return norm(x, "output_norm") @ t.get("output.weight", t["token_embd.weight"]).T


@pytest.mark.parametrize("case", MODELS)
def test_the_tensors_compute_the_same_by_the_architectures_arithmetic(case, make):
    family, fields = MODELS[case]
    model = make(family, **fields)
    architecture = choose_architecture(model.config)
    assert architecture.name == case.split(",")[0]
    state = model.state_dict()
    tensors = {
        entry.name: to_gguf_tensor(entry, state, model.config, architecture).double().numpy()
        for entry in list_tensors(model.config, architecture)
    }
    tokens = torch.randint(330, (40,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.compute_logits(model(tokens[None]))[0].numpy()
    logits = run_as_llama_cpp_does(tensors, model.config, architecture.name, tokens.numpy())
    np.testing.assert_allclose(logits, expected, atol=2e-4 * np.abs(expected).max())
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize("case", MODELS)
def test_a_file_of_any_architecture_is_read_back(case, make, tokenizer, tmp_path):
    pytest.importorskip("gguf")
    family, fields = MODELS[case]
    model = make(family, **fields)
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f32", "m")
    state = gguf.read_gguf_state(path, model.config)
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        if not (name == "embedding.weight" and model.config.embedding_norm):  # stored as it is used
            assert torch.equal(state[name], tensor), name


def test_reordering_rows_is_inverted():
    rows = torch.arange(24.0).view(12, 2)
    assert order_rows(rows, 2, False, True)[:, 0].tolist() == [0, 6, 2, 8, 4, 10, 12, 18, 14, 20, 16, 22]
    for exchanges in (False, True):
        for interleaves in (False, True):
            assert torch.equal(
                restore_rows(order_rows(rows, 2, exchanges, interleaves), 2, exchanges, interleaves), rows
            )


def test_the_layers_by_which_llama_cpp_knows_gemma_27b_are_rejected():
    with pytest.raises(UserError, match="Gemma 3 27B"):
        choose_architecture(ModelConfig(330, 62, 32, 4, family="gemma3"))


@pytest.mark.parametrize(
    ("family", "fields", "word"),
    [
        ("fledgling", {}, "model.logit_softcap = 15.0"),
        ("fledgling", {"logit_softcap": 0.0}, "model.activation = 'relu2'"),
        ("fledgling", {**PLAIN, "tie_embeddings": True}, "embedding_norm"),
        ("llama", {"window_pattern": "S"}, "window_pattern"),
        ("llama", {"residual_scalars": True}, "residual_scalars"),
        ("llama", {"qk_norm": True, "bias": True}, "model.qk_norm = True"),
        ("gpt2", {"kv_heads": 2}, "kv_heads = 2"),
        ("gpt2", {"activation": "relu2"}, "activation = 'relu2'"),
        ("gemma3", {"embedding_multiplier": 3.0}, "embedding_multiplier = 3.0"),
        ("olmo3", {"window_pattern": "SL"}, "window_pattern = 'SL'"),
        ("olmo3", {"window_pattern": "S", "rope_type": "yarn", "rope_factor": 2.0}, "rope_local_base"),
        ("phi3", {"partial_rotary_factor": 0.5, "rope_direction": -1}, "rope_direction = -1"),
    ],
)
def test_what_no_architecture_has_is_named(family, fields, word, tokenizer, tmp_path):
    model = random_model(ModelConfig(330, 2, 32, 4, family=family, preset="nanochat-2025", **fields))
    with pytest.raises(UserError) as error:
        gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f16", "m")
    assert word in str(error.value) and "quickstart-gguf" in str(error.value) and list(tmp_path.iterdir()) == []


def test_the_recipe_for_gguf_trains_a_model_and_a_tokenizer_that_llama_cpp_has():
    recipe = load_recipe("quickstart-gguf")
    assert choose_architecture(recipe.resolve_model()).name == "qwen3"
    assert pre_tokenizer_name(Tokenizer.train(TEXT, 330, max_digits=recipe.tokenizer.max_digits)) == "qwen2"
    plain = load_recipe("quickstart", ["optimizer.scalar_lr=none"])  # of scalars that the other model has not
    assert {name for name in vars(plain) if getattr(plain, name) != getattr(recipe, name)} - {"stated"} == {
        "name",
        "description",
        "model",
        "run",
    }, "the same run except the model"
