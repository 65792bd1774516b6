"""Directories in 8 and 4 bits: transformers reads them through compressed-tensors, with the values that we stored."""

import pytest
import torch

from fledgling.config import UserError
from fledgling.export.compressed_tensors import pack_values, quantize_evenly
from fledgling.export.parity import compare_hf
from fledgling.export.write_hf import write_hf
from fledgling.kernels.format import quantize_matrix
from fledgling.kernels.quantized_tensor import dequantize_matrix
from fledgling.model.transformer import Transformer


@pytest.mark.parametrize("bits", [8, 4])
def test_values_are_packed_as_the_package_unpacks_them(bits):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    values = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (6, 64), dtype=torch.int8)
    assert torch.equal(pack_values(values, bits), helpers.pack_to_int32(values, bits))
    assert torch.equal(helpers.unpack_from_int32(pack_values(values, bits), bits, torch.Size((6, 64))), values)


def test_even_levels_are_the_nearest_of_the_best_scale():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    values, scales = quantize_evenly(weight, 32)
    again = (values.view(8, 2, 32) * scales.float()[:, :, None]).view(8, 64)
    error = ((again - weight).norm() / weight.norm()).item()
    assert 0.05 < error < 0.12 and values.min() >= -8 and values.max() <= 7


OWN = {"preset": "nanochat-2026", "head_gates": True}  # a model that carries its modelling file


@pytest.mark.parametrize(
    ("kind", "family", "parts"),
    [("int8", "llama", {}), ("int4", "qwen3", {}), ("int8", "fledgling", {}), ("int4", "fledgling", OWN)],
)
def test_transformers_computes_what_the_stored_values_are(kind, family, parts, make, tokenizer, tmp_path):
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    model = make(family, kv_heads=2, depth=2, intermediate_size=128, heads=2, **parts)
    for name, parameter in model.named_parameters():
        if "gate." in name or "value_embedding" in name:  # which else are zero, or small
            parameter.data.normal_(generator=torch.Generator().manual_seed(3))
    state = model.state_dict()
    write_hf(tmp_path / "out", model.config, state, tokenizer, "card", quantize=kind)
    stored = {}
    for name, value in state.items():
        is_whole = name.endswith("o_proj.weight") and family == "fledgling" and not parts
        is_linear = value.ndim == 2 and name.startswith("blocks") and "gate.weight" not in name
        if is_linear and "value_embedding" not in name and not is_whole:
            if kind == "int8":
                stored[name] = dequantize_matrix(*quantize_matrix(value, 8, 64), 8, torch.float32)
            else:
                values, scales = quantize_evenly(value, 32)
                groups = values.view(len(values), -1, 32) * scales.float()[:, :, None]
                stored[name] = groups.view(value.shape)
    rounded = Transformer(model.config).eval()
    rounded.load_state_dict(state | stored)
    (found,) = compare_hf(rounded, tmp_path / "out", tokenizer.bos, quantized=True)
    assert found.reference.startswith("transformers") and found.max_difference < 1e-4
    (off,) = compare_hf(model, tmp_path / "out", tokenizer.bos, quantized=True)
    assert off.max_difference > 10 * found.max_difference
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert size < 0.8 * sum(4 * value.numel() for value in state.values())


def test_what_has_no_place_is_named(make, tokenizer, tmp_path):
    for family, kind, fields, word in (
        ("gpt2", "int8", {}, "GPT-2"),
        ("llama", "int3", {}, "int8 or int4"),
        ("llama", "int8", {"intermediate_size": 90}, "intermediate_size is 90"),
    ):
        model = make(family, **fields)
        with pytest.raises(UserError, match=word):
            write_hf(tmp_path / "out", model.config, model.state_dict(), tokenizer, "card", quantize=kind)
    assert not list(tmp_path.iterdir())
