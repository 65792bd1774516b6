"""Bytes per token, general compressors, and `fledgling tokenizer`."""

import json
import lzma
import random
import sys
import zipfile

import pytest

from fledgling.cli import main
from fledgling.text import compression
from fledgling.text.bpe import byte_alphabet
from fledgling.text.compression import (
    make_ppmd_compressor,
    make_zstd_compressor,
    measure_bytes_per_token,
    measure_compressed_bpb,
    read_udhr,
)
from fledgling.text.sample_texts import SAMPLE_TEXTS
from fledgling.text.tokenizer import Tokenizer


@pytest.fixture
def data(tmp_path):
    """A data directory with a GPT-2 of 257 entries (bytes and "ab") and the Declaration in two languages."""
    folder = tmp_path / "data" / "tokenizers" / "gpt2"
    folder.mkdir(parents=True)
    vocabulary = {token: index for index, token in enumerate([*byte_alphabet(), "ab", "<|endoftext|>"])}
    (folder / "encoder.json").write_text(json.dumps(vocabulary))
    (folder / "vocab.bpe").write_text("#version: 0.2\na b\n")
    with zipfile.ZipFile(folder.parent / "udhr2.zip", "w") as archive:
        archive.writestr("udhr2/eng.txt", "All human beings are born free")
        archive.writestr("udhr2/kor.txt", "모든 인간은")
    return tmp_path / "data"


def test_bytes_per_token_are_those_computed_by_hand():
    bytewise = Tokenizer.train([], 256 + 9, letter_tokens=False)
    assert measure_bytes_per_token(bytewise, {"ascii": "abc", "korean": "서", "empty": ""}) == {
        "ascii": 1.0,
        "korean": 1.0,
        "empty": 0.0,
    }


def test_the_declaration_is_read_by_language(data, tmp_path):
    assert list(read_udhr(data / "tokenizers" / "udhr2.zip")) == [
        "declaration, English",
        "declaration, Korean",
    ]
    assert read_udhr(tmp_path / "none.zip") == {}


def test_the_command_trains_evaluates_and_shows(data, tmp_path, texts, capsys):
    (tmp_path / "words.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    out = str(tmp_path / "made")
    assert main(["tokenizer", "train", str(tmp_path / "words.jsonl"), "--out", out, "--vocab-size", "512"]) == 0
    assert "512 entries" in capsys.readouterr().out
    assert json.loads((tmp_path / "made" / "training.json").read_text())["vocab_size"] == 512

    assert main(["tokenizer", "eval", out, "--data-dir", str(data), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    kinds = {row["kind"]: row for row in result["bytes_per_token"]}
    assert [*kinds] == [*SAMPLE_TEXTS, "declaration, English", "declaration, Korean"]
    assert kinds["news"]["gpt2"] == pytest.approx(1.0, abs=0.01)
    assert kinds["news"]["fledgling"] > 1.2
    assert result["left_out"] is None
    assert result["seconds"] >= 0

    assert main(["tokenizer", "eval", out, str(tmp_path / "words.jsonl"), "--data-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "words.jsonl" in printed
    assert "GPT-2 left out: no encoder.json" in printed

    assert main(["tokenizer", "show", out, "in the <|bos|>", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "".join(piece["text"] for piece in shown) == "in the <|bos|>"
    assert max(piece["id"] for piece in shown) < 512 - 9


def test_mistakes_of_the_user_are_one_line(tmp_path, capsys):
    assert main(["tokenizer", "show", str(tmp_path), "x"]) == 1
    assert capsys.readouterr().err.startswith("error: no tokenizer at")
    assert main(["tokenizer", "train", str(tmp_path / "none.txt"), "--out", str(tmp_path)]) == 1
    assert "no such file or folder" in capsys.readouterr().err.splitlines()[-1]


def test_compressors_use_the_training_text():
    texts = [" ".join(f"Sentence {number} {n} of its own." for n in range(99)) for number in range(60)]
    messages = []
    seen = measure_compressed_bpb(texts, texts[:3], messages.append)
    assert messages[0].startswith("xz -9e over ")
    alone = 8 * len(lzma.compress(texts[0].encode())) / len(texts[0])
    for name in ("xz -9e", "zstd -19 --long", "PPMd order 16"):
        if seen[name] is not None:
            assert 0 < seen[name] < 0.4 < alone
    missing = [make() is None for make in (make_zstd_compressor, make_ppmd_compressor)]
    assert [seen["zstd -19 --long"] is None, seen["PPMd order 16"] is None] == missing
    assert any(missing) == bool(seen["note"])


def test_ppmd_predicts_new_text_better_than_repetitions_do():
    """The model's rival: on text whose words recur in new orders a context model needs fewer bits than xz."""
    pytest.importorskip("pyppmd")
    chance = random.Random(0)
    words = ["".join(chance.choices("aeiourstlnm", k=chance.randint(2, 8))) for _ in range(60)]
    texts = [" ".join(chance.choices(words, k=200)) for _ in range(40)]
    seen = measure_compressed_bpb(texts[:39], texts[39:])
    assert 0 < seen["PPMd order 16"] < seen["xz -9e"]


def test_without_pyppmd_the_note_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    result = measure_compressed_bpb(["Some text."] * 9, ["Other text."])
    assert result["PPMd order 16"] is None
    assert "PPMd order 16 is left out: no pyppmd here; pip install 'fledgling[compare]'" in result["note"]


def test_a_cap_on_the_training_text_is_reported(monkeypatch):
    monkeypatch.setattr(compression, "MAX_COMPRESSOR_BYTES", 1_000)
    monkeypatch.setattr(compression, "make_zstd_compressor", lambda: None)
    result = measure_compressed_bpb(["Some text of a document."] * 60, ["Other text."])
    assert result["training bytes"] == 1_000 and result["zstd -19 --long"] is None
    assert "the last 1,000 of" in result["note"] and "no compression.zstd, zstandard or zstd" in result["note"]


def test_a_run_compares_with_the_strongest_compressor_that_is_here(monkeypatch):
    texts = ["Some text of a document."] * 9, ["Other text."]
    if make_ppmd_compressor():
        assert [name for name in measure_compressed_bpb(*texts, only_strongest=True) if " " in name][:1] == [
            "PPMd order 16"
        ]
        assert "xz -9e" not in measure_compressed_bpb(*texts, only_strongest=True)
    monkeypatch.setitem(sys.modules, "pyppmd", None)
    result = measure_compressed_bpb(*texts, only_strongest=True)
    assert result["xz -9e"] and "zstd -19 --long" not in result and "pip install" in result["note"]
