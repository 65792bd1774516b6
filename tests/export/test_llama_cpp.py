"""GGUF files of every architecture in llama.cpp itself, where xllamacpp (its server in Python) is installed."""

import pytest
import torch

from fledgling.export import gguf, parity
from tests.export.test_gguf_mapping import MODELS

xllamacpp = pytest.importorskip("xllamacpp", reason='xllamacpp is not installed: pip install "fledgling[llama-cpp]"')
COUNT = 100


def serve(path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to 16 bits
    params.port = params.verbosity = 0
    return xllamacpp.Server(params)


def complete(server, prompt):
    """The ids of the completion of a prompt of ids, and the log p of each."""
    settings = {"temperature": 0, "top_k": 1, "ignore_eos": True, "logprobs": 1, "max_tokens": COUNT}
    found = server.handle_completions({"prompt": prompt, **settings})["choices"][0]["logprobs"]["content"]
    return [entry["id"] for entry in found], [entry["logprob"] for entry in found]


@pytest.mark.parametrize("case", MODELS)
def test_llama_cpp_writes_the_same_hundred_tokens(case, make, tokenizer, tmp_path):
    family, fields = MODELS[case]
    model = make(family, context=256, **fields)
    with torch.no_grad():
        (model.embedding if model.config.tie_embeddings else model.head).weight.mul_(2)  # fewer near ties
    prompt = [tokenizer.bos, *tokenizer.encode("the quick brown fox")]
    expected = parity.generate_greedy(model, prompt, COUNT)
    with torch.no_grad():
        logits = model.compute_logits(model(torch.tensor([prompt + expected])))[0, len(prompt) - 1 : -1]
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(expected)[:, None])[:, 0]
    for kind, tolerance in (("f32", 2e-2 if family == "gpt2" else 1e-3), ("q8_0", 0.3)):  # GELU is a table in 16 bits
        path = gguf.write_gguf(tmp_path / f"{kind}.gguf", model.config, model.state_dict(), tokenizer, kind, "m")
        ids, found = complete(serve(path), prompt)
        agreed = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=True)) if a != b), COUNT)
        assert agreed == COUNT or kind == "q8_0", f"{case}: {agreed} of {COUNT} tokens"
        assert max(abs(a - b) for a, b in zip(found[:agreed], logprobs[:agreed].tolist(), strict=True)) < tolerance
