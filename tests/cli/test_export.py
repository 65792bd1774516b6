"""`fledgling export` and `fledgling import` on real checkpoints: tables on stdout, one line for a mistake."""

import json

import pytest
import torch

from fledgling.cli import export, main
from fledgling.config import ModelConfig
from fledgling.infer.runner import load_model
from fledgling.model.transformer import Transformer
from fledgling.record.checkpoint import save_checkpoint
from fledgling.text.tokenizer import Tokenizer


@pytest.fixture
def run(tmp_path):
    """A run directory whose sft stage has a checkpoint of a small llama and one evaluation."""
    tokenizer = Tokenizer.train(["the quick brown fox " * 30], vocab_size=330)
    file = tokenizer.save(tmp_path / "tokenizer.json")
    sizes = {"depth": 2, "width": 64, "heads": 4, "kv_heads": 2, "intermediate_size": 192, "context": 64}
    model = Transformer(ModelConfig(family="llama", vocab_size=330, **sizes))
    model.initialize(0)
    recipe = 'name = "sparrow"\nseed = 5\n'
    state = {"stage": "sft", "step": 7, "model": model.config.to_dict(), "recipe": recipe}
    stage = tmp_path / "run" / "sft"
    save_checkpoint(stage / "checkpoints", 7, {"model": model.state_dict()}, state, {"tokenizer.json": file})
    (tmp_path / "run" / "recipe.toml").write_text(recipe)
    (stage / "done.json").write_text("{}")
    line = {"stage": "sft", "step": 7, "name": "spelling", "value": 0.91, "low": 0.88, "high": 0.94}
    (stage / "evals.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path / "run"


def test_a_reward_model_is_exported_with_a_line_about_its_score(tmp_path, capsys):
    for objective, line in (("reward", "a reward model: its score, a value head, has no place"), ("dpo", "")):
        state = {"stage": "dpo", "recipe": f'[dpo]\nobjective = "{objective}"\n'}
        export._require_exportable(state, tmp_path)
        assert line in capsys.readouterr().err


def test_export_hf_is_read_back_by_import(run, tmp_path, capsys):
    assert main(["export", "hf", str(run), str(tmp_path / "hf")]) == 0
    table = capsys.readouterr().out
    assert "read back by fledgling" in table and "0.00e+00" in table and "56 of 56" in table
    card = (tmp_path / "hf" / "README.md").read_text()
    for text in ("sparrow", "LlamaForCausalLM", "step 7 of sft", "| spelling | 0.9100 | 0.8800 to 0.9400 |", "A chat"):
        assert text in card
    assert "measured with the weights of this checkpoint, in" in " ".join(card.split())
    assert main(["export", "hf", str(run), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "these files hold the weights in bfloat16" in " ".join((tmp_path / "half" / "README.md").read_text().split())
    capsys.readouterr()
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "back"), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    model, tokenizer, _ = load_model(run)
    assert output["parameters"] == model.count_parameters()
    back, again, _ = load_model(tmp_path / "back")
    assert back.config == model.config and again.fingerprint() == tokenizer.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    assert main(["chat", str(tmp_path / "back"), "-p", "the fox", "--max-new-tokens", "4"]) == 0


def test_export_gguf_prints_its_comparison(run, tmp_path, capsys):
    pytest.importorskip("gguf")
    out = tmp_path / "sparrow.gguf"
    assert main(["export", "gguf", str(run), str(out), "--type", "q8_0", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["path"] == str(out) and out.stat().st_size > 50_000
    assert output["parity"][0]["greedy_tokens"] == 56 and 0 < output["parity"][0]["max_difference"] < 0.1


def test_export_html_prints_what_quantization_changes(run, tmp_path, capsys):
    out = tmp_path / "sparrow.html"
    assert main(["export", "html", str(run), str(out), "--bits", "8", "--group-size", "32", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["path"] == str(out) and out.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert 0 < output["parity"][0]["max_difference"] < 0.1 and output["parity"][0]["reference"].startswith("in 8 bits")
    for other in output["parity"][1:]:
        assert "the page's engine in node" in other["reference"] and other["greedy_matches"] == 56


@pytest.mark.parametrize(
    ("words", "package", "error"),
    [
        (["hf", "RUN", "out", "--quantize", "int8"], "compressed_tensors", 0.1),
        (["gguf", "RUN", "m.gguf", "--type", "q4_k_m", "--importance", "TEXT"], "xllamacpp", 1.0),
        (["mlx", "RUN", "out"], "mlx_lm", 1e-4),
        (["onnx", "RUN", "m.onnx"], "onnxruntime", 1e-4),
    ],
)
def test_other_formats_print_their_comparison(words, package, error, run, tmp_path, capsys, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox " * 40)
    given = [word.replace("RUN", str(run)).replace("TEXT", "text.txt") for word in words]
    assert main(["export", *given, "--json"]) == 0
    (row, *_) = json.loads(capsys.readouterr().out)["parity"]
    assert 0 <= row["max_difference"] < error and row["greedy_tokens"] == 56


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "hf", "RUN", "OUT", "--dtype", "int3"], "int3"),
        (["export", "hf", "RUN", "RUN"], "not an empty directory"),
        (["export", "hf", "OUT/none", "OUT"], "does not exist"),
        (["export", "gguf", "RUN", "OUT", "--type", "q3"], "q3"),
        (["export", "gguf", "RUN", "RUN"], "is a directory"),
        (["export", "html", "RUN", "RUN"], "is a directory"),
        (["export", "gguf", "RUN", "OUT.Modelfile"], "is the name of the Modelfile"),
        (["export", "html", "RUN", "OUT", "--bits", "3"], "expected 8 or 4"),
        (["export", "onnx", "RUN", "RUN"], "is a directory"),
        (["export", "hf", "RUN", "OUT", "--quantize", "int3"], "int8 or int4"),
        (["export", "gguf", "RUN", "OUT", "--importance", "OUT"], "out"),
        (["export", "push", "RUN", "me/bird"], "nothing that `fledgling"),
        (["import", "RUN", "OUT"], "no config.json"),
    ],
)
def test_a_mistake_is_one_line(words, message, run, tmp_path, capsys):
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
