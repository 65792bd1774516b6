"""A decoding step in one call is the model's own, for every family and any mixture of lengths."""

import pytest
import torch

from fledgling.bench.infer import NoSpecialTokens, make_random_model
from fledgling.config import ModelConfig
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels import native
from fledgling.kernels.decoding_step import MAX_STEP_TOKENS, supports_decoding_step
from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
from fledgling.model.cache import CacheRow, KVCache

pytestmark = pytest.mark.skipif(
    native.load_native_library() is None, reason="no native kernels: no compiler, or another processor"
)
FAMILIES = [
    ("fledgling", {}),
    ("fledgling", {"kv_heads": 1}),
    ("fledgling", {"kv_heads": 2, "value_embeddings": 1}),
    ("fledgling", {"value_embeddings": 2, "value_gates": True}),
    ("fledgling", {"window_pattern": "S", "window_size": 5}),
    ("fledgling", {"window_pattern": "S", "window_size": 90, "kv_heads": 2}),
    ("fledgling", {"residual_scalars": True}),
    ("fledgling", {"skip_scalars": True, "depth": 5}),
    ("fledgling", {"back_out": True}),
    ("fledgling", {"smear": True}),
    ("fledgling", {"kv_heads": 2, "head_gates": True}),
    ("fledgling", {"kv_heads": 2, "exclusive_attention": True}),
    ("fledgling", {"preset": "nanochat-2026", "depth": 5, "skip_scalars": True, "head_gates": True}),
    ("fledgling", {"preset": "small-2026", "depth": 3}),
    ("gpt2", {}),
    ("llama", {"kv_heads": 2, "intermediate_size": 384}),
]


def make_model(family: str, parts: dict, width: int = 128):
    config = ModelConfig(
        family=family,
        vocab_size=90,
        width=width,
        heads=4,
        **{"kv_heads": 4, "depth": 2, "preset": "nanochat-2025"} | parts,
        context=256,
    )
    model = make_random_model(config, torch.bfloat16, torch.device("cpu")).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith("gate.weight"):  # which else change nothing
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.2
    return model


def compute_logits(engine: Engine, prompts: list[list[int]], tokens: list[list[int]]) -> torch.Tensor:
    """Returns the logits after each row's further tokens, read in one step each."""
    cache, rows = engine.runner.new_cache(), [CacheRow() for _ in prompts]
    for row, prompt in zip(rows, prompts, strict=True):
        engine.runner.extend_cache(cache, [row], [prompt])
    hidden = [engine.runner.extend_cache(cache, rows, [[token] for token in step])[:, 0] for step in tokens]
    with torch.inference_mode():
        return engine.model.compute_logits(torch.stack(hidden)).float()


@pytest.mark.parametrize(("family", "parts"), FAMILIES)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_step_is_as_exact_as_the_model_in_bf16(family, parts, bits):
    model = make_model(family, parts)
    if bits != 16:
        model = load_quantized_model(
            model.config, quantize_state_dict(model.config, model.state_dict(), bits, 32), {"bits": bits}
        )
    draw = torch.Generator().manual_seed(7)
    prompts = [torch.randint(90, (length,), generator=draw).tolist() for length in (3, 170, 90, 1, 20)]
    tokens = torch.randint(90, (4, 5), generator=draw).tolist()
    stepped, plain = (
        Engine(model, NoSpecialTokens({}), dtype=torch.bfloat16),
        Engine(model, NoSpecialTokens({}), dtype=torch.bfloat16),
    )
    plain.runner.backend.native_step = None
    exact = compute_logits(Engine(model, NoSpecialTokens({}), dtype=torch.float32), prompts, tokens)
    assert stepped.runner.backend.native_step is not None
    error = [(compute_logits(engine, prompts, tokens) - exact).square().mean().sqrt() for engine in (stepped, plain)]
    assert error[0] < 1.2 * error[1] and error[0] < 0.05 * exact.std()


def test_rows_with_shared_and_scattered_blocks_are_read_like_single_rows():
    engine = Engine(make_model("llama", {"intermediate_size": 384}), NoSpecialTokens({}), dtype=torch.bfloat16)
    cache, prompt = KVCache(engine.model.config, torch.bfloat16, block_size=4), list(range(2, 21))
    rows = [CacheRow() for _ in range(3)]
    for start in range(0, 18, 3):  # row by row, so that their blocks alternate
        for row in rows:
            engine.runner.extend_cache(cache, [row], [prompt[start : start + 3]])
    cache.release_row(rows[1])
    with torch.inference_mode():
        (rows[1],) = cache.fork([rows[2]])
    together = engine.runner.extend_cache(cache, rows, [[1], [2], [1]])
    alone = [engine.runner.extend_cache(cache, [row], [[4]])[0, 0] for row in rows]
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(alone[0], alone[2]) and not torch.equal(alone[0], alone[1])
    whole, kept = engine.runner.new_cache(), CacheRow()
    engine.runner.extend_cache(whole, [kept], [prompt[:18]])
    separate = [engine.runner.extend_cache(whole, [kept], [[token]])[0, 0] for token in (1, 4)]
    assert (separate[0] - together[0, 0]).abs().max() < 0.1 and (separate[1] - alone[0]).abs().max() < 0.1


def test_a_step_finds_a_cache_that_has_moved():
    engine = Engine(make_model("llama", {"intermediate_size": 384}), NoSpecialTokens({}), dtype=torch.bfloat16)
    cache, rows, prompt = engine.runner.new_cache(), [CacheRow() for _ in range(9)], list(range(2, 42))
    kept, old = rows[-1], list[torch.Tensor]()  # what the cache has left stays in memory
    for row in rows:
        old += [*cache.keys, *cache.values]
        engine.runner.extend_cache(cache, [row], [prompt])  # grows it
    engine.runner.extend_cache(cache, [kept], [[50]])
    for row in rows[:-1]:
        cache.release_row(row)
    old += [*cache.keys, *cache.values]
    with torch.inference_mode():
        cache.trim()
    assert cache.capacity < 9
    other, whole = engine.runner.new_cache(), CacheRow()
    engine.runner.extend_cache(other, [whole], [[*prompt, 50]])
    for token in (3, 4, 5):
        found = engine.runner.extend_cache(cache, [kept], [[token]])
        expected = engine.runner.extend_cache(other, [whole], [[token]])
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("family", "parts"), FAMILIES)
def test_several_tokens_of_a_row_are_read_as_if_one_by_one(family, parts):
    engine = Engine(make_model(family, parts), NoSpecialTokens({}), dtype=torch.bfloat16)
    engine.model.forward = None  # every forward pass must go through the step
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(90, (length,), generator=draw).tolist() for length in (3, 17, 9, 20)]
    together, alone = ((engine.runner.new_cache(), [CacheRow() for _ in prompts]) for _ in range(2))
    for counts in ((1, 1, 1, 1), (2, 7, 1, 5), (0, 9, 7, 14)):
        begins = [row.length for row in together[1]]
        fresh = [prompt[at : at + n] for prompt, at, n in zip(prompts, begins, counts, strict=True)]
        going = [number for number, part in enumerate(fresh) if part]
        rows = [together[1][number] for number in going]
        found = engine.runner.extend_cache(together[0], rows, [fresh[number] for number in going])
        for hidden, number in zip(found, going, strict=True):
            for place, token in enumerate(fresh[number]):
                expected = engine.runner.extend_cache(alone[0], [alone[1][number]], [[token]])[0, 0]
                assert torch.equal(hidden[place], expected)
            assert not hidden[len(fresh[number]) :].any()


def test_more_rows_than_a_step_takes_and_fewer_give_the_same_tokens():
    engine = Engine(make_model("fledgling", {}), NoSpecialTokens({}), dtype=torch.bfloat16)
    prompts = [[row % 90, 3, 5] for row in range(MAX_STEP_TOKENS + 6)]
    requested = SamplingParams(temperature=0.0, max_new_tokens=4)
    together = engine.generate(prompts, requested)
    separate = [engine.generate([prompt], requested)[0] for prompt in prompts[:3]]
    agree = sum(a.tokens == b.tokens for a, b in zip(together, separate, strict=False))
    assert len(together) == len(prompts) and agree >= 2  # a near tie may fall either way


def test_a_step_follows_the_model_when_it_is_trained():
    model = make_model("llama", {"intermediate_size": 384})
    engine, sampling = (
        Engine(model, NoSpecialTokens({}), dtype=torch.bfloat16),
        SamplingParams(temperature=0.0, max_new_tokens=8),
    )
    before = engine.generate([[5, 9, 77]], sampling)[0].tokens
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7).add_(0.05)
    after = engine.generate([[5, 9, 77]], sampling)[0].tokens
    fresh = Engine(model, NoSpecialTokens({}), dtype=torch.bfloat16).generate([[5, 9, 77]], sampling)[0].tokens
    assert before != after == fresh


def test_a_refresh_reads_live_weights_again():
    model = make_model("llama", {"intermediate_size": 384}).to(torch.bfloat16)
    engine, sampling = Engine(model, NoSpecialTokens({})), SamplingParams(temperature=0.0, max_new_tokens=8)
    assert engine.runner.backend.native_step is not None and engine.model is model
    engine.generate([[5, 9, 77]], sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7).add_(0.05)
    engine.runner.refresh_weights()
    fresh = Engine(model, NoSpecialTokens({})).generate([[5, 9, 77]], sampling)[0]
    assert engine.generate([[5, 9, 77]], sampling)[0].logprobs == fresh.logprobs


def test_widths_that_are_not_multiples_of_a_vector_are_not_supported():
    assert supports_decoding_step(make_model("fledgling", {}).bfloat16())
    assert not supports_decoding_step(make_model("fledgling", {}, width=64).bfloat16())  # heads of 16
