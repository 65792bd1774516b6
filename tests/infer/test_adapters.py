"""Several adapters over one set of weights, each answering as its merged model does, by its name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fledgling.config import AdapterConfig, ModelConfig, UserError
from fledgling.export.adapter_base import AdapterBase, hash_weights, save_adapter
from fledgling.export.peft_format import to_peft
from fledgling.infer.adapters import make_engines, parse_adapters
from fledgling.infer.engine import Engine
from fledgling.model.adapter import attach_adapter, initialize_adapter, is_adapter_name, merge_adapter
from fledgling.model.transformer import Transformer
from fledgling.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engine() -> Engine:
    tokenizer = Tokenizer.train(["the quick brown fox jumps over the lazy dog again and again " * 9], 330)
    model = Transformer(ModelConfig(tokenizer.vocab_size, 2, 32, 2, 2, 64)).requires_grad_(False)
    for seed, weight in enumerate(model.parameters()):
        weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return Engine(model, tokenizer)


def write_adapter(folder, model: Transformer, seed: int, quantization: str = "none") -> dict[str, torch.Tensor]:
    """Writes a random adapter; returns the merged weights."""
    config = AdapterConfig("dora" if seed else "lora", rank=2, alpha=4.0)
    other = Transformer(model.config)
    other.load_state_dict(model.state_dict())
    attach_adapter(other, config, model.config)
    initialize_adapter(other, seed)
    own = {name: value.data for name, value in other.named_parameters() if is_adapter_name(name)}
    for number, value in enumerate(own.values()):
        value += 0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(100 * seed + number))
    contents, tensors = to_peft(model.config, config, own)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(contents))
    save_file(tensors, folder / "adapter_model.safetensors")
    if quantization != "none":
        (folder / "state.json").write_text(json.dumps({"adapter": {"config": {"quantization": quantization}}}))
    return merge_adapter(model.state_dict(), config, own)


def test_each_adapter_answers_as_its_merged_model_and_shares_the_weights(engine, tmp_path):
    merged = [write_adapter(tmp_path / str(seed), engine.source, seed) for seed in (0, 1)]
    engines = make_engines(engine, {str(seed): tmp_path / str(seed) for seed in (0, 1)})
    row = torch.arange(5, 30)[None]
    for seed in (0, 1):
        plain = Transformer(engine.source.config)
        plain.load_state_dict(merged[seed])
        adapted = engines[str(seed)].model
        with torch.inference_mode():
            torch.testing.assert_close(adapted(row), plain(row), rtol=1e-3, atol=1e-3)
            assert (adapted(row) - engine.model(row)).abs().max() > 0.1
        shared = dict(adapted.named_parameters())["blocks.0.attention.q_proj.weight"]
        assert shared.data_ptr() == engine.source.blocks[0].attention.q_proj.weight.data_ptr()
    assert not any(is_adapter_name(name) for name, _ in engine.source.named_parameters())
    with pytest.raises(UserError, match="was trained on quantized matrices"):
        write_adapter(tmp_path / "q", engine.source, 2, "nf4")
        make_engines(engine, {"q": tmp_path / "q"})


def test_an_adapter_that_names_its_base_is_served_on_no_other_weights(engine, tmp_path):
    write_adapter(tmp_path / "own", engine.source, 0)
    weights = engine.source.state_dict()
    other = {name: value * (1.1 if name.endswith("q_proj.weight") else 1.0) for name, value in weights.items()}
    rounded = {name: value.bfloat16() for name, value in weights.items()}
    tensors = load_file(tmp_path / "own" / "adapter_model.safetensors")
    contents = json.loads((tmp_path / "own" / "adapter_config.json").read_text())
    for name, base in (("same", weights), ("rounded", rounded), ("other", other)):
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, contents, tensors, AdapterBase(str(hash_weights(base)), "quickstart, step 4"))
    make_engines(engine, {name: tmp_path / name for name in ("own", "same", "rounded")})
    with pytest.raises(UserError, match=r"other is an adapter of other weights than these: it belongs to quickstart"):
        make_engines(engine, {"other": tmp_path / "other"})


def test_the_option_is_a_name_and_a_directory(tmp_path):
    assert parse_adapters((f"poet={tmp_path}",)) == {"poet": tmp_path}
    for option in ("poet", "=x", "poet="):
        with pytest.raises(UserError, match="expected NAME=DIR"):
            parse_adapters((option,))
    with pytest.raises(UserError, match="each name once"):
        parse_adapters(("a=x", "a=y"))


def test_a_run_is_the_adapter_that_it_trained_last(tmp_path):
    saved = tmp_path / "run" / "sft" / "checkpoints" / "step-000004"
    saved.mkdir(parents=True)
    for file in ("run/recipe.toml", "run/sft/done.json"):
        (tmp_path / file).write_text("{}")
    (saved / "MANIFEST.json").write_text("{}")
    with pytest.raises(UserError, match="checkpoint"):  # an empty one is not valid, and it was looked for
        parse_adapters((f"poet={tmp_path / 'run'}",))
    (tmp_path / "run" / "adapter_config.json").write_text("{}")
    assert parse_adapters((f"poet={tmp_path / 'run'}",)) == {"poet": tmp_path / "run"}
