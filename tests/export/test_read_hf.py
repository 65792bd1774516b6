"""Tests that invalid directories are rejected in one line that names the file, the key or the tensor."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from fledgling.config import UserError
from fledgling.export import write_hf
from fledgling.export.read_hf import read_hf
from fledgling.text.bpe import byte_alphabet


@pytest.fixture
def directory(make, tokenizer, tmp_path):
    model = make("llama", depth=2)
    return write_hf.write_hf(tmp_path / "model", model.config, model.state_dict(), tokenizer, "card")


def assert_rejected(directory, *words) -> None:
    with pytest.raises(UserError) as error:
        read_hf(directory)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), str(error.value)


def change(directory, **keys) -> None:
    file = directory / "config.json"
    printed = json.loads(file.read_text()) | keys
    file.write_text(json.dumps(printed))


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"hidden_size": 128, "head_dim": 32}, "lm_head.weight"),
        ({"vocab_size": 331}, "lm_head.weight"),
        ({"num_hidden_layers": 3}, "model.layers.2."),
        ({"num_hidden_layers": 1}, "model.layers.1."),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({"num_hidden_layers": 4000}, "4000 layers"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_attention_heads": 3}, "heads"),
        ({"num_attention_heads": 10**12}, "at most 1048576"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"hidden_act": ["silu"]}, "activation"),
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_scaling"),
        ({"head_dim": 32}, "implies [128, 64]"),
        ({"attention_bias": True}, "proj.bias is missing"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"tie_word_embeddings": True}, "lm_head.weight"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_an_unsupported_configuration_is_rejected(directory, keys, word):
    change(directory, **keys)
    assert_rejected(directory, word)


def rewrite(directory, edit, metadata=None) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata=metadata)


def test_tensors_that_are_missing_unexpected_or_invalid_are_named(directory):
    name = "model.layers.1.mlp.up_proj.weight"
    good = load_file(directory / "model.safetensors")[name]
    rewrite(directory, lambda t: t.pop(name))
    assert_rejected(directory, name, "missing")
    rewrite(directory, lambda t: t.update({name: good.T.contiguous()}))
    assert_rejected(directory, name, "shape")
    rewrite(directory, lambda t: t.update({name: good.to(torch.int8)}))
    assert_rejected(directory, name, "int8")
    rewrite(directory, lambda t: t.update({name: good, "model.layers.1.mlp.extra": good.clone()}))
    assert_rejected(directory, "model.layers.1.mlp.extra", "left over")


def test_a_pickle_is_never_read(directory):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was run')",))

    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    assert_rejected(directory, "pytorch_model.bin", "pickle")
    (directory / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    assert_rejected(directory, "weights cannot be read")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 80) + b'{"model.norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,10000000000]}}',
    ],
)
def test_hostile_headers_are_rejected(directory, content):
    (directory / "model.safetensors").write_bytes(content)
    assert_rejected(directory, "model.safetensors: weights cannot be read")


@pytest.mark.parametrize(
    ("shape", "offsets", "kind"),
    [
        ([64], [0, 10**10], "F32"),
        ([65], [0, 256], "F32"),
        ([2**62, 8], [0, 256], "F32"),
        ([-64], [0, 256], "F32"),
        ([64], [256, 0], "F32"),
        ([64], [8, 264], "F32"),
        ([64], [0, 256], "OBJECT"),
    ],
)
def test_an_impossible_tensor_header_is_rejected_by_name(directory, shape, offsets, kind):
    """In a shard, so that the index and all other tensors are valid."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    last = tensors.pop("model.norm.weight")
    save_file(tensors, directory / "a.safetensors")
    entries = {"model.norm.weight": {"dtype": kind, "shape": shape, "data_offsets": offsets}}
    header = json.dumps(entries).encode()
    (directory / "b.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + last.numpy().tobytes())
    file.unlink()
    where = {**dict.fromkeys(tensors, "a.safetensors"), "model.norm.weight": "b.safetensors"}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_rejected(directory, "b.safetensors", "tensor model.norm.weight")


def test_a_duplicate_tensor_or_key_is_rejected(directory):
    file, settings = directory / "model.safetensors", directory / "config.json"
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, twice = raw[8 : 8 + size].rstrip(), json.loads(raw[8 : 8 + size])["model.norm.weight"]
    header = header[:-1] + b', "model.norm.weight": ' + json.dumps(twice).encode() + b"}"
    file.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + size :])
    assert_rejected(directory, "weights cannot be read", "model.norm.weight appears twice")
    file.write_bytes(raw)
    settings.write_text(settings.read_text().rstrip()[:-1] + ', "hidden_size": 64}')
    assert_rejected(directory, "config.json", "hidden_size appears twice")


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", 7, "model.bin"])
def test_an_index_cannot_leave_the_directory(directory, file, tmp_path):
    weights = (directory / "model.safetensors").rename(directory / "part.safetensors")
    names = list(load_file(weights))
    (tmp_path / "secret.safetensors").write_bytes(weights.read_bytes())
    where = dict.fromkeys(names, "part.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert len(read_hf(directory).state) == len(names)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where | {names[3]: file}}))
    assert_rejected(directory, names[3])


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("value", "count"), [(float("nan"), 1), (float("inf"), 3), (-1e39, 2)])
def test_weights_that_are_no_numbers_are_named_with_their_file(directory, kind, value, count):
    file = directory / "model.safetensors"
    tensors = {name: tensor.to(kind) for name, tensor in load_file(file).items()}
    tensors["model.layers.1.mlp.up_proj.weight"].view(-1)[:count] = torch.tensor(value).to(kind)
    save_file(tensors, file)
    assert_rejected(directory, "model.safetensors: tensor model.layers.1.mlp.up_proj.weight", f"has {count} of", "NaN")


def test_a_weight_that_float16_cannot_hold_is_named_and_nothing_is_written(make, tokenizer, tmp_path):
    model = make("llama", depth=2)
    with torch.no_grad():
        model.blocks[1].mlp.up_proj.weight[0, 0] = -7e4
    with pytest.raises(UserError, match=r"model.layers.1.mlp.up_proj.weight has the value 70000, .*bfloat16"):
        write_hf.write_hf(tmp_path / "half", model.config, model.state_dict(), tokenizer, "card", dtype="float16")
    assert not (tmp_path / "half").exists()
    write_hf.write_hf(tmp_path / "half", model.config, model.state_dict(), tokenizer, "card", dtype="bfloat16")


def test_an_index_with_missing_files_or_tensors_is_rejected(directory):
    weights = (directory / "model.safetensors").rename(directory / "part.safetensors")
    names = list(load_file(weights))
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "other.safetensors")}))
    assert_rejected(directory, "other.safetensors")
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(names, "part.safetensors"), "x": "part.safetensors"}}))
    assert_rejected(directory, "tensor x")
    for content in ("{}", '{"weight_map": []}', "[" * 100_000):
        index.write_text(content)
        assert_rejected(directory, "index.json")


def test_other_directories_are_rejected(directory, tmp_path):
    assert_rejected(tmp_path / "nothing", "does not exist")
    assert_rejected(directory / "config.json", "is a file")
    (directory / "tokenizer.json").unlink()
    assert_rejected(directory, "tokenizer.json")
    (directory / "config.json").write_text("not json")
    assert_rejected(directory, "config.json")


def test_a_tokenizer_larger_than_the_embedding_is_rejected(directory):
    document = json.loads((directory / "tokenizer.json").read_text())
    document["model"]["vocab"]["extra"] = 999
    (directory / "tokenizer.json").write_text(json.dumps(document))
    assert_rejected(directory, "1000 entries")


def test_a_tied_head_that_is_stored_must_be_the_embedding(make, tokenizer, tmp_path):
    model = make("gpt2")
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    rewrite(out, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))
    assert torch.equal(read_hf(out).state["head.weight"], model.head.weight)
    rewrite(out, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    assert_rejected(out, "lm_head.weight")


def test_gpt2_loads_in_its_published_form(make, tokenizer, tmp_path):
    """Names without prefix, stored masks, no tokenizer.json but two files, half of the keys left to their defaults."""
    model = make("gpt2", context=64, vocab_size=258)
    out = write_hf.write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card")
    mask = torch.ones(1, 1, 64, 64).tril()

    def bare(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors.update({f"h.{layer}.attn.bias": mask.clone() for layer in range(3)})

    rewrite(out, bare, {"format": "pt"})
    config_values = {
        "model_type": "gpt2",
        "vocab_size": 258,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 3,
        "n_positions": 64,
    }
    (out / "config.json").write_text(json.dumps({**config_values, "n_ctx": 64, "task_specific_params": {}}))
    (out / "tokenizer.json").unlink()
    entries = {token: index for index, token in enumerate([*byte_alphabet(), "ab", "<|endoftext|>"])}
    (out / "vocab.json").write_text(json.dumps(entries))
    (out / "merges.txt").write_text("#version: 0.2\na b\n")
    back = read_hf(out)
    assert back.config == model.config
    assert all(torch.equal(back.state[name], tensor) for name, tensor in model.state_dict().items())
    assert back.tokenizer.encode("abb") == [256, ord("b")] and back.tokenizer.bos == 257
