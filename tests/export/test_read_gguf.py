"""GGUF files come in: the function of the model that was written, its tokenizer, and one line for what is corrupt."""

import struct
import tracemalloc

import gguf
import pytest
import torch

from fledgling.config import UserError
from fledgling.export.gguf_architectures import BY_NAME
from fledgling.export.gguf_mapping import list_tensors, to_gguf_tensor
from fledgling.export.import_hf import read_model
from fledgling.model.transformer import Transformer
from tests.export.test_open_classes import random_class

TYPES = gguf.GGMLQuantizationType


def write(path, arch, config, tensors, tokenizer, kind=TYPES.F32, **changes):
    """Writes a file as other programs do; changes replace values (None leaves one out)."""
    model = tokenizer.tokenizer_json["model"]
    writer = gguf.GGUFWriter(path, arch)
    values = {
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.depth,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_width,
        **changes,
    }
    for name, value in values.items():
        if value is not None:
            writer.add_uint32(f"{arch}.{name}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", config.rope_base)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    names = {index: token for token, index in [*model["vocab"].items(), *tokenizer.special_tokens.items()]}
    writer.add_token_list([names[index] for index in range(config.vocab_size)])
    writer.add_token_types([3 if names[index] in tokenizer.special_tokens else 1 for index in range(config.vocab_size)])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    for name, tensor in tensors.items():
        matrix = kind if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else TYPES.F32
        writer.add_tensor(name, gguf.quantize(tensor.contiguous().numpy(), matrix), raw_dtype=matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(model, arch):
    """The tensors of a file of that architecture."""
    architecture = BY_NAME[arch]
    entries = list_tensors(model.config, architecture)
    return {entry.name: to_gguf_tensor(entry, model.state_dict(), model.config, architecture) for entry in entries}


@pytest.mark.parametrize(
    ("arch", "kind", "error"),
    [("llama", TYPES.F32, 1e-5), ("llama", TYPES.Q8_0, 0.3), ("llama", TYPES.F16, 0.02), ("qwen2", TYPES.F32, 1e-5)],
)
def test_a_file_computes_what_its_model_computes(make, tokenizer, tmp_path, arch, kind, error):
    model = make(arch, depth=2, kv_heads=2, tie_embeddings=arch == "qwen2")
    path = write(tmp_path / "m.gguf", arch, model.config, tensors_of(model, arch), tokenizer, kind)
    found = read_model(path)
    again = Transformer(found.config)
    again.load_state_dict(found.state)
    row = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert (again.compute_logits(again(row)) - model.compute_logits(model(row))).abs().max() < error
    assert found.tokenizer.encode("the fox 12") == tokenizer.encode("the fox 12")
    assert found.tokenizer.special_tokens == tokenizer.special_tokens


def test_qwen3_and_its_norms_come_in(tokenizer, tmp_path):
    from fledgling.export.read_hf import read_hf

    random_class("qwen3").save_pretrained(tmp_path / "hf")
    tokenizer.save(tmp_path / "hf" / "tokenizer.json")
    source = read_hf(tmp_path / "hf")
    model = Transformer(source.config)
    model.load_state_dict(source.state)
    found = read_model(write(tmp_path / "m.gguf", "qwen3", source.config, tensors_of(model, "qwen3"), tokenizer))
    assert all(torch.allclose(found.state[name], value) for name, value in source.state.items())
    assert found.config.head_dim == 16 and found.config.qk_norm_weights == "head"


HOSTILE = [
    ({"block_count": 4_000_000}, "block_count"),
    ({"block_count": 4000}, "4000 layers"),
    ({"embedding_length": None}, "embedding_length"),
    ({"embedding_length": 128}, "shape"),
    ({"attention.head_count": 0}, "head_count"),
    ({"expert_count": 8}, "expert_count"),
    ({"context_length": 2**31}, "context_length"),
]


@pytest.mark.parametrize(("changes", "word"), HOSTILE)
def test_a_header_that_lies_is_one_line(make, tokenizer, tmp_path, changes, word):
    model = make("llama", depth=1)
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors_of(model, "llama"), tokenizer, **changes)
    with pytest.raises(UserError, match=word) as error:
        read_model(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_tensor_that_is_not_finite_is_named_with_its_file(make, tokenizer, tmp_path):
    model = make("llama", depth=1)
    tensors = tensors_of(model, "llama")
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"].clone().fill_(7e4)  # more than F16 holds
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors, tokenizer, TYPES.F16)
    with pytest.raises(UserError, match=r"m\.gguf: tensor blk\.0\.ffn_up\.weight has .* NaN or infinite"):
        read_model(path)


def test_a_torn_file_and_another_architecture_are_one_line(make, tokenizer, tmp_path):
    model = make("llama", depth=1)
    path = write(tmp_path / "m.gguf", "llama", model.config, tensors_of(model, "llama"), tokenizer)
    whole = path.read_bytes()
    for corrupt in (
        whole[: len(whole) // 2],
        whole[:20],
        b"GGUF" + b"\xff" * 60,
        b"",
        whole[:8] + b"\xff" * 16 + whole[24:],
    ):
        path.write_bytes(corrupt)
        with pytest.raises(UserError) as error:
            read_model(path)
        assert "\n" not in str(error.value)
    other = write(tmp_path / "o.gguf", "mamba", model.config, {}, tokenizer)
    with pytest.raises(UserError, match="architecture is 'mamba'"):
        read_model(other)


def field(kind, body, name=b"a"):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + body


def header(fields=b"", count=1, tensors=0):
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + fields


def array(kind, count):
    return struct.pack("<IQ", kind, count)


ABSURD = {
    "bytes": header(field(9, array(0, 1 << 40))),
    "numbers": header(field(9, array(10, (1 << 61) + 1))),
    "texts": header(field(9, array(8, 1 << 22))),
    "empty texts": header(field(9, array(8, 1 << 30) + bytes(8 << 10))),
    "a long text": header(field(8, struct.pack("<Q", 1 << 62))),
    "a long name": header(struct.pack("<Q", 1 << 63)),
    "nested": header(field(9, array(9, 1) * 5000)),
    "empty arrays": header(field(9, array(9, 1 << 22) + array(9, 0) * 900)),
    "values": header(count=1 << 62),
    "tensors": header(count=0, tensors=1 << 62),
    "dimensions": header(struct.pack("<Q", 1) + b"a" + struct.pack("<I", 1 << 31), count=0, tensors=1),
    "an unknown type": header(field(99, b"")),
    "another file": b"PK" + bytes(99),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_counts_end_in_one_line_and_bounded_memory(name, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(ABSURD[name])
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="not a readable GGUF file") as error:
            read_model(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and peak < 4 << 20
