"""Adapters leave as peft's own files, with the same function there, and come back bit for bit; corrupt ones do not."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from fledgling.config import AdapterConfig, UserError
from fledgling.export import write_hf
from fledgling.export.adapter_base import AdapterBase, hash_weights, read_base, save_adapter
from fledgling.export.peft_format import from_peft, read_peft, to_peft
from fledgling.export.untrusted import open_safetensors
from fledgling.model.adapter import attach_adapter, initialize_adapter, is_adapter_name, load_adapter

ROW = torch.arange(1, 25)[None]


def write_adapter(folder, contents, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(contents))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def adapt(model, adapter):
    """Attaches an adapter with random values; returns its tensors."""
    attach_adapter(model, adapter, model.config)
    initialize_adapter(model, 0)
    draw = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if is_adapter_name(name):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return {name: value.detach() for name, value in model.named_parameters() if is_adapter_name(name)}


CASES = [
    ("llama", AdapterConfig("lora", 4, 8.0)),
    ("llama", AdapterConfig("dora", 3, 7.0, ("q_proj", "down_proj"))),
    ("llama", AdapterConfig("rslora", 3, 7.0, ("blocks.1.attention.q_proj",))),
    ("gpt2", AdapterConfig("rslora", 3, 7.0)),
    ("gpt2", AdapterConfig("dora", 3, 7.0)),
    ("gpt2", AdapterConfig("lora", 2, 4.0, ("k_proj", "fc2"))),
]


@pytest.mark.parametrize(("family", "adapter"), CASES, ids=str)
def test_peft_computes_what_we_do_and_the_tensors_come_back(make, tokenizer, tmp_path, family, adapter):
    from peft import PeftModel  # imports of a second, which other workers do not need
    from transformers import AutoModelForCausalLM

    model = make(family, depth=2)
    write_hf.write_hf(tmp_path / "base", model.config, model.state_dict(), tokenizer, "card")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    own = adapt(model, adapter)
    folder = tmp_path / "adapter"
    folder.mkdir()
    digest = str(hash_weights(weights))
    save_adapter(folder, *to_peft(model.config, adapter, own, "base"), AdapterBase(digest, "run, step 3 of pretrain"))
    assert read_base(folder) == AdapterBase(digest, "run, step 3 of pretrain")
    transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    if not adapter.has_magnitude:  # of which transformers' own loader (5.23) finds no tensor under peft's name
        transformers.load_adapter(str(folder))
    other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.compute_logits(model(ROW)), other(ROW).logits, rtol=1e-4, atol=1e-4)
        if not adapter.has_magnitude:
            torch.testing.assert_close(transformers(ROW).logits, other(ROW).logits, rtol=1e-4, atol=1e-4)
    again, tensors = read_peft(folder, model.config, adapter)
    assert again.has_tensors_of(adapter, model.config) and tensors.keys() == own.keys()
    assert all(tensors[name].equal(value) for name, value in own.items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_that_peft_made_computes_the_same_here(make, tokenizer, tmp_path, family):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = make(family, depth=2)
    write_hf.write_hf(tmp_path / "base", model.config, model.state_dict(), tokenizer, "card")
    names = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "gate_proj"]
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=names, rank_pattern={names[1]: 2}, init_lora_weights=False, use_dora=True,
        alpha_pattern={rf".*\.0\..*{names[0]}|no_proj": 64},
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    torch.manual_seed(0)
    other = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    other.save_pretrained(tmp_path / "adapter")
    adapter, tensors = read_peft(tmp_path / "adapter", model.config)
    attach_adapter(model, adapter, model.config)
    load_adapter(model, tensors)
    with torch.no_grad():
        torch.testing.assert_close(model.compute_logits(model(ROW)), other(ROW).logits, rtol=1e-4, atol=1e-4)


HOSTILE = [
    ({"peft_type": "IA3"}, {}, "peft_type"),
    ({"peft_type": None}, {}, "peft_type"),
    ({"bias": "all"}, {}, "bias"),
    ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    ({"r": 10**9}, {}, "r is"),
    ({"r": "four"}, {}, "r is"),
    ({"lora_alpha": float("nan")}, {}, "lora_alpha"),
    ({"r": 5}, {}, "rank 5 implies"),
    ({"rank_pattern": ["q_proj"]}, {}, "rank_pattern"),
    ({"rank_pattern": {"q_proj": -1}}, {}, "r is"),
    ({"alpha_pattern": {"(q+)+_proj": 8}}, {}, "alpha_pattern has the pattern"),
    ({"alpha_pattern": {"(q_proj": 8}}, {}, "alpha_pattern has the pattern"),
    ({"alpha_pattern": {"(.|.)" * 31 + "!": 8}}, {}, "alpha_pattern has the pattern"),  # each takes exponential time
    ({"alpha_pattern": {".?" * 31 + "!": 8}}, {}, "alpha_pattern has the pattern"),
    ({"alpha_pattern": {"(?x:(.+) +!)": 8}}, {}, "alpha_pattern has the pattern"),
    ({"rank_pattern": {f"q{number}": 2 for number in range(1_025)}}, {}, "1,025 patterns"),
    *(
        ({"init_lora_weights": name}, {}, "init_lora_weights .*changes the base")
        for name in ("pissa", "PiSSA_niter_16", "olora", "corda", "loftq", "lora_ga")
    ),
    ({"init_lora_weights": "of tomorrow"}, {}, "init_lora_weights .*not known"),
    ({"layers_to_transform": [1]}, {}, "layers_to_transform is \\[1\\], and there are tensors of layer 0"),
    ({"layers_to_transform": "a"}, {}, "layers_to_transform is a, and"),
    ({"kasa_config": {"beta": 1}}, {}, "kasa_config"),
    ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.full((4, 64), torch.nan)}, "256 of"),
    ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(0, 64)}, "is empty"),
    ({}, {"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 2)}, "belongs to no matrix"),
    ({}, {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)}, "belongs to no"),
    ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_C": torch.zeros(2)}, "is of no matrix"),
    ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 63)}, "implies"),
    ({}, {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.zeros(64, 4).int()}, "dtype int32"),
]


@pytest.mark.parametrize(("keys", "tensors", "word"), HOSTILE)
def test_an_adapter_for_another_model_or_with_a_lying_header_is_rejected_in_one_line(
    make, tmp_path, keys, tensors, word
):
    model, adapter = make("llama", depth=2), AdapterConfig("lora", 4, 8.0)
    own = adapt(model, adapter)
    contents, stored = to_peft(model.config, adapter, own)
    folder = write_adapter(tmp_path / "adapter", contents | keys, stored | tensors)
    with pytest.raises(UserError, match=word) as error:
        read_peft(folder, model.config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["eva", "mica", "Gaussian", "orthogonal", True, False, None])
def test_an_initialization_that_leaves_the_base_as_it_is_changes_nothing(name, make, tmp_path):
    model, adapter = make("llama", depth=2), AdapterConfig("lora", 4, 8.0)
    contents, stored = to_peft(model.config, adapter, adapt(model, adapter))
    folder = write_adapter(tmp_path / "adapter", contents | {"init_lora_weights": name}, stored)
    found, tensors = read_peft(folder, model.config)
    expected = from_peft(model.config, contents, stored)
    assert found == expected[0] and all(torch.equal(tensors[key], value) for key, value in expected[1].items())


def test_a_torn_file_and_a_missing_one_are_named(make, tmp_path):
    model, adapter = make("llama", depth=2), AdapterConfig("lora", 4, 8.0)
    folder = write_adapter(tmp_path / "adapter", *to_peft(model.config, adapter, adapt(model, adapter)))
    file = folder / "adapter_model.safetensors"
    file.write_bytes((10**9).to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(UserError, match=r"adapter_model.safetensors: weights cannot be read"):
        read_peft(folder, model.config)
    file.unlink()
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors \(no pickle is ever read\)"):
        read_peft(folder, model.config)


def test_dora_on_a_part_of_a_joint_matrix_is_rejected(make):
    model, adapter = make("gpt2", depth=1), AdapterConfig("dora", 2, 4.0, ("q_proj",))
    with pytest.raises(UserError, match=r"c_attn is one matrix .* name all of q_proj, k_proj, v_proj"):
        to_peft(model.config, adapter, adapt(model, adapter))


def test_a_fresh_adapter_of_a_joint_matrix_keeps_its_rank(make):
    model, adapter = make("gpt2", depth=1), AdapterConfig("lora", 2, 4.0)
    attach_adapter(model, adapter, model.config)
    initialize_adapter(model, 0)
    own = {name: value.detach() for name, value in model.named_parameters() if is_adapter_name(name)}
    again, tensors = from_peft(model.config, *to_peft(model.config, adapter, own))
    assert again.rank == 2 and all(tensors[name].equal(value) for name, value in own.items())


def test_tensors_in_a_pipe_are_rejected_at_once(tmp_path):
    """Opening one waits for ever for a process that writes."""
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with (
        pytest.raises(UserError, match=r"adapter_model.safetensors is no file: expected weights"),
        open_safetensors(tmp_path / "adapter_model.safetensors"),
    ):
        pass
