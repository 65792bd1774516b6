"""GGUF files of every architecture in llama.cpp itself, where xllamacpp (its server in Python) is installed."""

import pytest
import torch

from fledgling.export import gguf, parity
from fledgling.export.gguf_mapping import choose_architecture
from tests.export.test_gguf_mapping import MODELS

xllamacpp = pytest.importorskip("xllamacpp", reason='xllamacpp is not installed: pip install "fledgling[llama-cpp]"')
COUNT = 100


def serve(path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.port = 0
    return xllamacpp.Server(params)


def complete(server, prompt, **settings):
    """The completion of a prompt of token ids."""
    return server.handle_completions(
        {"prompt": prompt, "temperature": 0, "top_k": 1, "ignore_eos": True, "return_tokens": True, **settings}
    )


@pytest.mark.parametrize("case", MODELS)
def test_llama_cpp_writes_the_same_hundred_tokens(case, make, tokenizer, tmp_path):
    family, fields = MODELS[case]
    model = make(family, context=256, **fields)
    with torch.no_grad():
        (model.embedding if model.config.tie_embeddings else model.head).weight *= 2  # fewer near ties
    path = gguf.write_gguf(tmp_path / "m.gguf", model.config, model.state_dict(), tokenizer, "f32", "m")
    prompt = [tokenizer.bos, *tokenizer.encode("the quick brown fox")]
    expected = parity.generate_greedy(model, prompt, COUNT)
    server = serve(path)
    found = complete(server, prompt, n_predict=COUNT)
    assert choose_architecture(model.config).name == case.split(",")[0]
    agreed = next((i for i, (a, b) in enumerate(zip(found["tokens"], expected, strict=False)) if a != b), COUNT)
    assert agreed == COUNT, f"{case}: {agreed} of {COUNT} tokens"
