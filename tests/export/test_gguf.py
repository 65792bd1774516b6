"""Tests GGUF files with the format's own package, and with llama.cpp where it is installed."""

import pytest
import torch

from fledgling.config import UserError
from fledgling.export import gguf, parity
from fledgling.text.tokenizer import Tokenizer
from tests.export.conftest import TEXT

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
    assert "<|user_start|>" in printed["tokenizer.chat_template"]
    kept = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    assert kept["blk.0.attn_q.weight"] == "Q4_0" and kept["output.weight"] == "Q8_0"
    assert kept["blk.0.attn_norm.weight"] == "F32"


def test_a_pre_tokenizer_without_a_name_in_llama_cpp_is_refused(tokenizer):
    assert gguf.pre_tokenizer_name(tokenizer) == "qwen2"
    assert gguf.pre_tokenizer_name(Tokenizer.train(TEXT, 330, max_digits=3)) == "dbrx"
    with pytest.raises(UserError, match="groups of 2"):
        gguf.pre_tokenizer_name(Tokenizer.train(TEXT, 330, max_digits=2))


@pytest.mark.parametrize(("kind", "error"), [("f32", 1e-3), ("f16", 1e-2)])
@pytest.mark.parametrize("fields", [{"kv_heads": 2}, {"tie_embeddings": True, "rope_base": 50_000.0}])
def test_llama_cpp_generates_the_same_continuation(kind, error, fields, make, tokenizer, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = make("llama", **fields)
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, kind, "m")
    *_, judged = parity.compare_gguf(model, path, tokenizer.bos)
    assert judged.reference.startswith("llama.cpp")
    assert judged.max_difference < error and judged.greedy_matches >= judged.greedy_tokens - (kind == "f16")


@pytest.mark.parametrize("digits", [1, 3])
def test_llama_cpp_tokenizes_identically(digits, make, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tokenizer = Tokenizer.train(TEXT, 330, max_digits=digits)
    model = make("llama")
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f16", "m")
    reference_value = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in ("the quick 12345 foxes", " don't  stop\n\n\tnow", "naïve 서울 ½ ..."):
        assert reference_value.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text)
    ids = reference_value.tokenize(b"<|user_start|>the fox<|user_end|>", add_bos=False, special=True)
    assert ids == [tokenizer.user_start, *tokenizer.encode("the fox"), tokenizer.user_end]


@pytest.mark.parametrize(("kind", "error"), [("f16", 5e-4), ("q8_0", 5e-3)])
def test_llama_cpp_has_the_same_perplexity_and_continuation(kind, error, make, tokenizer, tmp_path):
    """Perplexity of a text that the model generated, and 100 greedy tokens after a prompt."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = make("llama", context=256)
    with torch.no_grad():
        model.head.weight *= 2  # surer of itself than a random model is, so that weights matter
    text = [tokenizer.bos, *sample_text(model, tokenizer.bos, 200, torch.Generator().manual_seed(3))]
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, kind, "m")
    reader = llama_cpp.Llama(str(path), n_ctx=256, n_batch=256, logits_all=True, verbose=False)
    reader.eval(text)
    with torch.inference_mode():
        computed = model.compute_logits(model(torch.tensor([text])))[0]
    perplexity = [nats(torch.tensor(reader.scores[: len(text)]), text).exp(), nats(computed, text).exp()]
    assert 1.5 < perplexity[1] < 200 and abs(perplexity[0] / perplexity[1] - 1) < error
    greedy = parity.generate_greedy(model, text[:8], 100)
    reader.reset()
    reader.eval(text[:8] + greedy)
    chosen = torch.tensor(reader.scores[7:107]).argmax(-1).tolist()
    agreed = sum(a == b for a, b in zip(chosen, greedy, strict=True))
    assert agreed == 100 if kind == "f16" else agreed >= 85  # random weights are full of near ties


def nats(logits: torch.Tensor, text: list[int]) -> torch.Tensor:
    """Returns the mean over the tokens after the first."""
    return -logits[:-1].log_softmax(-1).gather(1, torch.tensor(text[1:])[:, None]).mean()


@torch.inference_mode()
def sample_text(model, start: int, count: int, generator: torch.Generator) -> list[int]:
    """Returns tokens sampled from the model."""
    text = [start]
    for _ in range(count):
        logits = model.compute_logits(model(torch.tensor([text])))[0, -1]
        text.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
    return text[1:]
