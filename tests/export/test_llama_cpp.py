"""llama.cpp itself reads what is written: logits, a hundred greedy tokens, tokens of a text, perplexity, K-quants."""

import gguf as package
import numpy as np
import pytest
import torch

from fledgling.config import ModelConfig, UserError
from fledgling.export import ggml_quantize, gguf, parity
from fledgling.export.gguf_architectures import ARCHITECTURES, choose_architecture
from fledgling.export.gguf_types import BLOCK, FILE_TYPES, choose_type
from fledgling.export.gguf_vocabulary import pre_tokenizer_name
from fledgling.export.import_hf import read_model
from fledgling.export.importance import measure_importance
from fledgling.export.llama_cpp import LlamaCpp, load_llama_library
from fledgling.export.read_hf import read_hf
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer
from tests.export.conftest import TEXT, random_model
from tests.export.test_gguf_mapping import MODELS
from tests.export.test_open_classes import CASES, SIZES, YARN, random_class
from tests.text.test_sentence_piece import build

pytest.importorskip("xllamacpp", reason='xllamacpp is not installed: pip install "fledgling[llama-cpp]"')
GREEDY = 100  # tokens
TABLE_OF_GELU = 5e-3  # llama.cpp looks GELU up in 16 bits
CLASSES = {  # of transformers, as far as llama.cpp has them: it has no windows in Mistral and Qwen
    **{name: case for name, case in CASES.items() if name.split(",")[0] in ("llama", "phi3", "qwen3", "olmo2")},
    "llama with wide heads": CASES["llama with wide heads"],
    "llama, yarn of another strength": (
        "LlamaConfig",
        {**SIZES, "rope_parameters": {**YARN, "attention_factor": 1.3, "beta_fast": 20.0}},
    ),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": None}),
    "qwen2": ("Qwen2Config", SIZES),
    "smollm3": ("SmolLM3Config", {**SIZES, "num_hidden_layers": 5}),
    "olmo3": ("Olmo3Config", {**SIZES, "sliding_window": 7, "num_hidden_layers": 5}),
    "olmo3, yarn": ("Olmo3Config", {**CASES["olmo3"][1], "num_hidden_layers": 5}),
    "gemma3": ("Gemma3TextConfig", {**CASES["gemma3"][1], "num_hidden_layers": 7, "sliding_window_pattern": 6}),
    "gpt_neox": CASES["gpt_neox"],
    "gpt_neox, in sequence": CASES["gpt_neox, in sequence"],
}


def compare(model, path, tolerance):
    """Greedy tokens of ours, chosen by llama.cpp at every position; a token that differs must be a tie."""
    with LlamaCpp(path) as other:
        vocabulary = model.config.vocab_size
        found = parity.compare_logits(model, lambda tokens: other.compute_logits(tokens, vocabulary), "llama.cpp")
    assert found.max_difference < tolerance
    assert found.greedy_tokens >= GREEDY and found.greedy_matches + found.greedy_ties == found.greedy_tokens
    return found


@pytest.mark.parametrize("case", MODELS)
def test_llama_cpp_writes_the_same_hundred_tokens(case, make, tokenizer, tmp_path):
    family, fields = MODELS[case]
    model = make(family, **fields)
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f32", "m")
    found = compare(model, path, TABLE_OF_GELU if family == "gpt2" else 1e-4)
    assert found.greedy_matches == found.greedy_tokens >= GREEDY or family == "gpt2"


@pytest.mark.parametrize("name", CLASSES)
def test_an_open_class_runs_in_llama_cpp_and_comes_back(name, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(CASES, name, CLASSES[name])
    random_class(name).save_pretrained(tmp_path / "hf")
    tokenizer.save(tmp_path / "hf" / "tokenizer.json")
    source = read_hf(tmp_path / "hf")
    model = Transformer(source.config).eval()
    model.load_state_dict(source.state)
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f32", "m")
    compare(model, path, TABLE_OF_GELU if name.startswith(("gpt_neox", "gemma3")) else 1e-4)
    again = read_model(path)
    other = Transformer(again.config).eval()
    other.load_state_dict(again.state)
    row = torch.randint(330, (1, 90), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(other.compute_logits(other(row)), model.compute_logits(model(row)))


def test_every_architecture_has_a_case():
    names = {case.split(",")[0] for case in MODELS}
    for kind in CLASSES:
        names |= {"gptneox" if kind.startswith("gpt_neox") else kind.split(",")[0]}
    assert {architecture.name for architecture in ARCHITECTURES} <= names


@pytest.mark.parametrize("digits", [1, 3])
def test_llama_cpp_tokenizes_identically(digits, make, tmp_path):
    tokenizer = Tokenizer.train(TEXT, 330, max_digits=digits)
    model = make("llama")
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f16", "m")
    with LlamaCpp(path) as other:
        for text in ("the quick 12345 foxes", " don't  stop\n\n\tnow", "naïve 서울 ½ ..."):
            assert other.tokenize(text, False) == tokenizer.encode(text)
        ids = other.tokenize("<|user_start|>the fox<|user_end|>", True)
    assert ids == [tokenizer.user_start, *tokenizer.encode("the fox"), tokenizer.user_end]


@pytest.mark.parametrize("kind", ["llama2", "gemma"])
def test_a_tokenizer_of_sentence_piece_is_the_same_in_llama_cpp(kind, make, tmp_path):
    tokenizer = Tokenizer(build(kind))
    model = make("llama", vocab_size=tokenizer.vocab_size)
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f16", "m")
    with LlamaCpp(path) as other:
        for text in ("the fox", "the lazy dog again", "über\n\ndas 😀", "a"):
            assert other.tokenize(text, False) == tokenizer.encode(text), text
    again = read_model(path).tokenizer
    assert again.encode("über the fox 12") == tokenizer.encode("über the fox 12")


def test_a_tokenizer_without_a_name_in_llama_cpp_is_rejected(tokenizer, make, tmp_path):
    assert pre_tokenizer_name(tokenizer) == "qwen2"
    assert pre_tokenizer_name(Tokenizer.train(TEXT, 330, max_digits=3)) == "dbrx"
    with pytest.raises(UserError, match="groups of 2"):
        pre_tokenizer_name(Tokenizer.train(TEXT, 330, max_digits=2))
    model, unigram = make("llama"), Tokenizer(build("unigram"))
    with pytest.raises(UserError, match="Unigram"):
        gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), unigram, "f32", "m")


@pytest.fixture(scope="module")
def confident(tokenizer):
    """A model with rows of 256 values, surer of itself than random weights are, and a text of its own."""
    config = ModelConfig(330, 2, 256, 4, context=128, family="llama", intermediate_size=512)
    model = random_model(config, scale=0.02)
    with torch.no_grad():
        model.head.weight *= 5
    return model, [tokenizer.bos, *sample_text(model, tokenizer.bos, 100, torch.Generator().manual_seed(3))]


def nats(logits, text):
    """The mean over the tokens after the first."""
    return -logits[:-1].log_softmax(-1).gather(1, torch.tensor(text[1:])[:, None]).mean()


@torch.inference_mode()
def sample_text(model, start, count, generator):
    """Tokens sampled from the model."""
    text = [start]
    for _ in range(count):
        logits = model.compute_logits(model(torch.tensor([text])))[0, -1]
        text.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
    return text[1:]


LIMITS = {"f32": 1e-5, "bf16": 5e-3, "f16": 1e-3, "q8_0": 5e-3, "q6_k": 0.05, "q5_k_m": 0.1, "q4_k_m": 0.2}
LIMITS |= {"q4_0": 0.4, "iq4_xs": 0.3, "q3_k_m": 0.8, "q2_k": 5.0}


def test_perplexity_in_llama_cpp_is_within_the_error_of_each_type(confident, tokenizer, tmp_path):
    model, text = confident
    assert load_llama_library() is not None, "this xllamacpp has another layout: declare it again in llama_cpp.py"
    with torch.inference_mode():
        expected = nats(model.compute_logits(model(torch.tensor([text])))[0], text).exp()
    assert 1.5 < expected < 200 and LIMITS.keys() == FILE_TYPES.keys()
    sizes = {}
    for kind, limit in LIMITS.items():
        path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, kind, "m")
        with LlamaCpp(path) as other:
            found = nats(other.compute_logits(text, 330), text).exp()
        assert abs(found / expected - 1) < limit, kind
        sizes[kind] = path.stat().st_size
    order = ["f32", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"]
    assert sorted(order, key=lambda kind: -sizes[kind]) == order


def test_importance_lowers_the_error_of_what_the_model_reads(confident, tokenizer, tmp_path):
    model, text = confident
    importance = measure_importance(model, [text])
    assert importance["blocks.0.mlp.down_proj.weight"].shape == (model.config.intermediate_size,)
    matrices = {name for name, value in model.state_dict().items() if value.ndim == 2}
    assert importance.keys() == matrices - {"embedding.weight"}
    weights = model.state_dict()["blocks.1.mlp.down_proj.weight"].numpy()
    weight = importance["blocks.1.mlp.down_proj.weight"].numpy()
    number = package.GGMLQuantizationType.Q2_K
    errors = []
    for given in (None, weight):
        stored = ggml_quantize.ggml_quantize(weights, number, given)
        errors.append(((package.dequantize(stored, number) - weights) ** 2 * weight).sum())
    assert errors[1] < errors[0]
    path = gguf.write_gguf(tmp_path / "i.gguf", model.config, model.state_dict(), tokenizer, "q2_k", "m", importance)
    with LlamaCpp(path) as other:
        assert torch.isfinite(other.compute_logits(text, 330)).all()


def test_rows_that_are_no_whole_blocks_have_a_narrower_type():
    assert choose_type("q4_k_m", "blk.0.ffn_up.weight", (64, 512), 4) == "Q4_K"
    assert choose_type("q4_k_m", "blk.0.ffn_up.weight", (64, 96), 4) == "Q5_0"
    assert choose_type("q4_k_m", "blk.0.ffn_up.weight", (64, 90), 4) == "F16"
    assert choose_type("q4_k_m", "blk.3.ffn_down.weight", (64, 512), 4) == "Q6_K"
    assert choose_type("q4_k_m", "output.weight", (64, 512), 4) == "Q6_K"
    assert choose_type("q4_k_m", "blk.0.attn_norm.weight", (64,), 4) == "F32"
    assert all(BLOCK.get(entry.matrices, 256) for entry in FILE_TYPES.values())


def test_weights_that_are_not_finite_and_a_missing_package_are_one_line(make, monkeypatch, tmp_path):
    broken = np.full((2, 256), np.nan, np.float32)
    with pytest.raises(UserError, match="not all finite"):
        ggml_quantize.ggml_quantize(broken, package.GGMLQuantizationType.Q4_K, None)
    with pytest.raises(UserError, match="importance"):
        ggml_quantize.ggml_quantize(np.zeros((2, 256), np.float32), package.GGMLQuantizationType.IQ2_XS, None)
    ggml_quantize.load_ggml.cache_clear()
    monkeypatch.setattr(ggml_quantize, "find_spec", lambda name: None)
    model = make("llama")
    with pytest.raises(UserError, match="llama-cpp"):
        gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), None, "q4_k_m", "m")
    assert not list(tmp_path.iterdir()) and choose_architecture(model.config).name == "llama"
    ggml_quantize.load_ggml.cache_clear()
