"""What the GPU computes is what the CPU and PyTorch's plain functions compute, and a run there can be stopped."""

import pytest
import torch
import torch.nn.functional as F

from fledgling.bench.gpu_runs import compare_resumed_run, load_small_recipe
from fledgling.config import ModelConfig, OptimizerConfig
from fledgling.infer.engine import Engine
from fledgling.infer.sampling import SamplingParams
from fledgling.kernels.device_matrix import pack_device_matrix
from fledgling.kernels.format import dequantize_matrix, quantize_matrix
from fledgling.model import fp8, head_chunk
from fledgling.model.attention import blockwise_attention, make_attention_mask
from fledgling.model.build import build_model
from fledgling.model.cache import CacheRow
from fledgling.model.cuda_attention import flex_sdpa, make_block_mask
from fledgling.model.fused_attention import fused_attention
from fledgling.model.logprob import cross_entropy_sum, target_logprobs
from fledgling.model.window import windowed_sdpa
from fledgling.optim.optimizer import Optimizer
from fledgling.runtime.device import FP8_CAPABILITY, DeviceSetup, choose_dtype, should_compile
from fledgling.runtime.world import World, choose_backend
from fledgling.train import run
from fledgling.train.hooks import NO_EVALS
from fledgling.train.loss import logprobs_from_hidden

pytestmark = pytest.mark.gpu
V, C, T = 512, 64, 256


class Silent:
    special_tokens: dict[str, int] = {}  # noqa: RUF012
    end_tokens: frozenset[int] = frozenset()
    bos_or_none = None


def model_on(device, dtype=torch.float32, compiled=False, windows="", preset="nanochat-2025"):
    sizes = {"vocab_size": V, "depth": 2, "width": C, "heads": 2, "kv_heads": 2, "context": T}
    pattern = {"window_pattern": windows} if windows else {}
    config = ModelConfig(**sizes, preset=preset, **pattern)
    model = build_model(config, DeviceSetup(dtype, compiled, 0.0), device)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * C**-0.5)
    return model


def distance(found, expected):
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    assert torch.isfinite(found).all()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("cap", [15.0, 0.0])
def test_chunked_loss_and_gradients_are_those_of_cross_entropy(device, dtype, bound, cap, monkeypatch):
    monkeypatch.setitem(head_chunk.CHUNK_LOGITS, device.type, 100 * V)
    torch.manual_seed(0)
    hidden = torch.randn(300, C, device=device).to(dtype).requires_grad_()
    weight = torch.randn(V, C, device=device).mul_(0.2).requires_grad_()
    targets = torch.randint(V, (300,), device=device)
    targets[::7] = -1
    loss = cross_entropy_sum(hidden, weight, targets, cap, 0.0)
    found = torch.autograd.grad(loss, (hidden, weight))
    logits = hidden.float() @ weight.to(dtype).float().T
    logits = cap * torch.tanh(logits / cap) if cap else logits
    expected_loss = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    expected = torch.autograd.grad(expected_loss, (hidden, weight))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=bound)
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) < bound


@pytest.mark.parametrize("documents", [False, True])
def test_grouped_heads_take_no_scores_of_the_whole_row(device, documents):
    if device.type != "cuda":
        pytest.skip("kernels of other devices read grouped heads in place")
    numbers = (torch.arange(2048, device=device) // 700).int().expand(2, -1)
    q = torch.randn(2, 8, 2048, 64, device=device, dtype=choose_dtype(device))
    k, v = (torch.randn(2, 2, 2048, 64, device=device, dtype=q.dtype) for _ in range(2))
    mask = make_attention_mask(q[:, 0], numbers, None) if documents else None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_attention(q, k, v, mask, causal=not documents)
    scores = q.shape[0] * q.shape[1] * q.shape[2] ** 2 * q.element_size()
    assert torch.cuda.max_memory_allocated() - before < scores


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("time", [192, 256])
def test_library_attention_is_blockwise_attention(device, documents, time):
    torch.manual_seed(0)
    numbers = (torch.arange(time, device=device) * 3 // time).int().expand(2, -1) if documents else None
    q, k, v = (F.rms_norm(torch.randn(2, 2, time, 64, device=device), (64,)).bfloat16() for _ in range(3))
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    mask = make_attention_mask(q[:, 0], numbers, None) if documents else None
    outputs = (
        fused_attention(q, k, v, mask, causal=not documents),
        blockwise_attention(*(t.float() for t in (q, k, v)), numbers),
    )
    grad = torch.randn_like(q)
    found, expected = (torch.autograd.grad(y, (q, k, v), grad.to(y.dtype)) for y in outputs)
    assert distance(*outputs) < 1e-2
    for one, other in zip(found, expected, strict=True):
        assert distance(one, other) < 2e-2


@pytest.mark.parametrize("documents", [False, True])
def test_windowed_attention_is_blockwise_attention(device, documents):
    torch.manual_seed(0)
    numbers = (torch.arange(T, device=device) * 3 // T).int().expand(2, -1) if documents else None
    q, k, v = (F.rms_norm(torch.randn(2, 2, T, 64, device=device), (64,)).bfloat16() for _ in range(3))
    mask = make_attention_mask(q[:, 0], numbers, None) if documents else None
    expected = blockwise_attention(*(t.float() for t in (q, k, v)), numbers, window_size=48)
    assert distance(windowed_sdpa(q, k, v, mask, 48), expected) < 1e-2


@pytest.mark.parametrize("window_size", [None, 48])
@pytest.mark.parametrize("documents", [False, True])
def test_attention_with_a_block_mask_is_blockwise_attention(device, documents, window_size):
    torch.manual_seed(0)
    numbers = (torch.arange(T, device=device) * 3 // T).int().expand(2, -1) if documents else None
    q, k, v = (F.rms_norm(torch.randn(2, 2, T, 64, device=device), (64,)).bfloat16() for _ in range(3))
    q, k, v = (t.requires_grad_(device.type == "cuda") for t in (q, k, v))  # the CPU's kernel has no backward
    attend = torch.compile(flex_sdpa) if device.type == "cuda" else flex_sdpa
    y = attend(q, k, v, make_block_mask(numbers, T, device, window_size))
    expected = blockwise_attention(*(t.float() for t in (q, k, v)), numbers, window_size=window_size)
    assert distance(y, expected) < 1e-2
    if device.type == "cuda":
        grad = torch.randn_like(y)
        pairs = zip(*(torch.autograd.grad(o, (q, k, v), grad.to(o.dtype)) for o in (y, expected)), strict=True)
        assert all(distance(one, other) < 2e-2 for one, other in pairs)


def test_blocks_that_recompute_have_the_gradients_of_blocks_that_keep(device):
    torch.manual_seed(1)
    tokens, found = torch.randint(V, (2, T), device=device), []
    for recompute in (False, True):
        model = model_on(device, torch.bfloat16)
        model.recompute = recompute
        cross_entropy_sum(model(tokens), model.head.weight, tokens.roll(-1, 1), 15.0, 0.0).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(distance(one, other) <= 1e-3 for one, other in zip(*found, strict=True))


def test_fp8_products_learn_about_what_bf16_does(device):
    pytest.importorskip("torchao")
    real = device.type == "cuda" and torch.cuda.get_device_capability() >= FP8_CAPABILITY
    torch.manual_seed(1)
    tokens, losses = torch.randint(V, (2, T), device=device), []
    for rounded in (False, True):
        model = model_on(device, torch.bfloat16)
        if rounded:
            fp8.use_fp8(model.blocks, emulate=not real)
        losses.append(cross_entropy_sum(model(tokens), model.head.weight, tokens.roll(-1, 1), 15.0, 0.0))
        losses[-1].backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=2e-2)


def test_varlen_attention_is_blockwise_attention_inside_documents(device):
    if device.type == "cpu":
        pytest.skip("varlen attention exists on CUDA alone")
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    torch.manual_seed(0)
    q, k, v = (F.rms_norm(torch.randn(1, 2, T, 64, device=device), (64,)).bfloat16() for _ in range(3))
    ends = torch.tensor([0, 100, 130, T], device=device, dtype=torch.int32)
    numbers = torch.bucketize(torch.arange(T, device=device), ends[1:].long(), right=True)[None]
    windowed = "window_size" in inspect.signature(varlen_attn).parameters
    how = {"window_size": (-1, 0)} if windowed else {"is_causal": True}
    flat = (t[0].transpose(0, 1).contiguous() for t in (q, k, v))
    found = varlen_attn(*flat, ends, ends, 126, 126, **how).transpose(0, 1)[None]
    assert distance(found, blockwise_attention(*(t.float() for t in (q, k, v)), numbers)) < 1e-2


@pytest.mark.parametrize(("documents", "windows"), [(False, ""), (True, ""), (True, "SL"), (False, "SL")])
def test_a_compiled_model_is_the_eager_model(device, documents, windows):
    if device.type == "cpu":
        pytest.skip("tests/model compares them on a CPU")
    assert should_compile("auto", device)
    torch.manual_seed(1)
    tokens = torch.randint(V, (2, T), device=device)
    numbers = (torch.arange(T, device=device) * 3 // T).int().expand(2, -1) if documents else None
    found = []
    for compiled in (False, True):
        model = model_on(device, torch.bfloat16, compiled, windows)
        loss = cross_entropy_sum(model(tokens, numbers), model.head.weight, tokens.roll(-1, 1), 15.0, 0.0)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (loss, grads), (other, others) = found
    assert float(loss) == pytest.approx(float(other), rel=1e-2)
    for name, grad in grads.items():
        assert distance(others[name], grad) < 5e-2, name


@pytest.mark.parametrize("rule", ["muon", "adamw", "normuon"])
def test_the_optimizer_moves_weights_as_on_the_cpu(device, rule):
    ends = []
    for place in (torch.device("cpu"), device):
        model = model_on(place)
        world = World(0, 1, 0, place)
        optimizer = Optimizer(model, OptimizerConfig(matrix_optimizer=rule), world, compiled=place.type == "cuda")
        draw = torch.Generator().manual_seed(3)
        for _ in range(3):
            optimizer.begin_step(1)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draw).to(place)
            optimizer.accumulate()
            assert optimizer.step() > 0
        ends.append(model.state_dict())
    for name, weight in ends[0].items():
        assert distance(ends[1][name], weight) < 1e-3, name


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("preset", ["nanochat-2025", "nanochat-2026"])
def test_decoding_is_the_forward_of_whole_rows(device, dtype, bound, preset):
    model = model_on(device, dtype, preset=preset)
    engine = Engine(model, Silent(), device, dtype)
    draw = torch.Generator().manual_seed(4)
    rows = [torch.randint(V, (length,), generator=draw).tolist() for length in (150, 70, 9)]
    cache, held = engine.runner.new_cache(), [CacheRow() for _ in rows]
    engine.runner.extend_cache(cache, held, [row[:-3] for row in rows])
    for step in (-3, -2, -1):
        hidden = engine.runner.extend_cache(cache, held, [[row[step]] for row in rows])
    with torch.inference_mode():
        logits = engine.runner.compute_logits(hidden)[:, 0]
    for row, last in zip(rows, logits, strict=True):
        with torch.no_grad():
            expected = model.compute_logits(model(torch.tensor([row], device=device)))[0, -1]
        assert distance(last, expected) < bound


@pytest.mark.parametrize(("windows", "preset"), [("", "nanochat-2025"), ("SL", "nanochat-2025"), ("", "nanochat-2026")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_one_step_late_gives_the_log_probabilities_of_decoding_that_waits(device, dtype, windows, preset):
    model = model_on(device, dtype, windows=windows, preset=preset)
    late = Engine(model, Silent(), device, dtype, device_decode="auto" if device.type == "cuda" else "on")
    waiting = Engine(model, Silent(), device, dtype, device_decode="off")
    scheduler = late.make_scheduler(8)
    requests = [
        scheduler.add_request(late.make_request([number + 1] * length, SamplingParams(max_new_tokens=30), number))
        for number, length in enumerate((3, 60, 150, 7, 20))
    ]
    while scheduler.has_unfinished:
        scheduler.step()
    assert scheduler.stats.device_steps >= 29
    assert bool(scheduler.pipeline.decoder.graphs.graphs) == (device.type == "cuda")
    for request in requests:  # bf16 may round to another token: each token is scored as the other path scores it
        scored = waiting.make_request([*request.prompt, *request.tokens], SamplingParams(), 0, False, True, False)
        scorer = waiting.make_scheduler(1)
        scorer.add_request(scored)
        while scorer.has_unfinished:
            scorer.step()
        expected = torch.tensor(scored.prompt_logprobs[len(request.prompt) - 1 :])
        assert float((torch.tensor(request.logprobs) - expected).abs().max()) < (
            1e-3 if dtype == torch.float32 else 0.15
        )


def test_graphs_are_captured_again_after_the_cache_has_grown(device):
    """Each growth drops all graphs, and with the last of them the pool that they shared."""
    is_cuda = device.type == "cuda"
    model = model_on(device, torch.bfloat16)
    engine = Engine(model, Silent(), device, torch.bfloat16, device_decode="auto" if is_cuda else "on")
    scheduler, versions = engine.make_scheduler(16), set()
    for rows in (3, 4, 8):
        for number in range(rows):
            scheduler.add_request(engine.make_request([number + 1] * 20, SamplingParams(max_new_tokens=60), number))
        for _ in range(12):
            scheduler.step()
            versions.add(scheduler.cache.storage_version)
        graphs = scheduler.pipeline.decoder.graphs
        assert bool(graphs.graphs) == is_cuda and not graphs.failed, versions
    assert len(versions) >= 3


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_products_are_those_of_the_dequantized_matrix(device, bits):
    torch.manual_seed(0)
    values, scales = quantize_matrix(torch.randn(512, 1280), bits, 64)
    x = torch.randn(3, 1280).bfloat16()
    expected = x.float() @ dequantize_matrix(values, scales, bits, torch.float32).T
    matrix = pack_device_matrix(values.to(device), scales.to(device), bits)
    assert distance(matrix.multiply(x.to(device)), expected) < 1e-2


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_the_sampler_says_the_log_probabilities_that_the_trainer_computes(device, dtype, bound):
    model = model_on(device, dtype)
    engine = Engine(model, Silent(), device, dtype)
    prompts = [[1, 2, 3, 4], [5] * 40, [7, 8]]
    answers = engine.generate(prompts, SamplingParams(temperature=0.8, max_new_tokens=24, seed=1), use_tools=False)
    for prompt, answer in zip(prompts, answers, strict=True):
        row = torch.tensor([[*prompt, *answer.tokens]], device=device)
        with torch.no_grad():
            found = logprobs_from_hidden(model, model(row[:, :-1]), row[:, 1:], 0.8)[0, len(prompt) - 1 :]
        assert len(answer.tokens) == 24
        assert float((found.cpu() - torch.tensor(answer.logprobs)).abs().max()) < bound


def test_target_logprobs_learn_as_log_softmax_does(device):
    torch.manual_seed(0)
    hidden = torch.randn(2, 30, C, device=device, requires_grad=True)
    weight = torch.randn(V, C, device=device).mul_(0.2).requires_grad_()
    targets = torch.randint(V, (2, 30), device=device)
    grad = torch.randn(2, 30, device=device)
    found = target_logprobs(hidden, weight, targets, 15.0, 0.0)
    logits = 15 * torch.tanh(hidden @ weight.T / 15)
    expected = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert distance(found, expected) < 1e-4
    pairs = zip(*(torch.autograd.grad(y, (hidden, weight), grad) for y in (found, expected)), strict=True)
    assert all(distance(one, other) < 1e-4 for one, other in pairs)


def test_a_stopped_run_resumes_where_it_was(device, tmp_path):
    tiny = ["model.depth=2", "model.width=32", "run.compile=off"]
    recipe = load_small_recipe(tmp_path, [*tiny, "pretrain.steps=1"])
    run.run_stage(recipe, "pretrain", quiet=True, hooks=NO_EVALS)
    differences = compare_resumed_run(tmp_path, tiny)
    assert differences["resumed"] <= max(1e-6, 4 * differences["run_to_run"])


def test_every_verb_works_in_a_group_of_one_rank(device, monkeypatch):
    import torch.distributed as dist

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    bound = device if device.type == "cuda" else None
    backend = choose_backend(device.type, 1, 1)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=bound)
    try:
        world = Grouped(0, 1, 0, device)
        values = torch.arange(6.0, device=device)
        dist.all_reduce(total := values.clone())
        assert torch.equal(total, values)
        for exact in (True, False):
            assert torch.equal(world.reduce_scatter(values.clone(), exact).wait(), values)
        assert torch.equal(world.all_gather(values).wait(), values)
        assert torch.equal(world.all_to_all(values).wait(), values)
        assert torch.equal(world.gather_to_main(values), values[None])
        assert world.all_reduce(3) == 3.0 and torch.equal(world.all_reduce(values), values)
        assert world.all_gather_object({"a": 1}) == [{"a": 1}]
        assert world.make_device_mesh().size() == 1
        world.barrier()
    finally:
        dist.destroy_process_group()


class Grouped(World):
    """A world of one rank that still communicates through its group."""

    def __getattribute__(self, name):
        return One(1) if name == "size" else super().__getattribute__(name)


class One(int):
    """1, which is not known to be alone: `== 1` is what a world asks before it spares itself an exchange."""

    def __eq__(self, other):
        return False

    def __gt__(self, other):
        return True

    __hash__ = int.__hash__
