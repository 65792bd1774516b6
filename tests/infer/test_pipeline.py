"""Decoding on the device, forced on the CPU: the same answers as decoding that waits for each token."""

import pytest
import torch

from fledgling.config import ModelConfig
from fledgling.infer import device_decoder
from fledgling.infer.device_decoder import DeviceDecoder, PendingTokens
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.infer.scheduler import Scheduler
from fledgling.kernels import quantized_tensor
from fledgling.kernels.device_matrix import DeviceMatrix
from fledgling.kernels.format import DEFAULT_GROUP_SIZES
from fledgling.kernels.quantized_model import load_quantized_model, quantize_state_dict
from fledgling.model.transformer import Transformer
from fledgling.text.conversation import render_prompt
from fledgling.text.tokenizer import Tokenizer
from tests.invariants.test_decode import KINDS, random_model
from tests.invariants.test_two_hundred_requests import CONTEXT, MODES, random_cases, run_cases

PROMPT = [1, 2, 3, 4, 5]


def make_engines(kind, tokenizer):
    model = random_model(tokenizer.vocab_size, kind, CONTEXT)
    return Engine(model, tokenizer), Engine(model, tokenizer, device_decode="on")


@pytest.fixture(scope="module")
def device_engine(tokenizer: Tokenizer) -> Engine:
    return make_engines("fledgling", tokenizer)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_requests_get_the_tokens_of_decoding_that_waits(tokenizer, kind):
    waiting, device = make_engines(kind, tokenizer)
    cases = random_cases(24, seed=5)
    expected, _ = run_cases(waiting, cases, 6, 12, **MODES["cached"])
    found, scheduler = run_cases(device, cases, 6, 12, **MODES["cached"])
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.finish_reason, one.forced) == (other.tokens, other.finish_reason, other.forced)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert one.top_logprobs == [
            [(token, pytest.approx(value, abs=1e-4)) for token, value in entries] for entries in other.top_logprobs
        ]
    stats = scheduler.stats
    assert 0 < stats.device_steps < stats.decode_steps  # some requests need logits that the host changes


def test_a_tool_call_gets_its_forced_tokens(adder, tokenizer):
    engine = Engine(adder.source, tokenizer, device_decode="on")
    prompts = [
        render_prompt(tokenizer, {"messages": [{"role": "user", "content": text}]}) for text in ("add", "and more")
    ]
    expected, found = (e.generate(prompts, SamplingParams(temperature=0)) for e in (adder, engine))
    assert found == expected
    assert all(any(answer.forced) for answer in found)


def test_a_step_starts_before_the_tokens_of_the_last_are_read(device_engine, monkeypatch):
    events = []
    launch, read = DeviceDecoder.launch, PendingTokens.read
    monkeypatch.setattr(DeviceDecoder, "launch", lambda *args: events.append("start") or launch(*args))
    monkeypatch.setattr(PendingTokens, "read", lambda self: events.append("read") or read(self))
    answer = device_engine.generate([PROMPT], SamplingParams(temperature=0, max_new_tokens=6), use_tools=False)[0]
    assert len(answer.tokens) == 6  # the first is sampled after the prefill
    assert events == ["start", "start", "read", "start", "read", "start", "read", "start", "read", "read"]


def test_nothing_is_uploaded_while_the_rows_stay_as_they_are(device_engine, monkeypatch):
    uploads = []
    upload = DeviceDecoder.upload
    monkeypatch.setattr(DeviceDecoder, "upload", lambda self, *args: uploads.append(1) or upload(self, *args))
    sampling = SamplingParams(temperature=0, max_new_tokens=80)
    device_engine.generate([PROMPT, PROMPT[:3]], sampling, use_tools=False)
    assert len(uploads) == 3  # at the start, and when each row needs its second block


def test_the_token_after_a_stop_is_discarded(device_engine):
    free = device_engine.generate([PROMPT], SamplingParams(max_new_tokens=30, seed=1), use_tools=False)[0]
    stop = free.tokens[9]
    sampling = SamplingParams(max_new_tokens=30, seed=1, stop_token_ids=(stop,))
    scheduler = device_engine.make_scheduler(2, prefix_cache_tokens=4096)
    request = scheduler.add_request(device_engine.make_request(PROMPT, sampling, use_tools=False))
    longer = SamplingParams(max_new_tokens=30, seed=1)  # the pending token is read, because this one continues
    scheduler.add_request(device_engine.make_request(PROMPT[:2], longer, use_tools=False))
    finish(scheduler)
    assert request.finish_reason == "stop"
    assert request.tokens == free.tokens[: free.tokens.index(stop) + 1]
    again = scheduler.add_request(device_engine.make_request([*PROMPT, *request.tokens, 7], sampling, use_tools=False))
    finish(scheduler)  # over the cached blocks of the first answer
    assert again.tokens == device_engine.generate([again.prompt], sampling, use_tools=False)[0].tokens


def test_a_cancelled_request_gets_no_pending_token_and_leaves_the_others_alone(device_engine):
    sampling = SamplingParams(max_new_tokens=20, seed=1)
    scheduler = device_engine.make_scheduler(4)
    requests = [
        scheduler.add_request(device_engine.make_request(PROMPT[:length], sampling, length, use_tools=False))
        for length in (2, 3, 4)
    ]
    for _ in range(6):
        scheduler.step()
    length = len(requests[1].tokens)
    scheduler.cancel(requests[1])
    finish(scheduler)
    assert len(requests[1].tokens) == length < 20
    for request in (requests[0], requests[2]):
        alone = device_engine.generate([request.prompt], sampling, use_tools=False, request_indices=[request.index])
        assert request.tokens == alone[0].tokens
    assert scheduler.cache.used_blocks == 0


def test_the_blocks_of_a_static_cache_never_move(device_engine):
    scheduler = device_engine.make_scheduler(4)
    cache = scheduler.cache
    for length in (3, 70, 200):
        scheduler.add_request(device_engine.make_request([1] * length, SamplingParams(max_new_tokens=4)))
    finish(scheduler)
    addresses, version = [part.data_ptr() for part in (*cache.keys, *cache.values)], cache.storage_version
    for length in (3, 70, 200):
        scheduler.add_request(device_engine.make_request([2] * length, SamplingParams(max_new_tokens=4)))
    finish(scheduler)
    assert [part.data_ptr() for part in (*cache.keys, *cache.values)] == addresses
    assert cache.storage_version == version and cache.capacity >= 4


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_are_multiplied_by_the_kernel_of_their_device(tokenizer, monkeypatch, bits):
    monkeypatch.setattr(quantized_tensor, "can_pack", lambda values, scales, bits: True)  # as on CUDA
    config = ModelConfig(tokenizer.vocab_size, 1, 64, 2, 2, 64, preset="nanochat-2025")
    torch.manual_seed(0)
    state = {name: torch.randn(weight.shape) * 0.2 for name, weight in Transformer(config).state_dict().items()}
    group_size = DEFAULT_GROUP_SIZES[bits]
    tensors = quantize_state_dict(config, state, bits, group_size, head=False)
    model = load_quantized_model(config, tensors, {"bits": bits}, dtype=torch.bfloat16)
    products = []
    multiply = DeviceMatrix.multiply
    monkeypatch.setattr(DeviceMatrix, "multiply", lambda self, x: products.append(1) or multiply(self, x))
    engine = Engine(model, tokenizer, device_decode="on")
    answer = engine.generate([PROMPT], SamplingParams(temperature=0, max_new_tokens=6), use_tools=False)[0]
    assert len(products) == 6 * 6  # a prefill and five steps, six matrices each
    with torch.no_grad():
        row = torch.tensor([[*PROMPT, *answer.tokens[:-1]]])
        logits = model.compute_logits(model(row))[0, len(PROMPT) - 1 :]
    taken = logits.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
    assert torch.all(taken > logits.amax(-1) - 0.1)  # the most likely, up to the rounding of bf16


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (33, 64), (256, 256), (257, 512), (600, 768)])
def test_rows_are_padded_to_a_bucket(rows, bucket):
    assert device_decoder.row_bucket(rows) == bucket


def test_the_block_that_is_compiled_is_one_graph_for_all_layers_and_buckets(tokenizer):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    _, engine = make_engines("fledgling", tokenizer)
    engine.runner.run_block = torch.compile(device_decoder.run_block, backend=counter, fullgraph=True)
    expected = engine.generate([PROMPT], SamplingParams(max_new_tokens=8, seed=1))[0].tokens
    for rows in (3, 9, 30):
        prompts = [PROMPT, *([7, number + 1] for number in range(rows - 1))]
        assert engine.generate(prompts, SamplingParams(max_new_tokens=8, seed=1))[0].tokens == expected
    assert counter.frame_count <= 3  # one row, the second bucket, any further bucket
    torch._dynamo.reset()


def finish(scheduler: Scheduler) -> None:
    while scheduler.has_unfinished:
        scheduler.step()
