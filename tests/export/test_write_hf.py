"""Tests that exports load in transformers' own classes with the same numbers, and import bit for bit."""

import json

import pytest
import torch

from fledgling.config import UserError
from fledgling.export import parity, write_hf
from fledgling.export.read_hf import read_hf
from fledgling.model.config import FAMILIES
from fledgling.model.flash_norm import fold_norm_weights
from fledgling.text.conversation import render_conversation, render_prompt

SHAPES = [  # family and what differs from a plain small model
    ("fledgling", {}),
    ("fledgling", {"kv_heads": 2, "context": 300, "tie_embeddings": True}),
    ("fledgling", {"kv_heads": 1, "width": 96, "logit_softcap": 0.0, "activation": "gelu"}),
    ("llama", {}),
    ("llama", {"kv_heads": 2, "tie_embeddings": True, "intermediate_size": 200, "rope_base": 50_000.0}),
    ("llama", {"kv_heads": 1, "width": 96, "bias": True, "context": 1100}),  # beyond what blockwise attention reads
    ("gpt2", {}),
    ("gpt2", {"heads": 2, "kv_heads": 2, "width": 96, "intermediate_size": 100, "context": 300}),
    ("gpt2", {"tie_embeddings": False, "depth": 1}),
]


@pytest.mark.parametrize(("family", "fields"), SHAPES)
def test_transformers_computes_the_same_logits_and_text(family, fields, make, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make(family, **{"context": 256, **fields})
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    theirs.eval()
    context = model.config.context
    tokens = torch.randint(330, (2, context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(tokens).logits - model.compute_logits(model(tokens))).abs().max() < 1e-5
    prompt = tokens[:1, :8]
    written = parity.generate_greedy(model, prompt[0].tolist(), 200)
    generated = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=False, eos_token_id=None
    )
    assert generated[0, 8:].tolist() == written


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_nothing(family, make, tokenizer, tmp_path):
    """A batch padded on the left, as generation requires it, agrees with each row computed alone."""
    transformers = pytest.importorskip("transformers")
    model = make(family)
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    rows = [torch.arange(5, 17), torch.arange(40, 47)]
    padded = torch.zeros(2, 12, dtype=torch.int64)
    seen = torch.zeros(2, 12, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, -len(row) :], seen[index, -len(row) :] = row, 1
    places = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = theirs(padded, attention_mask=seen, position_ids=places).logits
        for index, row in enumerate(rows):
            ours = model.compute_logits(model(row[None]))[0]
            assert (logits[index, -len(row) :] - ours).abs().max() < 1e-5


@pytest.mark.parametrize(("family", "fields"), SHAPES)
def test_export_and_import_are_bit_exact(family, fields, make, tokenizer, tmp_path):
    model = make(family, **fields)
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    back = read_hf(out)
    assert back.config == model.config
    assert back.tokenizer.fingerprint() == tokenizer.fingerprint()
    state = model.state_dict()
    assert back.state.keys() == state.keys()
    assert all(torch.equal(back.state[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_large_weights_are_split_into_shards(family, make, tokenizer, tmp_path):
    model = make(family)
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card", shard_bytes=100_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    assert not (out / "model.safetensors").exists()
    back = read_hf(out)
    assert all(torch.equal(back.state[name], tensor) for name, tensor in model.state_dict().items())
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        assert (theirs(tokens).logits - model.compute_logits(model(tokens))).abs().max() < 1e-5


def test_weights_are_stored_in_the_requested_half_precision(make, tokenizer, tmp_path):
    model = make("llama")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card", "bfloat16")
    back = read_hf(out)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state[name], tensor.bfloat16().float()), name
    rows = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert rows[0].max_difference > 1e-4


CONVERSATIONS = [
    [{"role": "user", "content": "  the fox? "}],
    [
        {"role": "system", "content": "again\n"},
        {"role": "user", "content": "the dog"},
        {"role": "assistant", "content": "the\n\nlazy dog "},
        {"role": "user", "content": [{"type": "text", "text": "12 "}, {"type": "text", "text": "times"}]},
    ],
]
ANSWER = {
    "role": "assistant",
    "content": [
        {"type": "text", "text": "jumps "},
        {"type": "python", "text": "1+2"},
        {"type": "output", "text": "3"},
        {"type": "text", "text": " over"},
    ],
}


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_template_matches_our_conversation_format(messages, make, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = make("llama")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    said = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert said == render_prompt(tokenizer, {"messages": messages})
    whole = [*messages, ANSWER]
    assert (
        theirs.apply_chat_template(whole)["input_ids"]
        == render_conversation(tokenizer, {"messages": whole}).tokens.tolist()
    )
    assert theirs.eos_token_id == tokenizer.assistant_end and theirs.bos_token_id == tokenizer.bos
    assert theirs.model_max_length == 128


def test_a_model_without_a_transformers_class_is_refused_by_setting(make, tokenizer, tmp_path):
    for family, fields, word in (
        ("llama", {"qk_norm": True}, "qk_norm"),
        ("llama", {"logit_softcap": 15.0}, "logit_softcap"),
        ("fledgling", {"activation": "swiglu"}, "swiglu"),
        ("gpt2", {"kv_heads": 2}, "key/value heads"),
    ):
        model = make(family, **fields)
        with pytest.raises(UserError, match=word):
            write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fields",
    [{"value_embeddings": 1}, {"window_pattern": "SL"}, {"residual_scalars": True}],
    ids=lambda fields: next(iter(fields)),
)
def test_optional_features_are_refused_by_name(fields, make, tokenizer, tmp_path):
    model = make("fledgling", **fields)
    with pytest.raises(UserError, match=next(iter(fields))):
        write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    assert list(tmp_path.iterdir()) == []


def test_folded_and_deferred_norms_export_the_same_model(make, tokenizer, tmp_path):
    model = make("llama", flash_norm=True)
    folded = fold_norm_weights(model.config, model.state_dict())
    out = write_hf.write_hf(tmp_path / "out", model.config, folded, tokenizer, "card")
    assert all((w == 1).all() for name, w in read_hf(out).state.items() if name.endswith("norm.weight"))
    rows = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert all(row.max_difference < 1e-4 and row.greedy_matches == row.greedy_tokens for row in rows)


def test_an_existing_directory_is_not_overwritten(make, tokenizer, tmp_path):
    model = make("gpt2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty directory"):
        write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_parity_detects_a_changed_weight(make, tokenizer, tmp_path):
    model = make("fledgling")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    rows = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert rows[0].max_difference == 0 and rows[0].greedy_matches == rows[0].greedy_tokens == 120
    assert all(row.max_difference < 1e-5 and row.greedy_matches == row.greedy_tokens for row in rows)
    with torch.no_grad():
        model.head.weight.copy_(model.head.weight.roll(1, 0))
    changed = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert all(row.max_difference > 0.1 and row.greedy_matches < row.greedy_tokens for row in changed)
