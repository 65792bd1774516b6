"""Every type of GGUF is measured in llama.cpp, with importance where it counts."""

import random

import pytest
import torch

from benchmarks import gguf
from fledgling.config import ModelConfig
from fledgling.corpora.document import Document
from fledgling.export.gguf_types import FILE_TYPES
from fledgling.record.checkpoint import save_checkpoint
from fledgling.text.tokenizer import Tokenizer
from tests.export.conftest import random_model

pytest.importorskip("xllamacpp", reason='xllamacpp is not installed: pip install "fledgling[llama-cpp]"')


def test_every_type_has_a_row_and_exact_types_have_the_same_perplexity(tmp_path, monkeypatch):
    text = "the quick brown fox jumps over the lazy dog 12 times, again and again "
    tokenizer = Tokenizer.train([text * 9], vocab_size=330)
    model = random_model(ModelConfig(330, 1, 256, 4, context=32, family="llama", intermediate_size=256), scale=0.02)
    file = tokenizer.save(tmp_path / "tokenizer.json")
    state = {"stage": "sft", "step": 7, "model": model.config.to_dict(), "recipe": ""}
    save_checkpoint(tmp_path / "run", 7, {"model": model.state_dict()}, state, {"tokenizer.json": file})
    draw = random.Random(0)  # letters, since documents that share lines are not split
    texts = [" ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(60)) for _ in range(60)]
    documents = [Document(each, "file", "here") for each in texts]
    monkeypatch.setattr(gguf, "harvest_embedded", lambda: documents)
    found = gguf.measure_gguf(tmp_path / "run", rows=2)
    rows = {(row["type"], row["importance"]): row for row in found["types"]}
    assert {kind for kind, _ in rows} == FILE_TYPES.keys() and ("q4_k_m", True) in rows and ("f16", True) not in rows
    assert rows["f32", False]["perplexity"] == pytest.approx(found["perplexity"], rel=1e-5)
    assert rows["q2_k", False]["perplexity"] != rows["q2_k", True]["perplexity"]
    assert torch.isfinite(torch.tensor([row["perplexity"] for row in found["types"]])).all()
    assert "q4_k_m  embedded" in gguf.format_gguf(found)
