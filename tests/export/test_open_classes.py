"""Every open class computes here what it computes in transformers, and leaves again as the same class.

Random models of two or three layers, made with transformers' own classes: logits, 200 greedy tokens through the cache,
a left-padded batch, a text longer than the window or than the context that RoPE was trained for (32 tokens of 256).
"""

import json
from dataclasses import replace

import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.export import parity
from fledgling.export.hf_layers import shorten_pattern
from fledgling.export.hf_mapping import check_family, from_hf_config, to_hf_config
from fledgling.export.read_hf import read_hf
from fledgling.export.write_hf import write_hf
from fledgling.model.transformer import Transformer
from fledgling.plan.parameters import parameter_shapes

SIZES = {
    "vocab_size": 330,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
NO_GROUPS = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    **YARN,
    **{"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
CASES = {  # name: class of the configuration, its keys
    "llama": ("LlamaConfig", {**SIZES, "rope_parameters": LLAMA3}),
    "llama with wide heads": ("LlamaConfig", {**SIZES, "head_dim": 16, "rope_parameters": PLAIN}),
    "llama, linear": (
        "LlamaConfig",
        {**SIZES, "rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 4.0}, "tie_word_embeddings": True},
    ),
    "llama, yarn": ("LlamaConfig", {**SIZES, "rope_parameters": YARN}),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": 7, "rope_parameters": PLAIN}),
    "phi3": ("Phi3Config", {**SIZES, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}}),
    "qwen2": ("Qwen2Config", {**SIZES, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 16, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3Config", {**SIZES, "no_rope_layer_interval": 3}),
    "smollm3, windows": (
        "SmolLM3Config",
        {**SIZES, "no_rope_layer_interval": 3, "use_sliding_window": True, "sliding_window": 7},
    ),
    "olmo2": ("Olmo2Config", {**SIZES, "rope_parameters": PLAIN}),
    "olmo3": (
        "Olmo3Config",
        {**SIZES, "sliding_window": 7, "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN}},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **SIZES,
            **{"head_dim": 16, "query_pre_attn_scalar": 21, "sliding_window": 7, "sliding_window_pattern": 3},
            "final_logit_softcapping": 20.0,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {**NO_GROUPS, "rotary_pct": 0.5}),
    "gpt_neox, all rotated": ("GPTNeoXConfig", {**NO_GROUPS, "rotary_pct": 1.0}),
    "gpt_neox, in sequence": (
        "GPTNeoXConfig",
        {**NO_GROUPS, "rotary_pct": 0.5, "use_parallel_residual": False},
    ),
}


def random_class(name: str, **more):
    """A random model of transformers; no weight is at its initial value."""
    import transformers

    kind, keys = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**keys, **more})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    draw = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return model


@pytest.mark.parametrize("name", CASES)
def test_a_class_computes_what_transformers_computes_and_leaves_again(name, tokenizer, tmp_path):
    import transformers

    other = random_class(name)
    other.save_pretrained(tmp_path / "in", max_shard_size="60KB" if name == "qwen3" else "5GB")
    tokenizer.save(tmp_path / "in" / "tokenizer.json")
    imported = read_hf(tmp_path / "in")
    model = Transformer(imported.config).eval()
    model.load_state_dict(imported.state)
    row = torch.randint(1, 330, (1, 60), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = other(row).logits
        torch.testing.assert_close(model.compute_logits(model(row)), expected, rtol=1e-4, atol=1e-4)
        generated = other.generate(row[:, :9], max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert parity.generate_greedy(model, row[0, :9].tolist(), 9) == generated[0, 9:].tolist()
        found = parity.compare_logits(model, lambda tokens: other(torch.tensor([tokens])).logits[0], name)
        assert found.max_difference < 1e-4 and found.greedy_tokens == 200
        assert found.greedy_matches + found.greedy_ties == 200 and found.greedy_ties < 3
        padded = torch.cat((torch.zeros(1, 11, dtype=torch.long), row[:, :30]), dim=1)
        mask = (torch.arange(41) >= 11).long()[None]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        last = other(padded, attention_mask=mask, position_ids=positions).logits[0, -1]
        torch.testing.assert_close(model.compute_logits(model(row[:, :30]))[0, -1], last, rtol=1e-4, atol=1e-4)
    write_hf(tmp_path / "out", imported.config, model.state_dict(), tokenizer, "card")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert type(again) is type(other)
    with torch.inference_mode():
        torch.testing.assert_close(again(row).logits, expected, rtol=1e-4, atol=1e-4)
    assert read_hf(tmp_path / "out").config == imported.config


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_of_a_class_survives_both_ways(name):
    import transformers

    kind, keys = CASES[name]
    config = from_hf_config(getattr(transformers, kind)(**keys).to_dict())
    assert from_hf_config(to_hf_config(config)) == config


BIASED = [
    *[(name, {"attention_bias": True}) for name in ("llama", "qwen3", "smollm3", "olmo2", "olmo3", "gemma3")],
    *[(name, {"mlp_bias": True}) for name in ("llama", "smollm3")],
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("gpt_neox", {"attention_bias": False}),
]


@pytest.mark.parametrize(("name", "keys"), BIASED)
def test_biases_of_attention_or_of_the_feed_forward_alone_are_computed(name, keys, tokenizer, tmp_path):
    import transformers

    other = random_class(name, **keys)
    other.save_pretrained(tmp_path / "in")
    tokenizer.save(tmp_path / "in" / "tokenizer.json")
    imported = read_hf(tmp_path / "in")
    biases = {key for key in parameter_shapes(imported.config) if key.endswith("bias")}
    assert biases == {key for key in imported.state if key.endswith("bias")}
    model = Transformer(imported.config).eval()
    model.load_state_dict(imported.state)
    write_hf(tmp_path / "out", imported.config, model.state_dict(), tokenizer, "card")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    row = torch.randint(1, 330, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = other(row).logits
        torch.testing.assert_close(model.compute_logits(model(row)), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(row).logits, expected, rtol=1e-4, atol=1e-4)
    assert read_hf(tmp_path / "out").config == imported.config


def test_biases_that_no_class_has_are_not_exported():
    for wrong in ({"qkv_bias": True}, {"bias": True, "qkv_bias": False}):
        config = ModelConfig(depth=1, width=32, heads=2, context=16, family="llama", **wrong).resolve(60)
        with pytest.raises(UserError, match="no such biases"):
            check_family(config)


@pytest.mark.parametrize("types", [{}, {"layer_types": None}])
def test_windows_without_types_of_layers_are_those_that_transformers_derives(types):
    import transformers

    kind, keys = CASES["smollm3, windows"]
    written = getattr(transformers, kind)(**keys).to_dict()
    expected = from_hf_config(written)
    del written["layer_types"]
    assert from_hf_config(written | types) == expected and expected.window_size == 7
    kind, keys = CASES["olmo2"]
    plain = getattr(transformers, kind)(**keys).to_dict()
    plain.pop("layer_types", None)
    assert from_hf_config(plain | types | {"sliding_window": 7}) == from_hf_config(plain), "it has no windows"


HOSTILE = [
    ("qwen3", {"head_dim": 10**9}, "head_dim"),
    ("qwen3", {"layer_types": ["full_attention"] * 2, "use_sliding_window": True, "sliding_window": 4}, "layer_types"),
    ("qwen2", {"hidden_act": "gelu"}, "activation"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ("smollm3", {"no_rope_layers": "all"}, "no_rope_layers"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("gpt_neox", {"attention_bias": 1}, "attention_bias"),
    ("llama", {"rope_parameters": {**YARN, "mscale": 1.0}}, "mscale"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "has no factor"),
    ("llama", {"rope_parameters": {**LLAMA3, "factor": float("inf")}}, "factor"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope", "short_factor": [1] * 10**6}}, "longrope"),
    ("olmo2", {"attention_bias": "yes"}, "attention_bias"),
    ("smollm3", {"mlp_bias": 1}, "mlp_bias"),
    ("llama", {"rope_parameters": PLAIN, "rope_scaling": {**YARN}}, "rope_parameters and rope_scaling"),
    ("olmo3", {"rope_parameters": YARN}, "full_attention"),
    ("gemma3", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "expects rope_type"),
    ("gemma3", {"layer_types": None, "sliding_window_pattern": 0}, "sliding_window_pattern"),
    ("mistral", {"sliding_window": -1}, "sliding_window"),
    ("gpt_neox", {"hidden_size": 50}, "hidden_size"),
]


@pytest.mark.parametrize(("name", "keys", "word"), HOSTILE)
def test_what_a_class_cannot_be_here_is_named_in_one_line(name, keys, word):
    import transformers

    kind, given = CASES[name]
    contents = {**getattr(transformers, kind)(**given).to_dict(), **keys}
    with pytest.raises(UserError, match=word) as error:
        from_hf_config(contents)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(("pattern", "short"), [("SSLSSL", "SSL"), ("SSLSS", "SSL"), ("SL", "SL"), ("LLL", "")])
def test_the_pattern_of_layers_is_the_shortest_that_repeats(pattern, short):
    assert shorten_pattern(pattern) == short


OLD_YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "attention_factor": 1.2}
OLD_LINEAR = {"rope_type": "linear", "factor": 8.0}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
WITHOUT_THETA = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}
ODD = {  # files of older programs, and keys that a class does not look at: name, then the keys that are written instead
    "olmo3 of its makers": ("olmo3", {"rope_theta": 5e5, "rope_scaling": OLD_YARN}),
    "olmo2 without theta": ("olmo2", {}),
    "gemma3 of its makers": ("gemma3", {"rope_theta": 1e6, "rope_local_base_freq": 9e3, "rope_scaling": OLD_LINEAR}),
    "gemma3 without thetas": ("gemma3", {"rope_parameters": WITHOUT_THETA}),
    "mistral, a key of qwen's": ("mistral", {"rope_theta": 1e4, "use_sliding_window": False}),
    "phi3, types of layers": ("phi3", {"sliding_window": 7, "layer_types": MIXED}),
    "smollm3, types alone": ("smollm3", {"sliding_window": 7, "use_sliding_window": False, "layer_types": MIXED}),
    "olmo2, types of layers": ("olmo2", {"rope_theta": 1e4, "sliding_window": 7, "layer_types": MIXED}),
    "olmo3, a key of gemma's": ("olmo3", {"sliding_window_pattern": 2}),
    "qwen2, a key of llama's": ("qwen2", {"attention_bias": True, "hidden_act": "swish"}),
}


@pytest.mark.parametrize("name", ODD)
def test_an_old_or_odd_file_is_what_transformers_reads_in_it(name, tokenizer, tmp_path):
    import transformers

    case, keys = ODD[name]
    random_class(case).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    contents = json.loads(file.read_text())
    for key in ("rope_parameters", "layer_types"):
        contents.pop(key, None)
    file.write_text(json.dumps(contents | keys))
    tokenizer.save(tmp_path / "tokenizer.json")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    imported = read_hf(tmp_path)
    model = Transformer(imported.config).eval()
    model.load_state_dict(imported.state)
    row = torch.randint(1, 330, (1, 60), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(model.compute_logits(model(row)), other(row).logits, rtol=1e-4, atol=1e-4)


def test_ntk_is_the_dynamic_type_of_transformers_at_one_length(tokenizer, tmp_path):
    """Theirs depends on the text's length, so it is not read; at the longest length both are the same."""
    import transformers

    kind, keys = CASES["llama"]
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1.0}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**keys, "max_position_embeddings": 24, "rope_parameters": rope})
    other = transformers.AutoModelForCausalLM.from_config(config).eval()
    other.save_pretrained(tmp_path)
    contents = {**config.to_dict(), "rope_parameters": PLAIN, "max_position_embeddings": 48}
    config_here = replace(from_hf_config(contents), rope_type="ntk", rope_factor=2.0)
    model = Transformer(config_here).eval()
    other.config.rope_parameters = PLAIN
    other.save_pretrained(tmp_path / "plain")
    tokenizer.save(tmp_path / "plain" / "tokenizer.json")
    model.load_state_dict(read_hf(tmp_path / "plain").state)
    row = torch.randint(1, 330, (1, 48), generator=torch.Generator().manual_seed(2))
    other.config.rope_parameters = rope
    with torch.inference_mode():
        torch.testing.assert_close(model.compute_logits(model(row)), other(row).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "olmo3"])
def test_a_directory_in_shards_tied_in_bfloat16_with_byte_order_marks_is_the_same_model(name, tokenizer, tmp_path):
    import transformers

    kind, keys = CASES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**keys, "tie_word_embeddings": name != "olmo3"})
    other = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().bfloat16()
    other.save_pretrained(tmp_path, max_shard_size="40KB")
    tokenizer.save(tmp_path / "tokenizer.json")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype="float32")
    for file in tmp_path.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    imported = read_hf(tmp_path)
    model = Transformer(imported.config).eval()
    model.load_state_dict(imported.state)
    assert imported.config.tie_embeddings == (name != "olmo3")
    row = torch.randint(1, 330, (1, 40), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = whole(row).logits
        torch.testing.assert_close(model.compute_logits(model(row)), expected, rtol=1e-4, atol=1e-4)
