"""Ollama's lists of models, and its vectors: as its clients decode them."""

from __future__ import annotations

import json
import re
from datetime import datetime

import pytest
import torch

from fledgling import __version__
from fledgling.serve.ollama_models import name_weights
from fledgling.text.tokenizer import Tokenizer
from tests.kernels.matrices import make_matrix, quantize
from tests.serve.conftest import ROOMY_CONTEXT
from tests.serve.test_app import call
from tests.serve.test_ollama_api import send

WIDTH = 32


def vectors_of_openai(address: str, *texts: str) -> list[list[float]]:
    body = json.dumps({"input": list(texts)}).encode()
    answer = call(address, "/v1/embeddings", body, Content_Type="application/json")[1]
    return [entry["embedding"] for entry in answer["data"]]


def test_the_served_model_is_listed_and_loaded(roomy_server):
    address = roomy_server[0]
    (listed,), (loaded,) = (call(address, f"/api/{name}")[1]["models"] for name in ("tags", "ps"))
    assert listed["name"] == listed["model"] == "tiny:latest"
    same = ("name", "model", "size", "digest", "details")
    assert [listed[key] for key in same] == [loaded[key] for key in same]
    assert listed["size"] > 0 and len(listed["digest"]) == 64 and listed["details"]["parameter_size"].endswith("K")
    assert loaded["context_length"] == ROOMY_CONTEXT and loaded["size_vram"] == 0
    for moment in (listed["modified_at"], loaded["expires_at"]):
        assert datetime.fromisoformat(moment).tzinfo


def test_the_version_is_one_that_clients_of_ollama_accept_and_ours_is_next_to_it(server):
    version = call(server[0], "/api/version")[1]
    assert tuple(map(int, version["version"].split("."))) >= (0, 9) and version["server"] == f"fledgling {__version__}"


@pytest.mark.parametrize("field", ["model", "name"])
def test_the_served_model_is_shown(roomy_server, field):
    answer = send(roomy_server[0], "/api/show", **{"model": "", field: "tiny"})[1]
    assert answer["model_info"]["fledgling.context_length"] == ROOMY_CONTEXT
    assert set(answer["capabilities"]) == {"completion", "embedding", "tools"}
    status, answer = send(roomy_server[0], "/api/show", **{"model": "", field: "owl"})
    assert status == 404 and "no model 'owl'" in answer["error"]


def test_vectors_are_those_of_the_other_route(roomy_server):
    address = roomy_server[0]
    both = vectors_of_openai(address, "the fox", "a dog")
    answer = send(address, "/api/embed", input=["the fox", "a dog"], keep_alive="5m")[1]
    assert answer["embeddings"] == both and answer["model"] == "tiny:latest" and answer["prompt_eval_count"] > 2
    alone = send(address, "/api/embed", input="a dog", dimensions=WIDTH)[1]["embeddings"][0]
    assert alone == pytest.approx(both[1], abs=1e-5)
    assert send(address, "/api/embeddings", prompt="the fox")[1]["embedding"] == pytest.approx(both[0], abs=1e-5)


def test_what_clients_read_of_a_model_is_there(roomy_server, roomy_engine, monkeypatch):
    address = roomy_server[0]
    shown = send(address, "/api/show", model="tiny")[1]
    lines = [re.fullmatch(r'(\S+)\s+((?:".*")|\S+)', line) for line in shown["parameters"].splitlines()]  # Continue's
    assert {line[1]: line[2] for line in lines} == {"num_ctx": str(ROOMY_CONTEXT)}
    assert "tools" in shown["template"] and ".Suffix" not in shown["template"]  # LiteLLM's and Continue's questions
    assert shown["details"]["quantization_level"] == "F32"
    info, model = shown["model_info"], roomy_engine.model.config
    name = info["general.architecture"]
    assert info[f"{name}.block_count"] == model.depth and info[f"{name}.attention.head_count_kv"] == model.kv_heads
    assert all(value is not None for value in info.values())
    listed = call(address, "/v1/models/tiny")[1]
    assert listed["context_length"] == listed["max_model_len"] == ROOMY_CONTEXT
    monkeypatch.setattr(roomy_engine, "has_tool_tokens", False)
    assert send(address, "/api/show", model="tiny")[1]["template"] == ""
    monkeypatch.setattr(Tokenizer, "sampling_defaults", {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05})
    lines = send(address, "/api/show", model="tiny")[1]["parameters"].splitlines()[1:]
    assert dict(line.split() for line in lines) == {"temperature": "0.6", "top_k": "20", "repeat_penalty": "1.05"}


@pytest.mark.parametrize(("bits", "name"), [(4, "Q4"), (8, "Q8"), (None, "BF16")])
def test_weights_are_named_as_they_are_stored(bits, name):
    matrix = make_matrix(8, 64)
    weight = quantize(matrix, bits, 32) if bits else matrix.bfloat16()
    model = torch.nn.ParameterList([torch.nn.Parameter(weight, requires_grad=False)])
    assert name_weights(model) == name


def test_each_text_has_its_own_vector_whatever_is_computed_with_it(server):
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "and", "again"]
    texts = [" ".join(words[number % 7 : number % 7 + 1 + number % 4]) for number in range(30)] + ["fox " * 30]
    vectors = vectors_of_openai(server[0], *texts)
    for number in (0, 3, 11, 18, 29, 30):
        assert vectors_of_openai(server[0], texts[number])[0] == pytest.approx(vectors[number], abs=1e-5), number


def test_a_request_without_a_text_is_done_at_once(roomy_server):
    for value in ("", []):
        assert send(roomy_server[0], "/api/embed", input=value)[1]["embeddings"] == []
    assert send(roomy_server[0], "/api/embeddings")[1] == {"embedding": []}


def test_a_text_beyond_the_context_is_cut_unless_truncate_is_false(roomy_server):
    address = roomy_server[0]
    for text in ("a " * 3_000, "a " * 100_000):
        answer = send(address, "/api/embed", input=text)[1]
        assert answer["prompt_eval_count"] == ROOMY_CONTEXT - 1
        status, answer = send(address, "/api/embed", input=text, truncate=False)
        assert status == 400 and "tokens" in answer["error"]


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/api/embed", {"input": ["a", ""]}, "input 1 has 0 tokens"),
        ("/api/embed", {"input": 3}, "input"),
        ("/api/embed", {"input": "a", "dimensions": 7}, "dimensions: expected 32"),
        ("/api/embed", {"input": "a", "model": "owl"}, "no model 'owl'"),
        ("/api/embed", {"inputs": "a"}, "inputs: no such field; input?"),
        ("/api/embeddings", {"prompt": ["a"]}, "prompt"),
    ],
)
def test_what_cannot_be_embedded_is_named(roomy_server, path, fields, message):
    status, answer = send(roomy_server[0], path, **fields)
    assert status in (400, 404) and message in answer["error"]
