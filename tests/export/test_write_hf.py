"""Tests that exports load in transformers' own classes with the same numbers, and import bit for bit."""

import json

import pytest
import torch

from fledgling.config import UserError
from fledgling.config.model import FAMILIES
from fledgling.export import parity, write_hf
from fledgling.export.read_hf import read_hf

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
    reference_3, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    reference_3.eval()
    context = model.config.context
    tokens = torch.randint(330, (2, context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (reference_3(tokens).logits - model.compute_logits(model(tokens))).abs().max() < 1e-5
    prompt = tokens[:1, :8]
    written = parity.generate_greedy(model, prompt[0].tolist(), 200)
    generated = reference_3.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=200, do_sample=False, eos_token_id=None
    )
    assert generated[0, 8:].tolist() == written


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_nothing(family, make, tokenizer, tmp_path):
    """A batch padded on the left, as generation requires it, agrees with each row computed alone."""
    transformers = pytest.importorskip("transformers")
    model = make(family)
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    reference = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    rows = [torch.arange(5, 17), torch.arange(40, 47)]
    padded = torch.zeros(2, 12, dtype=torch.int64)
    seen = torch.zeros(2, 12, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, -len(row) :], seen[index, -len(row) :] = row, 1
    places = (seen.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = reference(padded, attention_mask=seen, position_ids=places).logits
        for index, row in enumerate(rows):
            computed = model.compute_logits(model(row[None]))[0]
            assert (logits[index, -len(row) :] - computed).abs().max() < 1e-5


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
    reference_value = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        assert (reference_value(tokens).logits - model.compute_logits(model(tokens))).abs().max() < 1e-5


def test_weights_are_stored_in_the_requested_half_precision(make, tokenizer, tmp_path):
    model = make("llama")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card", "bfloat16")
    back = read_hf(out)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state[name], tensor.bfloat16().float()), name
    rows = list(parity.compare_hf(model, out, tokenizer.bos_or_none))
    assert rows[0].max_difference > 1e-4


def test_an_existing_directory_is_not_overwritten(make, tokenizer, tmp_path):
    model = make("gpt2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty directory"):
        write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
