"""GGUF files by the format's own package; llama.cpp reads them in test_llama_cpp.py."""

import pytest
import torch

from fledgling.export import gguf

reader = pytest.importorskip("gguf")


@pytest.fixture
def model(make):
    return make("llama", kv_heads=2, depth=2)


@pytest.mark.parametrize(("kind", "error"), [("f32", 0.0), ("f16", 1e-3), ("q8_0", 1e-2), ("q4_0", 0.2)])
def test_weights_round_trip_within_the_error_of_their_type(kind, error, model, tokenizer, tmp_path):
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, kind, "m")
    state = gguf.read_gguf_state(path, model.config)
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        off = (state[name] - tensor).abs().max() / tensor.abs().max()
        assert off <= error, name
        if tensor.ndim == 1:
            assert torch.equal(state[name], tensor)
    if kind != "f32":
        assert any(not torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_file_has_the_metadata_of_llama_cpp(model, tokenizer, tmp_path):
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "q4_0", "m")
    file = reader.GGUFReader(path)
    printed = {name: field.contents() for name, field in file.fields.items()}
    assert printed["general.architecture"] == "llama"
    assert (printed["llama.attention.head_count"], printed["llama.attention.head_count_kv"]) == (4, 2)
    assert (printed["llama.block_count"], printed["llama.feed_forward_length"]) == (2, model.config.intermediate_size)
    assert printed["tokenizer.ggml.pre"] == "qwen2"
    tokens, kinds = printed["tokenizer.ggml.tokens"], printed["tokenizer.ggml.token_type"]
    assert len(tokens) == 330 and tokens[tokenizer.bos] == "<|bos|>" and kinds[tokenizer.bos] == 3
    assert kinds[0] == 1 and printed["tokenizer.ggml.eos_token_id"] == tokenizer.assistant_end
    assert "'_start|>'" in printed["tokenizer.chat_template"]
    kept = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert kept["blk.0.attn_q.weight"] == "Q4_0" and kept["output.weight"] == "Q8_0"
    assert kept["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("name", ["phi3", "My-Phi-3-mini"])
def test_a_name_in_which_llama_cpp_looks_for_tokens_of_phi_3_is_spelled_otherwise(name, model, tokenizer, tmp_path):
    """llama.cpp trims spaces after `</s>` where general.name says phi3, and fails where there is no such token."""
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f32", name)
    written = reader.GGUFReader(path).fields["general.name"].contents()
    assert written.lower().replace("phi_3", "phi3") == name.lower().replace("phi-3", "phi3") != written.lower()
