"""A quantized checkpoint is written, loaded, used, of the planned size; and rejected where it must be."""

import json

import pytest
import torch

from fledgling.bench.infer import make_random_model
from fledgling.cli import main
from fledgling.config import ModelConfig, UserError
from fledgling.infer.engine import Engine
from fledgling.infer.runner import load_model
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels.quantized_model import count_weight_bytes, load_quantized_model, quantize_state_dict
from fledgling.kernels.quantized_tensor import QuantizedTensor
from fledgling.plan import inference
from fledgling.record import checkpoint
from fledgling.text.tokenizer import Tokenizer
from fledgling.train.run import parent_checkpoint
from tests.all_stages import make_all_stages_recipe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["some text to learn letters from, and a few more words " * 20], 330)


@pytest.fixture
def make_checkpoint(tokenizer, tmp_path):
    """A function that saves a checkpoint of random weights of a family, and returns its path."""

    def make(family: str = "fledgling", **parts):
        fields = {"depth": 2, "width": 128, "heads": 2, "kv_heads": 2, "intermediate_size": 384, "context": 64} | parts
        fields.setdefault("preset", "nanochat-2025")
        config = ModelConfig(family=family, vocab_size=tokenizer.vocab_size, **fields)
        model = make_random_model(config, torch.float32, torch.device("cpu"))
        file = tmp_path / "tokenizer.json"
        tokenizer.save(file)
        state = {"model": config.to_dict(), "step": 7, "name": "sft"}
        return checkpoint.save_checkpoint(
            tmp_path / family, 7, {"model": model.state_dict()}, state, {"tokenizer.json": file}
        )

    return make


@pytest.mark.parametrize("family", ["fledgling", "gpt2", "llama"])
@pytest.mark.parametrize("options", [["--bits", "8"], ["--bits", "4", "--group-size", "64", "--embedding"]])
def test_it_loads_and_has_the_planned_size(family, options, make_checkpoint, tmp_path, capsys):
    source = make_checkpoint(family)
    assert main(["quantize", str(source), str(tmp_path / "out"), *options, "--no-measure", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    quantized, _, state = load_model(tmp_path / "out")
    model, *_ = load_model(source)
    form, parts = f"int{result['bits']}", (result["group_size"], result["head"], result["embedding"])
    assert (
        count_weight_bytes(quantized) == result["bytes"]["packed"] == inference.weight_bytes(model.config, form, *parts)
    )
    assert state["quantized"]["bits"] == result["bits"] and state["step"] == 7
    packed = {name for name, parameter in quantized.named_parameters() if isinstance(parameter.data, QuantizedTensor)}
    assert ("embedding.weight" in packed) == (result["embedding"] and not model.config.tie_embeddings)
    blocks = [name for name in packed if name.startswith("blocks.")]
    assert "head.weight" in packed and len(blocks) == 2 * (7 if family == "llama" else 6)
    tokens = torch.arange(60)[None] % model.config.vocab_size
    with torch.no_grad():
        error = quantized.compute_logits(quantized(tokens)) - model.compute_logits(model(tokens))
        assert error.std() < {8: 0.05, 4: 0.4}[result["bits"]] * model.compute_logits(model(tokens)).std()


def test_every_command_that_reads_a_model_reads_it(make_checkpoint, tokenizer, tmp_path, capsys):
    assert main(["quantize", str(make_checkpoint()), str(tmp_path / "out"), "--bits", "4", "--no-measure"]) == 0
    text = tmp_path / "text.txt"
    text.write_text("a few more words to learn from " * 30)
    capsys.readouterr()
    assert main(["eval", "bpb", str(tmp_path / "out"), str(text), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "bits_per_byte"
    assert main(["chat", str(tmp_path / "out"), "-p", "hello", "--max-new-tokens", "4", "--device", "cpu"]) == 0
    quantized, *_ = load_model(tmp_path / "out")
    answer = Engine(quantized, tokenizer).generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_new_tokens=6))[0]
    same = Engine(quantized, tokenizer, dtype=torch.float32).generate(
        [[1, 2, 3]], SamplingParams(temperature=0.0, max_new_tokens=6)
    )
    assert len(answer.tokens) == len(same[0].tokens)


def test_the_cost_is_printed(make_checkpoint, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("a few more words to learn from " * 200)
    options = ["--text", str(text), "--questions", "2", "--bits", "8"]
    assert main(["quantize", str(make_checkpoint()), str(tmp_path / "out"), *options]) == 0
    out = capsys.readouterr().out
    assert "bits_per_byte" in out and "arithmetic" in out and "in float32" in out and "%" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "3"], "--bits 3: expected 8 or 4"),
        (["--group-size", "100"], "--group-size 100: expected a power of two"),
        (["--group-size", "256"], "128 columns, expected a multiple of 256"),
        (["--questions", "-1"], "--questions -1"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(options, message, make_checkpoint, tmp_path, capsys):
    assert main(["quantize", str(make_checkpoint()), str(tmp_path / "out"), *options]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err and not (tmp_path / "out").exists()


def test_it_cannot_be_quantized_again_exported_or_trained(make_checkpoint, tmp_path, capsys):
    assert main(["quantize", str(make_checkpoint()), str(tmp_path / "out"), "--no-measure"]) == 0
    for command in (["quantize"], ["export", "hf"], ["export", "gguf"]):
        capsys.readouterr()
        assert main([*command, str(tmp_path / "out"), str(tmp_path / "again")]) == 1
        assert "is quantized to 8 bits and cannot be" in capsys.readouterr().err
    recipe = make_all_stages_recipe(tmp_path)
    run = tmp_path / "run"
    (run / "pretrain/checkpoints").mkdir(parents=True)
    (tmp_path / "out/step-00000007").rename(run / "pretrain/checkpoints/step-00000007")
    with pytest.raises(UserError, match="cannot be trained on"):
        parent_checkpoint(recipe.stages, "midtrain", run)


def test_tensors_that_do_not_fit_are_rejected(make_checkpoint, tmp_path):
    main(["quantize", str(make_checkpoint()), str(tmp_path / "out"), "--bits", "4", "--no-measure"])
    saved = checkpoint.load_checkpoint(tmp_path / "out/step-00000007")
    file = {"tokenizer.json": saved.path / "tokenizer.json"}
    for name, change in (
        ("head.weight.scales", lambda t: t[:, :-1].contiguous()),
        ("head.weight.values", lambda t: t.to(torch.int8)),
        ("blocks.0.mlp.fc1.weight.values", lambda t: t[1:].contiguous()),
    ):
        broken = dict(saved.tensors["model"])
        broken[name] = change(broken[name])
        path = checkpoint.save_checkpoint(tmp_path / "broken", 1, {"model": broken}, saved.state, file)
        with pytest.raises(UserError, match=r"do not fit: .*weight"):
            load_model(path)


@pytest.mark.parametrize("width", [96, 160])
def test_a_width_that_four_bits_cannot_store_is_rejected(width, make_checkpoint):
    """The values of 4 bits have the right shape, but 64 columns are stored together."""
    saved = checkpoint.load_checkpoint(make_checkpoint(width=width, intermediate_size=3 * width))
    config = ModelConfig.from_dict(saved.state["model"])
    tensors = quantize_state_dict(config, saved.tensors["model"], 8, 32)
    load_quantized_model(config, tensors, {"bits": 8})
    for name, values in tensors.items():
        if name.endswith(".values"):
            tensors[name] = values.view(torch.uint8)[:, ::2].contiguous()
    with pytest.raises(ValueError, match=rf"rows of {width} columns .* a multiple of 64 columns for 4 bits"):
        load_quantized_model(config, tensors, {"bits": 4})


def test_a_missing_tensor_is_named_and_so_are_bits_that_are_not_supported(make_checkpoint, tmp_path):
    main(["quantize", str(make_checkpoint()), str(tmp_path / "out"), "--bits", "4", "--no-measure"])
    saved = checkpoint.load_checkpoint(tmp_path / "out/step-00000007")
    config, tensors = ModelConfig.from_dict(saved.state["model"]), saved.tensors["model"]
    for name in ("embedding.weight", "head.weight.scales", "head.weight.values"):
        left = {other: tensor for other, tensor in tensors.items() if other != name}
        with pytest.raises(ValueError, match=r"weight.* is missing"):
            load_quantized_model(config, left, saved.state["quantized"])
    for bits in (3, None):
        with pytest.raises(ValueError, match=f"quantized to {bits} bits, expected 8 or 4"):
            load_quantized_model(config, tensors, {"bits": bits})


def test_gates_are_shorter_than_a_group_and_stay_as_they_are(make_checkpoint, tmp_path, capsys):
    source = make_checkpoint(head_gates=True, smear=True, value_embeddings=1, value_gates=True)
    assert main(["quantize", str(source), str(tmp_path / "out"), "--bits", "4", "--no-measure", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["bytes"]
    quantized, *_ = load_model(tmp_path / "out")
    gates = [value.data for name, value in quantized.named_parameters() if name.endswith(".gate.weight")]
    assert len(gates) == 5 and not any(isinstance(gate, QuantizedTensor) for gate in gates)
    assert sizes["packed"] == sizes["predicted"]
