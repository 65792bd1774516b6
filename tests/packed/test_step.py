"""A decoding step in one call is the model's own, for every family and any mixture of lengths."""

import pytest
import torch

from fledgling.bench.infer import Silent, random_model
from fledgling.infer.engine import Engine
from fledgling.infer.sample import Sampling
from fledgling.model.config import preset
from fledgling.packed import native
from fledgling.packed.model import pack_state, unpack_model
from fledgling.packed.step import can_step

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiler, or no AVX-512 with bf16")
FAMILIES = [("fledgling", {}), ("fledgling", {"kv_heads": 1}), ("gpt2", {}), ("llama", {"kv_heads": 2, "hidden": 384})]


def made(family: str, parts: dict, width: int = 128):
    config = preset(family, vocab_size=90, depth=2, width=width, heads=4, **{"kv_heads": 4} | parts, context=64)
    model = random_model(config, torch.bfloat16, torch.device("cpu")).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)) * 0.2
    return model


def logits(engine: Engine, prompts: list[list[int]], tokens: list[list[int]]) -> torch.Tensor:
    """After each row's further tokens, one step each."""
    with torch.inference_mode():
        cache = engine.new_cache(len(prompts), 40)
        cut = [prompt + [0] * (max(map(len, prompts)) - len(prompt)) for prompt in prompts]
        engine.logits(cache, cut, list(map(len, prompts)))
        found = [engine.logits(cache, [[token] for token in step], [1] * len(prompts)) for step in tokens]
    return torch.stack(found).float()


@pytest.mark.parametrize(("family", "parts"), FAMILIES)
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_step_is_as_near_to_exact_as_the_model_in_bf16(family, parts, bits):
    model = made(family, parts)
    if bits != 16:
        model = unpack_model(model.config, pack_state(model.config, model.state_dict(), bits, 32), {"bits": bits})
    draw = torch.Generator().manual_seed(7)
    prompts = [torch.randint(90, (length,), generator=draw).tolist() for length in (3, 17, 9, 1, 20)]
    tokens = torch.randint(90, (4, 5), generator=draw).tolist()
    stepped, plain = Engine(model, Silent({}), dtype=torch.bfloat16), Engine(model, Silent({}), dtype=torch.bfloat16)
    plain.step = None
    exact = logits(Engine(model, Silent({}), dtype=torch.float32), prompts, tokens)
    assert stepped.step is not None
    error = [(logits(engine, prompts, tokens) - exact).square().mean().sqrt() for engine in (stepped, plain)]
    assert error[0] < 1.2 * error[1] and error[0] < 0.05 * exact.std()


def test_blocks_in_any_order_are_one_cache():
    model = made("llama", {"hidden": 384})
    engine, draw = Engine(model, Silent({}), dtype=torch.bfloat16), torch.Generator().manual_seed(1)
    with torch.inference_mode():
        cache, _ = engine.prefill(torch.randint(90, (3, 20), generator=draw).tolist())
        whole = engine.new_cache(3, 32)
        whole.keys[..., :20, :], whole.values[..., :20, :], whole.lengths[:] = cache.keys, cache.values, 20
        order = torch.randperm(12, generator=draw)  # block i of 8 tokens goes to place order[i]

        def scattered(kept: torch.Tensor) -> list[torch.Tensor]:
            pools = []
            for layer in kept:
                blocks = layer.unflatten(2, (4, 8)).transpose(1, 2).flatten(0, 1)  # (3 x 4, G, 8, D)
                pools.append(torch.empty_like(blocks))
                pools[-1][order] = blocks
            return pools

        keys, values = scattered(whole.keys), scattered(whole.values)
        tokens, positions = torch.tensor([[1], [2], [3]]), whole.positions(1)
        blocks = engine.step.run(tokens, positions, keys, values, order.view(3, 4).contiguous(), 8)
        assert torch.equal(blocks, engine.step(tokens, whole))
        assert all(map(torch.equal, keys, scattered(whole.keys)))  # the new key, too


def test_more_rows_than_a_step_takes_and_fewer_give_the_same_tokens():
    engine = Engine(made("fledgling", {}), Silent({}), dtype=torch.bfloat16)
    prompts = [[row % 90, 3, 5] for row in range(native.FEW + 6)]
    asked = Sampling(temperature=0.0, max_tokens=4)
    together = engine.generate(prompts, asked)
    apart = [engine.generate([prompt], asked)[0] for prompt in prompts[:3]]
    agree = sum(a.tokens == b.tokens for a, b in zip(together, apart, strict=False))
    assert len(together) == len(prompts) and agree >= 2  # a near tie may fall either way


def test_a_step_follows_the_model_when_it_learns():
    model = made("llama", {"hidden": 384})
    engine, asked = Engine(model, Silent({}), dtype=torch.bfloat16), Sampling(temperature=0.0, max_tokens=8)
    before = engine.generate([[5, 9, 77]], asked)[0].tokens
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7).add_(0.05)
    after = engine.generate([[5, 9, 77]], asked)[0].tokens
    fresh = Engine(model, Silent({}), dtype=torch.bfloat16).generate([[5, 9, 77]], asked)[0].tokens
    assert before != after == fresh


def test_widths_that_no_vector_register_fits_take_the_models_way():
    assert can_step(made("fledgling", {}).bfloat16())
    assert not can_step(made("fledgling", {}, width=64).bfloat16())  # heads of 16
